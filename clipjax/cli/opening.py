"""Flags of the verbs that open checkpoints: which code of the user's own they may name."""

import os

from absl import flags
from ml_collections import ConfigDict

from clipjax.building import check_plugins
from clipjax.cli.importing import make_importable

_PLUGIN = flags.DEFINE_multi_string(
    "plugin",
    [],
    "Module of your own that the checkpoint may name, my_lab.towers; several are separated by "
    "commas, or the flag is given again.",
)


def plugins() -> tuple[str, ...]:
    """The modules of --plugin; the folder that the command stands in becomes importable for them.

    Raises:
        ValueError: one is no module, or Python's own.
    """
    names = [name.strip() for given in _PLUGIN.value for name in given.split(",")]
    if names:
        make_importable([os.getcwd()])
    return check_plugins(names)


def add_plugins(config: ConfigDict) -> None:
    """Adds --plugin to config.plugins."""
    if names := plugins():
        with config.unlocked():
            config.plugins = (*config.get("plugins", ()), *names)
