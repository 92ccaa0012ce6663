"""The parameters that a run starts from: config.init."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging

from clipjax.checkpoint import (
    LoadReport,
    check_contract,
    load_model_state,
    load_params,
    load_pretrained,
)
from clipjax.experiment.resolving import Resolved
from clipjax.losses.objectives import OBJECTIVE, join_variables, split_variables
from clipjax.models.layers_layout import stack_layers
from clipjax.models.lora import LORA
from clipjax.ranges import named

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
    resolved: Resolved, contract: Mapping[str, Any]
) -> Callable[[Any], tuple[Any, LoadReport]] | None:
    """Compares the checkpoint of config.init with the model now; returns what loads it later."""
    if resolved.init is None:
        return None
    init = resolved.settings.init
    step_dir = resolved.init.step_dir
    with named("config.init.checkpoint"):
        found = resolved.init.manifest.contract
    if found["tokenizer"].get("sha256", "") is None:  # it came without one: none to compare with
        found = {**found, "tokenizer": contract["tokenizer"]}
    check_contract(found, contract, free=FREE_IN_FINE_TUNING, override=init.override)
    patterns: dict[str, Any] = {
        "rename": init.rename,
        "drop": init.drop,
        "initialise": init.initialise,
    }

    def load_init(state: Any) -> tuple[Any, LoadReport]:
        logging.info("starting from the parameters of %s", step_dir)
        # On the host: what was read lies on one device, and the mesh may hold others.
        with_objective = OBJECTIVE in state.params
        loaded = stack_layers(jax.device_get(load_params(step_dir, objective=with_objective)))
        own_params = {name: tree for name, tree in state.params.items() if name != LORA}
        params, report = load_pretrained(own_params, loaded, **patterns)
        state = state.replace(params={**state.params, **params})
        statistics = load_model_state(step_dir)
        own, of_objective = split_variables(state.model_state)
        if own and statistics:
            own, more = _load_statistics(own, statistics, patterns)
            model_state = join_variables(own, of_objective)
            state, report = state.replace(model_state=model_state), report.joined(more)
        return state, report

    return load_init


def _load_statistics(
    model_state: Mapping[str, Any], loaded: Mapping[str, Any], patterns: Mapping[str, Any]
) -> tuple[dict[str, Any], LoadReport]:
    """Loads running statistics by the rules of the parameters beside them.

    A rule that names parameters only, such as those of a projection, matches none of them.
    """
    (kind, fresh), *others = model_state.items()
    if others or kind not in loaded:
        raise ValueError(f"the model keeps {sorted(model_state)}, the checkpoint {sorted(loaded)}")
    result, report = load_pretrained(fresh, loaded[kind], **patterns, strict=False)
    return {kind: result}, report
