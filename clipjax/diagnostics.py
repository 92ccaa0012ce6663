"""What is worth watching of a step besides its loss; computed at logging steps, by config.

Of each group of parameters the root mean squares of gradient, value and update; of both towers the
norms before normalising, the participation ratio and the uniformity of the embeddings.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from clipjax.trees import flatten_with_names

ROWS = 1024  # of the batch, whose embeddings are looked at
LOWEST_RATIO = 2.0
AT_CHANCE = 0.01  # part of ln B
NORMS = "{}_norms"  # what a model sows of a tower, into INTERMEDIATES
INTERMEDIATES = "intermediates"
_KINDS = (
    "grad_rms", "param_rms", "update_rms", "participation_ratio", "uniformity", "embedding_norm",
)  # fmt: skip


def only_of_here(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a step's metrics that are made here."""
    return {name: value for name, value in metrics.items() if name.partition("/")[0] in _KINDS}


def group_of(name: str) -> str:
    """The group of a parameter: embeddings, image, text, or heads."""
    if "embedding" in name or "/patch" in name:
        return "embeddings"
    tower = next((t for t in ("image", "text") if name.startswith(f"{t}_encoder/")), None)
    return tower or "heads"


def rms_by_group(name: str, tree: Any) -> dict[str, jax.Array]:
    """`name/group` -> root mean square of the numbers of a tree like the parameters', `[]`."""
    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for path, leaf in flatten_with_names(tree):
        group = f"{name}/{group_of(path)}"
        squares = jnp.sum(jnp.square(leaf.astype(jnp.float32)))
        sums[group] = sums.get(group, 0.0) + squares
        counts[group] = counts.get(group, 0) + leaf.size
    return {group: jnp.sqrt(total / counts[group]) for group, total in sums.items()}


def participation_ratio(embeds: jax.Array) -> jax.Array:
    """(sum of l)^2 / sum of l^2 over the eigenvalues l of the covariance: of 1 to `embed`.

    Args:
        embeds: [rows, embed].

    Returns:
        [] float32; 0 where all rows are the same.
    """
    centred = embeds.astype(jnp.float32) - jnp.mean(embeds, axis=0, dtype=jnp.float32)
    centred = centred / jnp.maximum(jnp.sqrt(jnp.mean(centred**2)), 1e-20)
    covariance = jnp.matmul(centred.T, centred, precision="highest") / len(embeds)
    squares = jnp.sum(covariance**2)
    return jnp.where(squares > 0, jnp.trace(covariance) ** 2 / jnp.maximum(squares, 1e-30), 0.0)


def uniformity(embeds: jax.Array) -> jax.Array:
    """ln of the mean of exp(-2 |x - y|^2) over the pairs of two rows (arXiv:2005.10242).

    Args:
        embeds: [rows, embed], of length 1.

    Returns:
        [] float32: 0 where all rows are the same, and the lower, the more evenly they lie.
    """
    embeds = embeds.astype(jnp.float32)
    rows = len(embeds)
    squares = 2 - 2 * jnp.matmul(embeds, embeds.T, precision="highest")
    apart = jnp.where(jnp.eye(rows, dtype=bool), 0.0, jnp.exp(-2 * jnp.maximum(squares, 0.0)))
    return jnp.log(jnp.sum(apart) / max(rows * (rows - 1), 1))


def of_embeddings(embeds: Mapping[str, jax.Array], norms: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of both towers: `image` and `text` -> [rows, embed], and what they have sown."""
    metrics = {}
    for tower, rows in embeds.items():
        metrics[f"participation_ratio/{tower}"] = participation_ratio(rows)
        metrics[f"uniformity/{tower}"] = uniformity(rows)
        if NORMS.format(tower) in norms:
            (sown,) = norms[NORMS.format(tower)]
            metrics[f"embedding_norm/{tower}"] = jnp.mean(sown)
    return metrics


class CollapseAlarm:
    """Warns where the embeddings collapse: once each time that it begins.

    Args:
        steps: for so many has the loss to be there.
    """

    def __init__(self, *, steps: int) -> None:
        self._steps = steps
        self._since: int | None = None  # step that the loss is at chance from
        self._rings = False

    def see(self, step: int, metrics: Mapping[str, float], batch_size: int | None) -> bool:
        """Looks at a logging step.

        Args:
            step: finished steps.
            metrics: of it.
            batch_size: whose logarithm is the loss of pairs that are not told apart; None where the
                loss is not over a softmax.

        Returns:
            Whether the embeddings have collapsed.
        """
        loss, why = metrics["loss"], ""
        chance = math.log(batch_size) if batch_size and batch_size > 1 else None
        is_chance = chance is not None and abs(loss - chance) <= AT_CHANCE * chance
        self._since = (step if self._since is None else self._since) if is_chance else None
        if self._since is not None and step - self._since >= self._steps:
            why = f"the loss {loss:.4f} is within 1 % of ln(batch size) since step {self._since}"
        for tower in ("image", "text"):
            ratio = metrics.get(f"participation_ratio/{tower}", math.inf)
            if ratio < LOWEST_RATIO:
                why = f"the {tower} embeddings have a participation ratio of {ratio:.2f}"
        if why and not self._rings:
            logging.warning("step %d: the embeddings may have collapsed: %s", step, why)
        self._rings = bool(why)
        return self._rings
