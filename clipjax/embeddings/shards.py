"""Shards of embeddings on disk: Parquet files, or arrays of NumPy with Parquet files beside."""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipjax.data.captions import flatten
from clipjax.data.images.formats import format_of
from clipjax.data.source import Example
from clipjax.encoding.reading import Embedded
from clipjax.files import replacing

FORMS = ("parquet", "npy")
DTYPES = ("float32", "float16")
_META = b"clipjax"
_EMBEDDING = "embedding"


class Shard(NamedTuple):
    """What a shard holds.

    Attributes:
        name: its number, `00000`.
        pictures: embeddings.
        bytes: of its files, by suffix.
        skipped: examples that are left out, by reason.
    """

    name: str
    pictures: int
    bytes: Mapping[str, int]
    skipped: Mapping[str, int]


def write_shard(
    stem: Path, parts: Sequence[Embedded], *, form: str, dtype: str, embed_dim: int, job: str
) -> Shard:
    """Writes a shard; its Parquet file appears last, whole, and says what it belongs to.

    Args:
        stem: of its files: the folder and the number.
        parts: its examples.
        form: one of FORMS.
        dtype: that embeddings are stored in, one of DTYPES.
        job: what the shard is part of.
    """
    import pyarrow as pa  # slow to import
    import pyarrow.parquet as pq

    embeds = np.concatenate([part.embeds for part in parts] or [np.zeros((0, embed_dim))])
    embeds = embeds.astype(dtype)
    examples = [example for part in parts for example in part.examples]
    skipped: dict[str, int] = {}
    for part in parts:
        for reason, number in part.bad.items():
            skipped[reason] = skipped.get(reason, 0) + number
    sizes = np.array([picture_size(example["image"]) for example in examples], np.int32)
    rows = [part.indices for part in parts] or [np.zeros(0, np.int64)]
    columns = {
        "key": pa.array([example["key"] for example in examples], pa.string()),
        "captions": pa.array(list(map(_captions, examples)), pa.list_(pa.string())),
        "row": pa.array(np.concatenate(rows), pa.int64()),
        "width": pa.array(sizes.reshape(-1, 2)[:, 0]),
        "height": pa.array(sizes.reshape(-1, 2)[:, 1]),
    }
    bytes_: dict[str, int] = {}
    if form == "npy":
        with replacing(stem.with_suffix(".npy")) as work:
            np.save(work, embeds)
            bytes_[".npy"] = work.stat().st_size
    else:
        flat = pa.array(embeds.reshape(-1))
        columns[_EMBEDDING] = pa.FixedSizeListArray.from_arrays(flat, embed_dim)
    skipped = dict(sorted(skipped.items()))
    about = {"job": job, "skipped": skipped, "npy": bytes_.get(".npy")}
    table = pa.table(columns).replace_schema_metadata({_META: json.dumps(about)})
    with replacing(stem.with_suffix(".parquet")) as work:
        pq.write_table(
            table, work, compression="none", use_dictionary=False, write_page_checksum=True
        )
        bytes_[".parquet"] = work.stat().st_size
    return Shard(stem.name, len(examples), bytes_, skipped)


def find_shard(stem: Path, job: str) -> Shard | None:
    """Gives what a shard holds that was written before; None if it is not there, or not whole.

    Args:
        stem: of its files.
        job: what it has to be part of.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = stem.with_suffix(".parquet")
    try:
        footer = pq.read_metadata(path)
        about = json.loads((footer.metadata or {})[_META])
        if about["job"] != job:
            return None
        bytes_ = {".parquet": path.stat().st_size}
        if about["npy"] is not None:
            bytes_ = {".npy": stem.with_suffix(".npy").stat().st_size} | bytes_
        whole = bytes_.get(".npy") == about["npy"]
        return Shard(stem.name, footer.num_rows, bytes_, about["skipped"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def read_embeddings(
    stem: Path, form: str, shape: tuple[int, int], dtype: str, *, rows: int
) -> Iterator[np.ndarray]:
    """Reads the embeddings of a shard as they are stored, some at a time.

    Args:
        form: one of FORMS. Arrays of `npy` are mapped: their bytes are read when they are used.
        shape: pictures, length of an embedding.
        dtype: one of DTYPES.
        rows: that are read at once; those of a mapped array are one part.

    Raises:
        ValueError: the file is damaged, or holds something else.
    """
    if form == "npy":
        try:
            array = np.load(stem.with_suffix(".npy"), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{stem}.npy is damaged: {error}") from error
        _check_stored(stem, form, (array.shape, array.dtype), (shape, dtype))
        yield np.asarray(array)
        return
    import pyarrow as pa

    with _opened(stem) as file:
        stored = file.schema_arrow.field(_EMBEDDING).type
        is_list = pa.types.is_fixed_size_list(stored)
        width = stored.list_size if is_list else 1
        kind = stored.value_type.to_pandas_dtype() if is_list else object
        _check_stored(stem, form, ((file.metadata.num_rows, width), np.dtype(kind)), (shape, dtype))
        for batch in file.iter_batches(rows, columns=[_EMBEDDING]):
            flat = batch.column(0).flatten()
            if len(flat) != len(batch) * width:
                raise ValueError(f"{stem}.{form} is damaged: rows without an embedding")
            yield flat.to_numpy().reshape(-1, width)


def _check_stored(
    stem: Path,
    form: str,
    found: tuple[tuple[int, ...], np.dtype],
    expected: tuple[tuple[int, int], str],
) -> None:
    if found != (expected[0], np.dtype(expected[1])):
        raise ValueError(
            f"{stem}.{form} holds {found[1]}{list(found[0])}, expected "
            f"{expected[1]}{list(expected[0])}: it is damaged, and the same `clipjax embed` makes "
            "it anew where it is deleted"
        )


def read_columns(stem: Path, columns: Sequence[str]) -> Any:
    """Reads columns of a shard's Parquet file, as a table of pyarrow.

    Raises:
        ValueError: the file is damaged.
    """
    with _opened(stem) as file:
        return file.read(columns=list(columns), use_threads=True)


@contextlib.contextmanager
def _opened(stem: Path) -> Iterator[Any]:
    """A shard's Parquet file, open; ValueError says that it is damaged, whenever that is seen."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = stem.with_suffix(".parquet")
    try:
        with pq.ParquetFile(path, memory_map=True, page_checksum_verification=True) as file:
            yield file
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def picture_size(image: Any) -> tuple[int, int]:
    """Width and height of a picture of an example, in pixels as they are stored."""
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    if isinstance(image, bytes):
        form = format_of(image)
        with Image.open(io.BytesIO(image), formats=None if form is None else (form.name,)) as file:
            return file.size
    return image.size


def _captions(example: Example) -> list[str]:
    return [text for _, text in flatten(example.get("text") or ())]
