import sys
from pathlib import Path

# The helpers are shared by the modules of this folder, which is no package.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "golden" / "models")]
