import sys
from pathlib import Path

# The archives of tests/data, which is no package.
sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
