import sys
from pathlib import Path

# The evaluations of tests/evals, which is no package.
sys.path.insert(0, str(Path(__file__).parents[1] / "evals"))
