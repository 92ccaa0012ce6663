"""The report that a run leaves, through the command."""

import re
from pathlib import Path

import pytest

SMOKE = Path(__file__).parents[2] / "configs" / "smoke.py"
WITH_RETRIEVAL = """

_smoke = get_config


def get_config(arg=None):
    config = _smoke(arg)
    config.evals.retrieval = {"name": "retrieval", "source": "synthetic:24"}
    return config
"""


@pytest.mark.slow  # the page: tests/report/test_page.py
def test_a_run_with_a_retrieval_leaves_pictures_of_both_kinds(clipjax, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(SMOKE.read_text(encoding="utf-8") + WITH_RETRIEVAL, encoding="utf-8")
    workdir = tmp_path / "run"
    clipjax("train", "--config", config, "--workdir", workdir, "--config.total_steps=9")
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert "Answers on synthetic_128" in page
    assert len(re.findall('<article class="find card', page)) == 12
    assert "with the best of 24 evenly spaced pictures" in page
