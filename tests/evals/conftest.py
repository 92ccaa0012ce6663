import sys
from pathlib import Path

# The evaluations are shared by the modules of this folder, which is no package.
sys.path.insert(0, str(Path(__file__).parent))
