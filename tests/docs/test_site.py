"""The site of the documents builds, and what mkdocs warns of is an error."""

import shutil
import subprocess
import sys

import pytest
from blocks import ROOT

pytestmark = pytest.mark.docs


def build(folder, site):
    pytest.importorskip("mkdocs", reason="needs the [docs] extra")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_site_builds_without_a_warning(tmp_path):
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "data" / "index.html").is_file()


def test_a_link_to_nothing_is_seen(tmp_path):
    shutil.copy2(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with open(tmp_path / "docs" / "data.md", "a", encoding="utf-8") as page:
        page.write("\n[nothing](nothing.md)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0 and "nothing.md" in done.stderr
