import pytest
from embedding import checkpoint, embed, index, pictures

__all__ = ["checkpoint", "index", "pictures"]  # fixtures


@pytest.fixture
def embed_here(command, checkpoint, pictures):
    """`clipjax embed` of the pictures to a folder."""

    def run(out, *flags, spec=None):
        return embed(command, checkpoint, spec or f"folder:{pictures}", out, *flags)

    return run
