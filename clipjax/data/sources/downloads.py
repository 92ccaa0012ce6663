"""What img2dataset writes: a Parquet file of what it did, and a folder of pictures beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.data.source import SampleError
from clipjax.data.sources.fields import IMAGE_FIELDS
from clipjax.data.storage.files import StoredFile, stat
from clipjax.data.storage.paths import DataPath

KEY, STATUS, ERROR = "key", "status", "error_message"
DONE = "success"
_ENCODINGS = ("jpg", "png", "webp")  # what img2dataset writes


def is_keyed(columns: Sequence[str], image_field: str | None) -> bool:
    """Whether rows name their pictures by a key alone."""
    lowered = {name.lower() for name in columns}
    return image_field is None and KEY in columns and lowered.isdisjoint(IMAGE_FIELDS)


def columns_of_status(columns: Sequence[str]) -> list[str]:
    """Names the columns in which img2dataset says what became of a row; none in other files."""
    if not {KEY, STATUS} <= set(columns):
        return []
    return [name for name in (STATUS, ERROR) if name in columns]


def check_status(values: Mapping[str, Any], key: str) -> None:
    """Leaves out a row whose picture was not downloaded; SampleError `filtered_download`."""
    status = values.get(STATUS)
    if isinstance(status, str) and status != DONE:
        why = str(values.get(ERROR) or "")[:80]
        raise SampleError("filtered_download", f"img2dataset says {status} {why}".strip(), key)


def path_of(file: str, value: Any, extension: str) -> str | None:
    """Gives the path of a row's picture beside the Parquet file; None without a key."""
    if not isinstance(value, str) or not value:
        return None
    return f"{file.rpartition('/')[2].removesuffix('.parquet')}/{value}.{extension}"


def extension_beside(file: StoredFile, key: str | None, root: DataPath | None) -> str:
    """Finds how the pictures beside a Parquet file are called."""
    folder = root or file.path.parent
    for extension in _ENCODINGS:
        name = path_of(file.path.url, key, extension)
        try:
            if name is not None and stat(folder / name):
                return extension
        except FileNotFoundError:
            continue
    name = str(path_of(file.path.url, key or "KEY", _ENCODINGS[0]))
    raise ValueError(
        f"{file.path} has no column with pictures ({', '.join(IMAGE_FIELDS)}), and there is no "
        f"file {folder / name} (or .{', .'.join(_ENCODINGS[1:])}) of its column {KEY!r}: give "
        "?image_field=NAME, or the folder that holds those of img2dataset by ?root=DIR"
    )
