"""Eight simulated CPU devices for every test, quick compilations; annotated shapes are checked."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Helpers of several folders, which are no packages.
sys.path.insert(0, str(Path(__file__).parent / "helpers"))
sys.path.append(str(Path(__file__).parents[1]))  # the package benchmarks

from inherited_signals import hear_signals
from xla_flags import COUNT, QUICK, with_devices, with_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if COUNT not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = with_devices(8)

# What one test compiled, the others load: those of the other worker and commands in processes of
# their own, too. The folder is this session's, so that nothing comes from an older tree.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="clipjax-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# A test sees how a run ended; those of the launchers let them start it again.
os.environ["CLIPJAX_RESTARTS"] = "0"

import jax  # after the flags, which it reads once
import pytest
from jaxtyping import install_import_hook

install_import_hook(["clipjax.layers", "clipjax.losses", "clipjax.metrics"], "beartype.beartype")

# What traces programs makes many objects that live: looking through all of them as often as Python
# does by itself is a tenth of the suite's time.
gc.set_threshold(100_000, 20, 10)

# Lanes that compile what users run.
OPTIMISED = ("slow", "nightly", "tpu", "gpu")


def pytest_configure(config):
    """Elsewhere compiling is most of the time, and what it optimises runs a few times.

    Commands in processes of their own inherit it: runs that are compared are compiled alike.
    """
    hear_signals()
    quick = config.getoption("markexpr") not in OPTIMISED
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quick))
    if quick:  # before the first device
        os.environ["XLA_FLAGS"] = with_flags(*QUICK)
    jax.config.update("jax_disable_most_optimizations", quick)


def pytest_collection_modifyitems(items):
    """Those that start processes come first: at the end one worker would wait for the other's."""
    first = {"integration", "faults", "processes"}
    items.sort(key=lambda item: not first & {*item.path.parts})


@pytest.fixture
def command():
    """Runs `clipjax VERB ...` in this process; returns exit code, output and errors."""
    from commands import in_this_process

    with in_this_process() as run:
        yield run


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("CLIPJAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
