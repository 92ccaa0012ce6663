"""The code that docs/extending.md shows."""

import re
from pathlib import Path

_PAGE = Path(__file__).parent.parent.parent / "docs" / "extending.md"
# The module my_lab/objectives.py.
CAPTIONER = re.search(
    r"```python\n(# my_lab/objectives\.py\n.*?)```", _PAGE.read_text(encoding="utf-8"), re.S
)[1]
