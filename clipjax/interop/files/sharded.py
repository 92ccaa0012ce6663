"""Hugging Face's index of shards: a JSON file that says which file a tensor is in."""

from collections.abc import Callable
from pathlib import Path

from clipjax.interop.tensors import WeightFile, WeightFileError
from clipjax.strict_json import read_json

MAX_INDEX_BYTES = 64 * 2**20


def open_sharded(path: Path, open_shard: Callable[[Path], WeightFile]) -> WeightFile:
    """Opens the shards that an index names as one file.

    Raises:
        WeightFileError: the index is damaged, names a file elsewhere, or its shards hold other
            tensors than it says.
    """
    weight_map = _read_index(path)
    shards = {name: open_shard(path.parent / name) for name in shard_names(path)}
    if any(shard.kind not in ("safetensors", "torch") for shard in shards.values()):
        raise WeightFileError(f"{path}: the shards are neither safetensors nor torch archives")
    held = {(name, file) for file, shard in shards.items() for name in shard.tensors}
    odd = sorted(held ^ set(weight_map.items()))
    if odd:
        name, file = odd[0]
        state = "lacks" if odd[0] not in held else "also holds"
        raise WeightFileError(
            f"{path} and its shards differ in {len(odd)} tensors: {file} {state} {name!r}"
        )
    tensors = {name: shards[file].tensors[name] for name, file in weight_map.items()}
    return WeightFile(tensors, next(iter(shards.values())).kind)


def shard_names(path: Path) -> list[str]:
    """Names of the files that an index asks for, which lie beside it.

    Raises:
        WeightFileError: the index is damaged, or names a file elsewhere.
    """
    files = sorted(set(_read_index(path).values()))
    for name in files:
        if Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
            raise WeightFileError(f"{path}: the shard {name!r} is not a file beside the index")
    return files


def _read_index(path: Path) -> dict[str, str]:
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise WeightFileError(f"{path}: an index of more than {MAX_INDEX_BYTES} bytes")
    try:
        index = read_json(path, max_bytes=MAX_INDEX_BYTES)
        weight_map = index["weight_map"]
        if not weight_map or not all(isinstance(file, str) for file in weight_map.values()):
            raise TypeError("weight_map is no map of file names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightFileError(f"{path}: damaged: no index of shards ({error!r})") from error
    return dict(weight_map)
