"""The site of the documents builds, and what mkdocs warns of is an error."""

import re
import shutil
import subprocess
import sys

import pytest
from blocks import DOCUMENTS, ROOT

import clipjax

pytestmark = pytest.mark.docs


def build(folder, site):
    for module in ("material", "mkdocstrings"):
        pytest.importorskip(module, reason="needs the [docs] extra")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_site_builds_without_a_warning(tmp_path):
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "data" / "index.html").is_file()
    reference = (tmp_path / "site" / "reference" / "index.html").read_text(encoding="utf-8")
    names = set(re.findall(r'id="clipjax\.(\w+)"', reference))
    assert names == {*clipjax.__all__} - {"__version__"}


def test_a_link_to_nothing_is_seen(tmp_path):
    shutil.copy2(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "clipjax").symlink_to(ROOT / "clipjax")
    for page in DOCUMENTS:
        if page.parent == ROOT:
            shutil.copy2(page, tmp_path)
    with open(tmp_path / "docs" / "data.md", "a", encoding="utf-8") as page:
        page.write("\n[nothing](nothing.md)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0 and "nothing.md" in done.stderr
