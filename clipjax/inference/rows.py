"""Rows of one's own through a model: read, padded, in batches of few sizes."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clipjax.array_types import Patches, PyTree
from clipjax.data.images.naflex import PatchPreprocess
from clipjax.data.images.preprocess import Preprocess
from clipjax.data.storage.files import local_path
from clipjax.encoding.batches import RowLayout, run_batches
from clipjax.inference.arguments import ImageLike
from clipjax.partitioning import num_batch_shards

# (variables, rows on the mesh) -> one result a row
RunFn = Callable[[PyTree, PyTree], jax.Array]


def run_rows(
    run: RunFn,
    variables: PyTree,
    items: Sequence[Any],
    read: Callable[[Any], PyTree],
    *,
    blank: PyTree,
    mesh: Mesh,
    batch_size: int,
    as_jax: bool,
) -> Any:
    """Runs a compiled function over the rows that `read` makes of n items: results `[n, ...]`.

    `blank` is a row, of which the shapes are read where there is no item.
    """
    if not items:
        shards = num_batch_shards(mesh)
        rows = jax.tree.map(lambda x: np.zeros((shards, *x.shape), x.dtype), blank)
        shape = jax.eval_shape(run, variables, rows).shape
        return (jnp if as_jax else np).zeros((0, *shape[1:]), np.float32)
    whole = RowLayout(mesh, len(items), batch_size).batch_size
    cut = len(items) // whole * whole  # what remains is a batch of its own, perhaps a smaller
    found = []
    for part in filter(None, (items[:cut], items[cut:])):
        layout = RowLayout(mesh, len(part), batch_size)

        def make(
            number: int, part: Sequence[Any] = part, layout: RowLayout = layout
        ) -> tuple[PyTree, int]:
            start = number * layout.batch_size
            chunk = part[start : start + layout.batch_size]
            # Padding repeats a real row, so that it is finite in any model.
            places = np.minimum(np.arange(layout.batch_size), len(chunk) - 1)
            return jax.tree.map(lambda x: np.asarray(x)[places], read(chunk)), len(chunk)

        for results, count in run_batches(run, variables, layout, make):
            found.append((results if as_jax else jax.device_get(results))[:count])
    return (jnp if as_jax else np).concatenate(found)


@contextmanager
def reading_images(
    preprocess: Preprocess | PatchPreprocess,
) -> Iterator[Callable[[Sequence[tuple[int, ImageLike]]], PyTree]]:
    """Gives what reads numbered images, in threads, as rows; ValueError names one that is none."""

    def read_one(number: int, image: ImageLike) -> np.ndarray | Patches:
        name = f"image {number}"
        try:
            if isinstance(image, (str, os.PathLike)):
                name = os.fspath(image)
                image = local_path(image, way="download the picture first").read_bytes()
            return preprocess(image)
        except FileNotFoundError as error:
            raise ValueError(f"{name} cannot be used: there is no such file") from error
        except (ValueError, OSError) as error:
            raise ValueError(f"{name} cannot be used: {error}") from error

    with ThreadPoolExecutor(max_workers=4) as pool:

        def read(images: Sequence[tuple[int, ImageLike]]) -> PyTree:
            rows = list(pool.map(read_one, *zip(*images, strict=True)))
            return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)

        yield read
