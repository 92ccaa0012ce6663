"""No block of the documents escapes, and `clipjax` takes the flags of every command in them."""

import re
from pathlib import Path

import pytest
from blocks import DOCUMENTS, LANGUAGES, Block, blocks_of, unfenced_of
from recording import clipjax_commands, parse

COMMAND = re.compile(r"^\s*(\$ )?(clipjax|bash|sh|python3?|pip|pytest|sbatch|srun|gcloud) ", re.M)


def escaped(path):
    """What would not be run: code that says no language, and commands that call themselves text."""
    found = [f"{b.where}: indented code; fence it" for b in unfenced_of(path)]
    for block in blocks_of(path):
        if block.language not in LANGUAGES:
            found.append(f"{block.where}: language {block.language!r}; {', '.join(LANGUAGES)}")
        elif block.language == "text" and COMMAND.search(block.text):
            found.append(f"{block.where}: a command in a block of text")
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_no_block_escapes(path):
    assert escaped(path) == []


def test_what_escapes_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "A:\n\n    clipjax models\n\n```\nx\n```\n\n```text\nclipjax models\n```\n"
        "Run `clipjax eval --checkpoint a|b`, see `clipjax eval`.\n"
    )
    assert [line.partition(": ")[0] for line in escaped(page)] == [
        "page.md:3",
        "page.md:6",
        "page.md:10",
    ]
    assert [b.text for b in blocks_of(page) if b.line == 12] == ["clipjax eval --checkpoint a|b\n"]


def refused(blocks, folder, files):
    """`where: message` of each command that `clipjax` does not take."""
    commands = [
        (block.where, [files.get(word, word) for word in words])
        for block in blocks
        for words in clipjax_commands(block, folder)
    ]
    messages = parse([words for _, words in commands])
    return len(commands), [
        f"{where}: {' '.join(words)}: {message}"
        for (where, words), message in zip(commands, messages, strict=True)
        if message
    ]


def test_clipjax_takes_every_command_of_the_documents(tmp_path):
    every = [block for path in DOCUMENTS for block in blocks_of(path)]
    blocks = [block for block in every if block.language == "bash"]
    files = {block.file: str(tmp_path / Path(block.file).name) for block in every if block.file}
    for block in every:
        if block.file:
            Path(files[block.file]).write_text(block.text, encoding="utf-8")
    bad = Block(
        tmp_path / "bad.md",
        7,
        "bash",
        "clipjax trian --config configs/smoke.py\n"
        "clipjax eval --checkpoint a --zero_shott folder:x\n"
        "clipjax train --config configs/smoke.py:stepz=3 --workdir a\n"
        "bash launch/local.sh 2 --config configs/smoke.py --workdir a --config.batch_sise=1\n"
        "clipjax train --config configs/smoke.py --workdir a --config.batch_size=-1\n"
        "clipjax train --config configs/smoke.py --workdir a\n",
    )
    count, messages = refused([*blocks, bad], tmp_path, files)
    assert count >= 40
    ours = [m for m in messages if not m.startswith("bad.md")]
    assert ours == []
    words = ("trian", "zero_shott", "stepz", "batch_sise", "batch_size = -1")
    for word, message in zip(words, messages, strict=True):
        assert message.startswith("bad.md:7") and word in message
