"""Values that are kept in files: a change of one shows in the diff of a commit.

`UPDATE_GOLDEN=1 pytest ...` writes the files anew.
"""

import json
import os
from pathlib import Path

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(name, value):
    """What is kept as `tests/golden/NAME`, beside the JSON value as it would be read back."""
    path = GOLDEN / name
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8")), json.loads(text)
