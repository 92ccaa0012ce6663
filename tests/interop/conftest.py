import sys
from pathlib import Path

import jax
import pytest

# The helpers are shared by the modules of these folders, which are no packages.
HERE = Path(__file__).parent
TESTS = HERE.parent
sys.path[:0] = [str(HERE), str(TESTS / "models"), str(TESTS / "golden" / "models")]


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiling is most of these tests' time, and what it optimises runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
