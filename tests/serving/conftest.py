import pytest
from embedding import checkpoint, index, pictures
from serving import serving

__all__ = ["checkpoint", "index", "pictures"]  # fixtures


@pytest.fixture(scope="session")
def server(checkpoint, index):
    """The model and its index, served."""
    with serving(index=index) as started:
        yield started
