import gzip
import sys
from pathlib import Path

import pytest

# The helpers are shared by the modules of this folder, which is no package.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]
GOLDEN = HERE.parent / "golden" / "tokenizers"


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """Unpacks a golden vocabulary: `vocabulary("c4.model")` is a path."""
    folder = tmp_path_factory.mktemp("vocabularies")

    def unpack(name):
        path = folder / name
        if not path.exists():
            path.write_bytes(gzip.decompress((GOLDEN / f"{name}.gz").read_bytes()))
        return str(path)

    return unpack
