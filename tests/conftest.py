"""Eight simulated CPU devices for every test; shapes in annotations are checked."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from jaxtyping import install_import_hook

install_import_hook(["clipjax.layers", "clipjax.losses", "clipjax.metrics"], "beartype.beartype")
