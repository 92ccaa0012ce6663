"""What a step minimises: a loss over pairs, or an objective that sees more.

An objective is an object with

    needs = ("text_tokens",)   # what its outputs hold besides, of NEEDS
    __call__(outputs, batch, rng) -> (loss, metrics)

or a flax module of that call. Texts that it reads besides the model's are what a method
`other_texts() -> {key: (tokenizer, name of the caption)}` says; they stand in the batch under their
keys. The module's variables live beside the model's, under the name
`objective` of each collection: its parameters are parameters like all others, and any other
collection (a frozen teacher, running statistics) is kept in the train state and not optimised.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.array_types import Array
from clipjax.building import build, check_spec
from clipjax.losses.distillation import TextDistillation
from clipjax.partitioning import place
from clipjax.trees import flatten_with_names, map_with_names

OBJECTIVE = "objective"
"""The name that an objective's variables live under, in each collection."""
NEEDS = ("image_tokens", "text_tokens")
"""What the outputs hold on demand: `[batch, positions, width]` of each tower, before pooling."""
RUNTIME = ("pair_loss", "vocab_size", "dtype", "open_model")
"""What a constructor may take besides the fields of the config."""

Variables = Mapping[str, Mapping[str, Any]]


class PairObjective:
    """The loss over all pairs of a batch."""

    needs: tuple[str, ...] = ()

    def __init__(self, pair_loss: Callable[..., tuple[Array, dict[str, Array]]]) -> None:
        """Takes (image_embeds, text_embeds, logit_scale, logit_bias) -> (loss, metrics).

        The loss may be one that takes captions, too, see `make_loss`.
        """
        self.pair_loss = pair_loss
        self._takes_captions = getattr(pair_loss, "takes_captions", False)

    def __call__(self, outputs: Any, batch: Any, rng: Any) -> tuple[Array, dict[str, Array]]:
        """Loss and metrics of the embeddings in `outputs`; see `make_loss`."""
        del rng
        embeds = outputs.image_embeds, outputs.text_embeds
        captions = (batch["text"],) if self._takes_captions else ()
        return self.pair_loss(*embeds, outputs.logit_scale, outputs.logit_bias, *captions)


OBJECTIVES: dict[str, Any] = {"pair": PairObjective, "text_distillation": TextDistillation}


def check_objective(
    spec: Mapping[str, Any], *, path: str, plugins: Sequence[str] = ()
) -> type[Any] | Callable[..., Any]:
    """Checks an objective's spec as far as it can be known before it is built.

    Args:
        spec: `name`, a key of OBJECTIVES or `module:Name`, and the constructor's options.
        path: where it stands, for messages.
        plugins: modules that the name may import, see `clipjax.building.resolve`.

    Returns:
        The constructor.

    Raises:
        ValueError: an unknown name, an option that is not allowed, or no objective.
    """
    constructor = check_spec(spec, OBJECTIVES, path=path, plugins=plugins, runtime=RUNTIME)
    needs = getattr(constructor, "needs", None)
    if not inspect.isclass(constructor) or not isinstance(needs, tuple):
        raise ValueError(
            f"{path}.name = {spec['name']!r} is no objective: a class with `needs`, a tuple of "
            f"{', '.join(NEEDS)} or (), that is called with (outputs, batch, rng); a loss of pairs "
            "of one's own is named as the loss, not as the objective"
        )
    for need in needs:
        if need not in NEEDS:
            raise ValueError(
                f"{path}.name = {spec['name']!r} needs {need!r}; outputs can hold "
                f"{' and '.join(NEEDS)} besides the embeddings, the scale and the bias"
            )
    return constructor


def make_objective(
    spec: Mapping[str, Any], *, path: str, plugins: Sequence[str] = (), **runtime: Any
) -> Any:
    """Builds an objective of a spec that `check_objective` has passed.

    Args:
        spec: of `check_objective`, and so `path` and `plugins`.
        path: likewise.
        plugins: likewise.
        **runtime: `pair_loss`, of `make_loss`; `vocab_size`, of the texts; `dtype`, of the
            computation; `open_model`, of a path. A constructor gets those that it names.
    """
    return build(spec, OBJECTIVES, path=path, plugins=plugins, **runtime)


def other_texts(objective: Any) -> dict[str, tuple[Any, str]]:
    """What a batch holds for an objective besides: (tokenizer, name of the caption) by key."""
    return objective.other_texts() if hasattr(objective, "other_texts") else {}


