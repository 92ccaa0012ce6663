"""The examples of CONTRIBUTING.md fit this tree, and their own tests pass in a copy of it."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from blocks import ROOT, blocks_of
from counting import HANGS_S

DIFFS = [b for b in blocks_of(ROOT / "CONTRIBUTING.md") if b.language == "diff"]


def apply(text, folder, *flags):
    """`git apply` of a diff; returns what it says against it."""
    command = ["git", "apply", *flags, "-"]
    done = subprocess.run(command, cwd=folder, input=text, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("block", DIFFS, ids=lambda b: re.search(r"\+class (\w+)|$", b.text)[1])
def test_a_diff_fits_this_tree(block):
    assert apply(block.text, ROOT, "--check") == ""
    assert re.search(r"^\+\+\+ b/tests/\S+/test_\w+\.py$", block.text, re.M)


def test_a_diff_of_another_tree_is_seen():
    text = DIFFS[0].text.replace("VisionTransformer,", "OtherTransformer,")
    assert "does not apply" in apply(text, ROOT, "--check")


@pytest.mark.docs
def test_the_diffs_do_what_they_say(tmp_path):
    for name in ("clipjax", "configs", "docs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    for block in DIFFS:
        assert apply(block.text, tmp_path) == ""
    files = re.findall(r"^\+\+\+ b/(\S+)$", "".join(block.text for block in DIFFS), re.M)
    tests = [name for name in files if "/test_" in name]
    assert len(tests) == len(DIFFS) == 4
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": "-p no:cacheprovider"}
    python = [sys.executable, "-m"]
    for command in (
        ["ruff", "check", *files],
        ["ruff", "format", "--check", *files],
        ["pytest", "-q", "-n", "0", "tests/test_layering.py", *tests],
    ):
        done = subprocess.run(
            [*python, *command],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=HANGS_S,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
