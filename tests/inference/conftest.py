import sys
from pathlib import Path

import jax
import pytest

# The golden arrays of the models, and what reads them.
TESTS = Path(__file__).parent.parent
sys.path[:0] = [str(TESTS / "models"), str(TESTS / "golden" / "models")]


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiling is most of these tests' time, and what it optimises runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
