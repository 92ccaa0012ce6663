"""`clipjax.make_loader`: the batches of a training as a library has them, from a SPEC."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clipjax.building import ANY_MODULE
from clipjax.data.images.preprocess import Preprocess
from clipjax.data.loading.loader import Loader
from clipjax.data.source import DataSource
from clipjax.data.sources import make_source
from clipjax.data.transforms import Transform, make_transform
from clipjax.ranges import show


def make_loader(
    source: str | Mapping[str, Any] | DataSource,
    *,
    preprocess: Preprocess,
    tokenizer: Callable[[list[str]], np.ndarray],
    batch_size: int,
    seed: int = 0,
    transforms: Sequence[Transform | Mapping[str, Any]] = (),
    process_index: int | None = None,
    process_count: int | None = None,
    num_workers: int = 2,
    workers: str = "threads",
    prefetch: int = 2,
    max_bad_fraction: float = 1e-3,
) -> Loader:
    """Makes batches of image-text pairs, a pure function of the step.

    A batch is a dict of NumPy arrays of this process's rows, batch_size by the processes: `image`,
    uint8 `[rows, size, size, 3]`, not normalised, and `text`, int32 `[rows, length]`.
    `loader.batch(step)` makes one; `loader.iterate(start_step)` yields `(step, batch)` for ever,
    made ahead. There is no state to save: a loop that stopped before step 1,000 goes on by
    `iterate(1000)` and sees the pairs that it would have seen. Which pairs a step holds depends on
    the source, seed and batch_size, not on the processes: they share each global batch in the
    order of their index, and `jax.make_array_from_process_local_data` makes one array of it.
    The order is a new permutation each epoch; an unusable pair is replaced and counted.

    Args:
        source: a SPEC, `tar:shards/{00000..00331}.tar`, `csv:captions.csv`, `folder:DIR`, ... or a
            dict of one, as `docs/data.md` lists them; or any object with `__len__`, `__getitem__`
            and `fingerprint`.
        preprocess: `model.preprocess`; of models whose images have one size.
        tokenizer: `model.tokenizer`, or any: texts `[n]` -> int32 `[n, length]`.
        batch_size: pairs of a step over all processes.
        seed: the seed of order, augmentation and choice of captions.
        transforms: in their order, each `{"name": ..., field: ...}` of `docs/data.md`, or a
            function (example, NumPy generator) -> example.
        process_index: which part of each batch is made here; JAX's by default.
        process_count: how many parts each batch has; JAX's by default.
        num_workers: how many workers decode and augment; 0 does it in the caller's thread.
        workers: `threads`, or `processes` where Python code holds the interpreter's lock.
        prefetch: how many batches `iterate` makes ahead.
        max_bad_fraction: the allowed fraction of unusable pairs, above which a batch is an error.

    Returns:
        The loader; `close()` it, or use it in a `with`.

    Raises:
        ValueError: data that is missing, damaged or smaller than a batch; a number out of range; a
            source, transform or tokenizer that is none; a preprocess of images of any aspect.

    Example:
        >>> model = clipjax.load("ViT-B-32.pt")
        >>> with clipjax.make_loader(
        ...     "tar:shards/{00000..00001}.tar", preprocess=model.preprocess,
        ...     tokenizer=model.tokenizer, batch_size=8,
        ... ) as loader:
        ...     step, batch = next(loader.iterate(start_step=0))
        >>> batch["image"].shape, batch["text"].shape, batch["text"].dtype
        ((8, 224, 224, 3), (8, 77), dtype('int32'))
    """
    if not isinstance(preprocess, Preprocess):
        raise ValueError(
            f"preprocess is {type(preprocess).__name__}: a batch holds images of one size; give "
            "clipjax.data.images.preprocess.Preprocess, or the preprocess of a model of one size"
        )
    if isinstance(source, str | Mapping):
        # The caller's own code names what is imported, as a config does.
        source = make_source(source, path="source", plugins=ANY_MODULE)
    if not callable(tokenizer):
        raise ValueError(
            f"tokenizer is {type(tokenizer).__name__}, expected model.tokenizer, or a function: "
            "texts [n] -> int32 [n, length]"
        )
    if isinstance(transforms, str | Mapping) or not isinstance(transforms, Iterable):
        raise ValueError(f"transforms is {show(transforms)}, expected a list, also of one")
    built = []
    for number, given in enumerate(transforms):
        path = f"transforms[{number}]"
        if isinstance(given, Mapping):
            size = preprocess.size
            built.append(make_transform(given, image_size=size, path=path, plugins=ANY_MODULE))
        elif callable(given):
            built.append(given)
        else:
            raise ValueError(f"{path} is {given!r:.80}, expected a dict with a name, or a function")
    return Loader(
        source,
        built,
        tokenizer,
        batch_size=batch_size,
        seed=seed,
        preprocess=preprocess,
        process_index=jax.process_index() if process_index is None else process_index,
        process_count=jax.process_count() if process_count is None else process_count,
        num_workers=num_workers,
        workers=workers,
        prefetch=prefetch,
        max_bad_fraction=max_bad_fraction,
    )
