import sys
import warnings
import zipfile
from pathlib import Path

import pytest

# The helpers are shared by the modules of these folders, which are no packages.
HERE = Path(__file__).parent
TESTS = HERE.parent
FOLDERS = (HERE, TESTS / "models", TESTS / "golden" / "models", TESTS / "golden" / "interop")
sys.path[:0] = map(str, FOLDERS)


@pytest.fixture
def zip_of(tmp_path):
    """Writes an archive of a dict or of pairs: name or ZipInfo, bytes."""

    def write(members, packed=False, name="x.zip"):
        path = tmp_path / name
        kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w", kind) as archive:
            warnings.simplefilter("ignore")  # of duplicate names
            for member, data in members.items() if isinstance(members, dict) else members:
                archive.writestr(member, data)
        return path

    return write
