"""`pip install` that installs nothing: the extras that it is asked for have to be setup.py's."""

import ast
import re
import sys
from pathlib import Path


def extras():
    """The keys of `extras_require` in the setup.py of this folder."""
    for node in ast.walk(ast.parse(Path("setup.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "extras_require":
            return {key.value for key in node.value.keys}
    raise ValueError("setup.py has no extras_require")


if __name__ == "__main__":
    assert sys.argv[1] == "install", sys.argv
    for word in sys.argv[2:]:
        wanted = re.fullmatch(r"(?:\.|clipjax)\[([\w,]+)\]", word)
        if wanted and not set(wanted[1].split(",")) <= extras():
            sys.exit(f"pip install {word}: setup.py has the extras {', '.join(sorted(extras()))}")
