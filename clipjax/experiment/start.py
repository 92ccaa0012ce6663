"""The parameters that a run starts from: config.init."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from clipjax.checkpoint import (
    LoadReport,
    check_contract,
    load_model_state,
    load_params,
    load_pretrained,
    load_tokenizer,
)
from clipjax.experiment.resolving import Resolved
from clipjax.experiment.vocabulary import carry_over
from clipjax.losses.objectives import OBJECTIVE, join_variables, split_variables
from clipjax.models.layers_layout import stack_layers
from clipjax.models.lora import LORA
from clipjax.ranges import named
from clipjax.tokenizers import make_tokenizer

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


# What may differ besides where a new vocabulary gets the old one's embeddings.
OF_THE_VOCABULARY = ("tokenizer", "model.tokenizer", "model.text.vocab_size", "model.text.eot_id")
_TABLE = ("text_encoder", "token_embedding")


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
    carries = init.vocabulary == "carried"
    free = (*FREE_IN_FINE_TUNING, *(OF_THE_VOCABULARY if carries else ()))
    check_contract(found, contract, free=free, override=init.override)
    if carries:
        _check_pooling(resolved.spec, contract)
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
        if carries:
            loaded = _with_vocabulary(loaded, resolved, state.params)
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


def _check_pooling(spec: Mapping[str, Any], contract: Mapping[str, Any]) -> None:
    """Refuses a tokenizer whose end token the text tower would not find."""
    end, size = contract["tokenizer"].get("end_id"), contract["tokenizer"].get("vocab_size")
    pooling, said = (spec["text"].get(field) for field in ("pooling", "eot_id"))
    if pooling not in ("eot", "mean") or end is None or not size or spec["text"]["name"] == "bert":
        return
    if end != (size - 1 if said is None else said):
        raise ValueError(
            f"config.model.text.pooling = {pooling!r} ends a text at "
            f"{'its largest id' if said is None else f'eot_id = {said}'}, and the end token of "
            f"config.model.tokenizer is {end} of {size}: set config.model.text.eot_id = {end}"
        )


def _with_vocabulary(
    loaded: Mapping[str, Any], resolved: Resolved, params: Mapping[str, Any]
) -> dict[str, Any]:
    """The parameters of a checkpoint with the token embeddings of the model's own tokenizer."""
    assert resolved.init is not None
    tower, table = _TABLE
    if table not in params.get(tower, {}) or table not in loaded.get(tower, {}):
        raise ValueError(
            f"config.init.vocabulary = 'carried': there is no {tower}/{table}, which is what is "
            "carried over; a text tower of your own keeps its embeddings elsewhere"
        )
    plugins, spec = resolved.plugins, resolved.spec
    new = make_tokenizer(
        spec["tokenizer"],
        context_length=spec["text"]["context_length"],
        path="config.model.tokenizer",
        plugins=plugins,
    )
    old = load_tokenizer(resolved.init.step_dir, plugins=plugins)
    rows, seed = params[tower][table].shape[0], resolved.settings.seed
    found = carry_over(np.asarray(loaded[tower][table]), old, new, rows, seed)
    logging.info("%s", found)
    return {**loaded, tower: {**loaded[tower], table: found.table}}


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
