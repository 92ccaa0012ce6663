"""What `manifest.json` says of the shards that `clipjax data pack` wrote."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from clipjax.data.packing import MANIFEST, MANIFEST_FORMAT
from clipjax.data.paths import DataPath
from clipjax.data.storage import StoredFile, list_files, read_all


class PackedFolder(NamedTuple):
    """A folder of packed shards.

    Attributes:
        path: of the folder.
        names: of the files that are there.
        shards: name -> `count`, `bytes` and `sha256` of each shard.
    """

    path: DataPath
    names: set[str]
    shards: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, path: DataPath) -> "PackedFolder | None":
        """Reads the manifest; None if the folder was not packed."""
        names = {file.path.name for file in list_files(path)}
        if MANIFEST not in names:
            return None
        try:
            found = json.loads(read_all(path / MANIFEST))
        except ValueError as error:
            raise ValueError(f"{path / MANIFEST} is no JSON: {error}") from error
        if not isinstance(found, dict) or found.get("format") != MANIFEST_FORMAT:
            return None
        return cls(path, names, {shard["name"]: shard for shard in found["shards"]})

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
