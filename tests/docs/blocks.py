"""The parts of a document that a reader would copy: fenced blocks and commands inside of lines."""

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")),
]
# `console` is a dry run and what it prints; tests/integration/test_launchers.py runs it.
LANGUAGES = ("bash", "python", "json", "diff", "text", "console")

_FENCE = re.compile(r"^(\s*)```(.*)$")
_FILE = re.compile(r"# (\S+\.py)\n")
# A command, as opposed to a name such as `clipjax plan`: a verb with flags, a script, an install.
_COMMAND = re.compile(
    r"""`(
        clipjax\s(?:[a-z]+\s)+(?=[^`]*[-']) [^`]* | clipjax\smodels |
        (?:\w+=\S+\s)*(?:bash|sbatch)\s [^`]*launch/ [^`]* |
        python\s(?:-m\s|benchmarks/) [^`]* |
        pytest\s-[^`]* |
        (?:\.venv/bin/)?pip\sinstall\s [^`]*
    )`""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Block:
    """What stands in a document, from a line on; inline commands are of language `bash`."""

    path: Path
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that a reader makes of a Python block: its first line names it."""
        match = _FILE.match(self.text) if self.language == "python" else None
        return match[1] if match else None

    @property
    def where(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def document(self) -> str:
        inside = self.path.is_relative_to(ROOT)
        return str(self.path.relative_to(ROOT)) if inside else self.path.name


def blocks_of(path: Path) -> list[Block]:
    """Fenced blocks and inline commands, in order."""
    blocks, prose = _split(path)
    for line, text in prose:
        for match in _COMMAND.finditer(text):
            if '"$@"' not in match[1]:
                blocks.append(Block(path, line, "bash", match[1].replace(r"\|", "|") + "\n"))
    return sorted(blocks, key=lambda block: block.line)


def unfenced_of(path: Path) -> list[Block]:
    """Code by four spaces of indentation, which says no language."""
    _, prose = _split(path)
    found, before = [], ""
    for line, text in prose:
        if text.startswith("    ") and text.strip() and not before.strip():
            found.append(Block(path, line, "", text))
        before = text
    return found


def _split(path: Path) -> tuple[list[Block], list[tuple[int, str]]]:
    """The fenced blocks, and the numbered lines between them."""
    blocks, prose, opened = [], [], None
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = _FENCE.match(text)
        if opened is None and fence:
            opened = (number + 1, fence[2].strip(), [])
        elif opened is not None and fence and not fence[2].strip():
            line, language, lines = opened
            blocks.append(Block(path, line, language, textwrap.dedent("\n".join(lines)) + "\n"))
            opened = None
        elif opened is not None:
            opened[2].append(text)
        else:
            prose.append((number, text))
    if opened is not None:
        raise ValueError(f"{path}:{opened[0] - 1}: a fence that is not closed")
    return blocks, prose
