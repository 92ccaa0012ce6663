import sys
from pathlib import Path

# The golden arrays of the models, and what reads them.
TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "models"), str(TESTS / "golden" / "models")]
