import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiling is most of these tests' time, and what it optimises runs once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
