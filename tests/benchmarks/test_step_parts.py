"""benchmarks/step_parts.py: each part of the step that it leaves out is gone from the program."""

import re
import subprocess
import sys

import pytest

from benchmarks.common import ROOT
from benchmarks.step_parts import PARTS


@pytest.mark.slow
def test_a_step_without_a_part_accesses_less():
    """The door, on a stand-in; what nothing but a device shows, its time, is not looked at."""
    command = [sys.executable, "benchmarks/step_parts.py", "--tiny", "--turns", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    added = dict(re.findall(r"^\| without (.+?) \| [\d.]+ \| (-?[\d.]+)% \|", done.stdout, re.M))
    assert list(added) == list(PARTS)
    for part in ("average (ema_decay)", "clipping (clip_norm)", "guard"):
        assert float(added[part]) > 0, done.stdout