def as_objective(loss: Any) -> Any:
    """A loss over pairs as an objective; an objective stays what it is."""
    return loss if hasattr(loss, "needs") else PairObjective(loss)


def init_objective(objective: Any, key: Array, outputs: Any, batch: Any) -> dict[str, Any]:
    """Draws the variables of an objective that is a flax module, with flax's boxes."""
    return dict(objective.init({"params": key, "dropout": key}, outputs, batch, key))


def check_no_variables(objective: Any, key: Array, outputs: Any, batch: Any) -> None:
    """Checks that an objective has no variables, where a train state holds none of it.

    Args:
        objective: a flax module, or an object without variables.
        key: typed PRNG key.
        outputs: of the model, as a step traces them, and so the batch.
        batch: likewise.

    Raises:
        ValueError: it has some.
    """
    if not hasattr(objective, "init"):
        return
    drawn = jax.eval_shape(functools.partial(init_objective, objective), key, outputs, batch)
    if drawn:
        raise ValueError(
            f"{type(objective).__name__} has variables ({', '.join(drawn)}), and the train state "
            "holds none of them: make it by create_train_state(variables, tx, "
            "objective=objective, apply_fn=apply_fn, batch=batch)"
        )


def apply_objective(
    objective: Any, variables: Variables, outputs: Any, batch: Any, rng: Array
) -> tuple[tuple[Array, dict[str, Array]], Variables]:
    """Calls an objective.

    Returns:
        ((loss, metrics), its collections but the parameters, after the call).
    """
    kept = [name for name in variables if name != "params"]
    if not hasattr(objective, "apply"):  # the variables are those of another stage's
        return objective(outputs, batch, rng), {name: variables[name] for name in kept}
    result, changed = objective.apply(
        variables, outputs, batch, rng, rngs={"dropout": rng}, mutable=kept
    )
    return result, {**{name: variables[name] for name in kept}, **changed}


def split_variables(variables: Variables) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separates the variables of a model from those of its objective.

    Args:
        variables: collection -> tree; the objective's part is under OBJECTIVE.

    Returns:
        (the model's, the objective's), each by collection; collections that one lacks are left out.
    """
    model, own = {}, {}
    for name, tree in variables.items():
        if OBJECTIVE not in tree:
            model[name] = tree
            continue
        own[name] = tree[OBJECTIVE]
        if rest := {key: value for key, value in tree.items() if key != OBJECTIVE}:
            model[name] = rest
    return model, own


def join_variables(model: Variables, own: Variables) -> dict[str, Any]:
    """The inverse of `split_variables`."""
    joined = dict(model)
    for name, tree in own.items():
        joined[name] = {**joined.get(name, {}), OBJECTIVE: tree}
    return joined


def is_of_objective(leaf: str) -> bool:
    """Whether a leaf of a train state, by its name, belongs to the objective.

    `params/objective/...`, `ema_params/objective/...`, `model_state/COLLECTION/objective/...`,
    `averages/NAME/objective/...`.
    """
    root, *names = leaf.split("/")
    return OBJECTIVE in (names[1:2] if root in ("model_state", "averages") else names[:1])


def load_collections(objective: Any, abstract: Variables) -> Variables:
    """Loads what an objective has in files, for a run that starts.

    An objective with a frozen teacher has a method `load_collections() -> {collection: tree}` of
    arrays; they replace those that its module draws.

    Args:
        objective: of `make_objective`.
        abstract: the objective's collections as shapes with shardings.

    Returns:
        The loaded collections, on the devices; {} for an objective that has none.

    Raises:
        ValueError: names a leaf that one of the two lacks, or whose shape differs.
    """
    if not hasattr(objective, "load_collections"):
        return {}
    loaded = objective.load_collections()
    declared = {name: tree for name, tree in abstract.items() if name in loaded}
    found, wanted = (dict(flatten_with_names(tree)) for tree in (loaded, declared))
    for name in sorted(found.keys() | wanted.keys()):
        shapes = [list(x[name].shape) if name in x else "absent" for x in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"load_collections gives {name} as {shapes[0]}, and the module "
                f"declares it as {shapes[1]}"
            )

    def put(name: str, leaf: Any) -> Any:
        value = np.asarray(found[name], leaf.dtype)
        # Where a user's jit traces it, the sharding is the jit's to say.
        return (
            jnp.asarray(value) if isinstance(leaf, jax.core.Tracer) else place(value, leaf.sharding)
        )

    return map_with_names(put, declared)
