"""Accuracy by group: regions, incomes, hospitals, as the source says them of its examples."""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.data.classes.numbers import LabelError
from clipjax.encoding.batches import RowLayout
from clipjax.partitioning import replicated
from clipjax.processes.distributed import gather


class Groups:
    """Collects the groups of the examples and whether they were hits, and counts by group.

    Args:
        columns: names of what the examples are grouped by.
        ignored: groups, `region=Other`, that the worst is not one of.
    """

    def __init__(self, columns: Sequence[str], ignored: Collection[str]):
        self.columns, self._ignored = tuple(columns), frozenset(ignored)
        self._rows: list[tuple[list[Mapping[str, str] | None], jax.Array]] = []

    def check(self, example: Mapping[str, Any]) -> None:
        """Refuses an example that does not say its groups."""
        found = example.get("groups") or {}
        if missing := [name for name in self.columns if not str(found.get(name, "")).strip()]:
            raise LabelError(
                f"{example['key']} says no {missing[0]}: every picture needs one, to be counted by"
            )

    def add(self, examples: Sequence[Any], mask: np.ndarray, hits: jax.Array) -> None:
        """Notes one batch.

        Args:
            examples, mask: of this process's rows.
            hits: `[batch, 2]` of all rows, see `score`.
        """
        if not self.columns:
            return
        own = zip(examples, mask, strict=True)
        self._rows.append(([e["groups"] if real else None for e, real in own], hits))

    def metrics(self, layout: RowLayout) -> tuple[dict[str, float], dict[str, Any]]:
        """Counts by group; a collective.

        Returns:
            `worst_<column>_top1` and `..._top5`, over the groups that are not ignored; and
            column -> group -> examples, top1, top5.

        Raises:
            ValueError: an ignored group that is not there, or no other is.
        """
        found, tables = {}, {}
        for column in self.columns:
            mine = {str(row[column]) for rows, _ in self._rows for row in rows if row is not None}
            groups = sorted({group for theirs in gather(sorted(mine)) for group in theirs})
            counts = self._count(column, groups, layout)
            tables[column] = {
                group: {"examples": int(n), "top1": float(h1 / n), "top5": float(h5 / n)}
                for group, (n, h1, h5) in zip(groups, counts, strict=True)
            }
            compete = [g for g in groups if f"{column}={g}" not in self._ignored]
            if not compete:
                raise ValueError(f"ignored_groups leaves none of {column}: {', '.join(groups)}")
            for metric in ("top1", "top5"):
                worst = min(tables[column][group][metric] for group in compete)
                found[f"worst_{column}_{metric}"] = worst
        known = {f"{column}={group}" for column, groups in tables.items() for group in groups}
        if unknown := sorted(self._ignored - known):
            raise ValueError(
                f"ignored_groups has {unknown[0]!r}, which is none of {', '.join(sorted(known))}"
            )
        return found, tables

    def _count(self, column: str, groups: Sequence[str], layout: RowLayout) -> np.ndarray:
        """Counts examples and hits: `[groups, 3]`."""
        places = {group: place for place, group in enumerate(groups)}
        counts = np.zeros((len(groups), 3), np.int64)
        for rows, hits in self._rows:
            own = [-1 if row is None else places[str(row[column])] for row in rows]
            # Laid over the devices as the hits are, so that each row counts once.
            ids = layout.to_device(np.array(own, np.int32))
            counts += np.asarray(
                jax.device_get(_add(ids, hits, num_groups=len(groups), mesh=layout.mesh))
            )
        return counts


@functools.partial(jax.jit, static_argnames=("num_groups", "mesh"))
def _add(ids: jax.Array, hits: jax.Array, *, num_groups: int, mesh: Mesh) -> jax.Array:
    rows = jnp.concatenate([jnp.ones_like(hits[:, :1]), hits], axis=1).astype(jnp.int32)
    # A row of no group is summed into one that does not exist.
    places = jnp.where(ids < 0, num_groups, ids)
    sums = jax.ops.segment_sum(rows, places, num_segments=num_groups + 1)[:-1]
    return jax.lax.with_sharding_constraint(sums, replicated(mesh))
