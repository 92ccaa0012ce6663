import sys
from pathlib import Path

# The helpers are shared by the modules of these folders, which are no packages.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "images")]
