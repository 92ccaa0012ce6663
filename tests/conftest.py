"""Eight simulated CPU devices for every test; shapes in annotations are checked."""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8"

# Helpers of several folders, which are no packages.
sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from jaxtyping import install_import_hook  # noqa: E402  after the flags, which jax reads once

install_import_hook(["clipjax.layers", "clipjax.losses", "clipjax.metrics"], "beartype.beartype")
