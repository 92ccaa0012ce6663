import sys
from pathlib import Path

import pytest

# The helpers are shared by the modules of these folders, which are no packages.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "images")]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("CLIPJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
