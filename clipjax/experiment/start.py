"""The parameters that a run starts from: config.init."""

from collections.abc import Callable, Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from clipjax.checkpoint import (
    LoadReport,
    check_contract,
    has_key,
    load_params,
    load_pretrained,
    read_manifest,
    resolve_checkpoint,
)
from clipjax.config import to_plain
from clipjax.models.layers_layout import stack_layers, unstack_layers

# Parts of the contract that a fine-tuning may change without a word: names, rates of training, and
# the sizes that position embeddings are resized to.
FREE_IN_FINE_TUNING = (
    "model.name",
    "model.source",
    "model.image_size",
    "model.image.patch_dropout",
    "model.image.dropout",
    "model.text.dropout",
    "model.text.context_length",
    "tokenizer.context_length",
)


def make_load_init(
    config: ConfigDict, contract: Mapping[str, Any]
) -> Callable[[Any], tuple[Any, LoadReport]] | None:
    """Checks config.init against the model now; returns what loads it later."""
    init = config.init
    if not init.checkpoint:
        return None
    step_dir = resolve_checkpoint(init.checkpoint)
    check_contract(
        read_manifest(step_dir).contract,
        contract,
        override=[
            *(key for key in FREE_IN_FINE_TUNING if has_key(contract, key)),
            *to_plain(init.override),
        ],
    )
    to_layout = stack_layers if config.scan_layers else unstack_layers

    def load_init(params: Any) -> tuple[Any, LoadReport]:
        logging.info("starting from the parameters of %s", step_dir)
        loaded = to_layout(load_params(step_dir))
        return load_pretrained(
            params,
            loaded,
            rename=to_plain(init.rename),
            drop=to_plain(init.drop),
            initialise=to_plain(init.initialise),
        )

    return load_init
