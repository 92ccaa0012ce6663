"""How close clipjax is to the reference code: float32, highest precision, on the CPU.

    python benchmarks/parity.py [--family open_clip] [CASE ...]

prints one row a case: the largest difference of the normalised embeddings, of the logits, of the
text tower's hidden states after each layer, and of the gradient of the loss to each parameter,
there relative to the largest element of that parameter's gradient. Both sides compute in this
process, which needs the [interop] extra. A family is a module with a table CASES of functions that
run the reference and return a `Reference`.
"""

import argparse
import dataclasses
import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clipjax.interop.leaves import Leaf
from clipjax.interop.tensors import of_array
from clipjax.interop.weights import convert
from clipjax.losses import clip_loss, siglip_loss
from clipjax.models import build_model
from clipjax.models.layers_layout import stack_layers
from clipjax.trees import flatten_with_names, unflatten_names

FAMILIES = ("open_clip", "hugging_face")
COLUMNS = ("image", "text", "logits", "text layers", "gradient")


@dataclasses.dataclass
class Reference:
    """What the reference code computed, and what it computed it with.

    Attributes:
        spec: of the same model here.
        leaves: the family's table of that spec.
        tensors: the reference's weights by its names.
        images: [batch, height, width, 3], normalised.
        tokens: [batch, length].
        image_embeds: [batch, embed], of length 1.
        text_embeds: likewise.
        logits: [batch, batch], images by texts.
        text_hidden: [layers, batch, length, width], or None.
        gradients: of the contrastive loss, by the reference's names; or None.
        bars: the largest difference allowed, by column.
        ignored: whether a tensor of that name is no parameter.
        attended: [batch, length], where the hidden states mean something; None: everywhere.
    """

    spec: dict[str, Any]
    leaves: Sequence[Leaf]
    tensors: Mapping[str, np.ndarray]
    images: np.ndarray
    tokens: np.ndarray
    image_embeds: np.ndarray
    text_embeds: np.ndarray
    logits: np.ndarray
    text_hidden: np.ndarray | None
    gradients: Mapping[str, np.ndarray] | None
    bars: Mapping[str, float]
    ignored: Callable[[str], bool] = lambda name: False
    attended: np.ndarray | None = None


def variables_of(reference: Reference) -> dict[str, Any]:
    """Our variables, converted from the reference's weights."""
    tensors = {name: of_array(x) for name, x in reference.tensors.items()}
    leaves = convert(reference.leaves, tensors, reference.spec, ignored=reference.ignored)
    parts: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, tensor in leaves.items():
        root = "batch_stats" if name.startswith("batch_stats/") else "params"
        parts[root][name.removeprefix("batch_stats/")] = jnp.asarray(tensor.read())
    return {root: stack_layers(unflatten_names(part)) for root, part in parts.items() if part}


def measure(reference: Reference) -> dict[str, float]:
    """The largest differences, by column."""
    with jax.default_matmul_precision("highest"):
        variables = variables_of(reference)
        found = _outputs(reference, variables)
        errors = {
            "image": np.abs(found["image"] - reference.image_embeds).max(),
            "text": np.abs(found["text"] - reference.text_embeds).max(),
            "logits": np.abs(found["logits"] - reference.logits).max(),
        }
        if reference.text_hidden is not None:
            difference = np.abs(found["hidden"] - reference.text_hidden)
            if reference.attended is not None:
                difference *= reference.attended[None, :, :, None]
            errors["text layers"] = difference.max()
        if reference.gradients is not None:
            errors["gradient"] = max(gradient_errors(reference, variables).values())
    return {name: float(error) for name, error in errors.items()}


def _outputs(reference: Reference, variables: Any) -> dict[str, np.ndarray]:
    model, spec = build_model(reference.spec), reference.spec

    @jax.jit
    def run(variables: Any, images: jax.Array, tokens: jax.Array) -> dict[str, jax.Array]:
        out = model.apply(variables, images, tokens)
        text = model.apply(variables, tokens, keep_hidden=True, method="text_features")
        logits = jnp.exp(out.logit_scale) * out.image_embeds @ out.text_embeds.T
        if spec["logit_bias"] is not None:
            logits += out.logit_bias
        found = {"image": out.image_embeds, "text": out.text_embeds, "logits": logits}
        return {**found, "hidden": text.hidden}

    return jax.device_get(run(variables, reference.images, reference.tokens))


def gradient_errors(reference: Reference, variables: Any) -> dict[str, float]:
    """max |difference| / max |gradient| of each of our leaves; batch statistics are the batch's."""
    model = build_model(reference.spec)
    params = variables["params"]
    rest = {name: part for name, part in variables.items() if name != "params"}

    @jax.jit
    @jax.grad
    def gradient(params: Any) -> jax.Array:
        out = model.apply(
            {"params": params, **rest},
            reference.images,
            reference.tokens,
            train=bool(rest),
            mutable=["batch_stats"] if rest else False,
        )
        out = out[0] if rest else out
        return (clip_loss if out.logit_bias is None else siglip_loss)(*out)

    wanted = {}
    for entry in reference.leaves:
        if not entry.name.startswith("batch_stats/"):
            theirs = [reference.gradients[name] for name in entry.theirs]
            wanted[entry.name] = entry.to_ours(theirs)
    found = jax.device_get(gradient(params))
    return {
        name: float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        for (name, ours), (_, theirs) in zip(
            flatten_with_names(found),
            flatten_with_names(stack_layers(unflatten_names(wanted))),
            strict=True,
        )
    }


def misses(reference: Reference, errors: Mapping[str, float]) -> dict[str, float]:
    """The columns that are above their bar, or that are no number."""
    return {name: x for name, x in errors.items() if not x <= reference.bars[name]}


def cases_of(family: str) -> dict[str, Callable[[], Reference]]:
    """The table of a family's module."""
    return importlib.import_module(f"parity_{family}").CASES


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", help="names; all of the families by default")
    parser.add_argument("--family", choices=FAMILIES, action="append")
    arguments = parser.parse_args()
    print(f"| case | {' | '.join(COLUMNS)} | seconds |")
    print("|---|" + "---|" * (len(COLUMNS) + 1))
    failed = []
    for family in arguments.family or FAMILIES:
        for name, run in cases_of(family).items():
            if arguments.cases and name not in arguments.cases:
                continue
            start = time.perf_counter()
            reference = run()
            errors = measure(reference)
            cells = [f"{errors[c]:.1e}" if c in errors else "" for c in COLUMNS]
            seconds = time.perf_counter() - start
            print(f"| `{name}` | {' | '.join(cells)} | {seconds:.0f} |", flush=True)
            failed += [f"{name}: {missed}" for missed in [misses(reference, errors)] if missed]
            jax.clear_caches()
    if failed:
        raise SystemExit("above the bar: " + "; ".join(failed))


if __name__ == "__main__":
    main()
