"""Eight simulated CPU devices for every test; shapes in annotations are checked."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FLAG = "--xla_force_host_platform_device_count"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}=8"

from jaxtyping import install_import_hook  # noqa: E402  after the flags, which jax reads once

install_import_hook(["clipjax.layers", "clipjax.losses", "clipjax.metrics"], "beartype.beartype")
