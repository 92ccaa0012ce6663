"""Flags of the verbs that open checkpoints: what a checkpoint may not reach for by itself."""

import os

from absl import flags
from ml_collections import ConfigDict

from clipjax.building import check_plugins
from clipjax.importing import make_importable

_PLUGIN = flags.DEFINE_multi_string(
    "plugin",
    [],
    "Module of your own that the checkpoint may name, my_lab.towers; several are separated by "
    "commas, or the flag is given again.",
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "File of the tokenizer's vocabulary, where the weights come without it."
)


def plugins() -> tuple[str, ...]:
    """The modules of --plugin; the folder of the command becomes importable for them."""
    names = [name.strip() for given in _PLUGIN.value for name in given.split(",")]
    if names:
        make_importable([os.getcwd()])
    return check_plugins(names, path="--plugin")


def tokenizer() -> str | None:
    """The file of --tokenizer."""
    return _TOKENIZER.value


def put_into(config: ConfigDict) -> None:
    """Adds --plugin to config.plugins, and makes --tokenizer config.model.tokenizer.model."""
    with config.unlocked():
        if names := plugins():
            config.plugins = (*config.get("plugins", ()), *names)
        if tokenizer() is not None:
            options = config.model.get("tokenizer") or {}
            config.model.tokenizer = ConfigDict({**options, "model": tokenizer()})
