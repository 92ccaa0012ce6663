"""What `clipjax data pack` writes beside its shards, and what it says of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from clipjax.data.storage.files import StoredFile, list_files, read_all
from clipjax.data.storage.paths import DataPath
from clipjax.strict_json import parse_json

MANIFEST, JOB = "manifest.json", "packing.json"
FORMAT = "clipjax.packing/1"
_SHARD = {"name": str, "count": int, "bytes": int, "sha256": str, "skipped": dict}
_MANIFEST = {"count": int, "skipped": dict, "shards": list}


def read_manifest(path: DataPath) -> dict[str, Any]:
    """Reads the manifest of a folder: what was packed, and `shards`, as `read_note` gives them."""
    remedy = "copy it again from where it was packed, or pack into another directory"
    found = _read(path, remedy)
    _check(path, found, _MANIFEST, remedy)
    for shard in found["shards"]:
        _check(path, shard, _SHARD, remedy)
    classes = found.get("class_names") or []
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{path} is damaged, its 'class_names' is no list of texts: {remedy}")
    return found


def read_job(path: DataPath) -> dict[str, Any]:
    """Reads what is packed, from the file of a job that is not finished."""
    return _read(path, "pack into another directory, or empty this one")


def read_note(path: DataPath) -> dict[str, Any]:
    """Reads what a shard of such a job holds: `name`, `count`, `bytes`, `sha256` and `skipped`."""
    remedy = "delete it, and the same command makes its shard anew"
    found = _read_json(path, remedy)
    _check(path, found, _SHARD, remedy)
    return found


def _read(path: DataPath, remedy: str) -> dict[str, Any]:
    found = _read_json(path, remedy)
    form = found.get("format") if isinstance(found, dict) else found
    if form != FORMAT:
        raise ValueError(f"{path} is of the format {form!r:.40}, expected {FORMAT!r}: {remedy}")
    return found


def _read_json(path: DataPath, remedy: str) -> Any:
    try:
        return parse_json(read_all(path))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): {remedy}") from error


def _check(path: DataPath, found: Any, fields: Mapping[str, type], remedy: str) -> None:
    for name, kind in fields.items():
        value: Any = found.get(name) if isinstance(found, dict) else None
        good = isinstance(value, kind) and not isinstance(value, bool)
        if good and kind is int:
            good = value >= 0
        elif good and name == "name":  # one that leads elsewhere would be written to
            good = value not in ("", ".", "..") and not set(value) & set("/\\\0")
        elif good and name == "skipped":
            good = all(type(count) is int for count in value.values())
        if not good:
            raise ValueError(f"{path} is damaged, its {name!r} is {value!r:.40}: {remedy}")


def packed_class_names(files: Sequence[StoredFile]) -> tuple[str, ...] | None:
    """Gives the names of the classes that shards were packed with, if all of them agree."""
    found = set()
    for folder in {file.path.parent for file in files}:
        try:
            names = read_manifest(folder / MANIFEST).get("class_names")
        except (FileNotFoundError, ValueError):  # of no packed folder
            return None
        found.add(None if names is None else tuple(names))
    return found.pop() if len(found) == 1 else None


class PackedFolder(NamedTuple):
    """A folder of packed shards.

    Attributes:
        shards: name -> `count`, `bytes` and `sha256` of each shard.
    """

    path: DataPath
    names: set[str]
    shards: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, path: DataPath) -> "PackedFolder | None":
        """Reads the manifest; None if there is none."""
        names = {file.path.name for file in list_files(path)}
        if MANIFEST not in names:
            return None
        shards = read_manifest(path / MANIFEST)["shards"]
        return cls(path, names, {shard["name"]: shard for shard in shards})

    def lost(self) -> Iterator[tuple[str, str]]:
        """Names the shards that are not there, and says what they held."""
        for name, shard in self.shards.items():
            if name not in self.names:
                what = f"is missing: {MANIFEST} says that it has {shard['count']} examples"
                yield str(self.path / name), what

    def compare(self, file: StoredFile, sha256: str) -> Iterator[str]:
        """Says how a shard differs from what was packed."""
        shard = self.shards.get(file.path.name)
        if shard is None:
            yield f"{MANIFEST} beside it does not name it"
        elif file.size != shard["bytes"]:
            yield f"it has {file.size} bytes, {MANIFEST} says {shard['bytes']}"
        elif sha256 != shard["sha256"]:
            yield f"its SHA-256 is another than in {MANIFEST}"

    def is_empty(self, file: StoredFile) -> bool:
        """Whether a shard holds nothing because none of its examples could be used."""
        shard = self.shards.get(file.path.name)
        return shard is not None and shard["count"] == 0
