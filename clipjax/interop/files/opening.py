"""Opening a file of tensors of any kind, which its first bytes tell, not its name."""

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from clipjax.data.storage.retrying import is_missing
from clipjax.interop.files import npz, safetensors, torch_zip
from clipjax.interop.tensors import WeightFile, WeightFileError
from clipjax.strict_json import read_json

Kind = Literal["safetensors", "torch", "npz", "index"]

MAX_INDEX_BYTES = 64 * 2**20
_ZIP = b"PK\x03\x04"
_READERS: dict[Kind, Callable[[Path], WeightFile]] = {
    "safetensors": safetensors.read_safetensors,
    "npz": npz.read_npz,
    "index": lambda path: _open_sharded(path),
}


def file_kind(path: str | os.PathLike[str]) -> Kind | None:
    """Tells what a file of tensors is by its first bytes; None for anything else."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start.startswith(_ZIP):
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
            if any(name.rsplit("/", 1)[-1] == "data.pkl" for name in names):
                return "torch"
            return "npz" if any(name.endswith(".npy") for name in names) else None
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return None
    except OSError as error:
        if not is_missing(error):
            raise  # of the storage, which says nothing about what the file is
        return None
    if path.name.endswith(".index.json"):
        return "index"
    return "safetensors" if len(start) == 9 and start[8:] == b"{" else None


def first_of(folder: Path, names: Sequence[str]) -> Path:
    """The first of these files of weights that a folder holds.

    Raises:
        WeightFileError: it holds none.
    """
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise WeightFileError(f"{folder} holds no weights: expected {' or '.join(names)}")
    return found


def open_tensors(path: str | os.PathLike[str], *, which: str | None = None) -> WeightFile:
    """Opens a file of tensors; each is read when it is asked for.

    Args:
        path: `.safetensors`, a torch zip archive (`.pt`, `.bin`, `.pth`: a state dict, a training
            checkpoint, or TorchScript), `.npz`, or Hugging Face's `*.index.json` of shards.
        which: the key of the set of weights, in a torch archive that holds several.

    Raises:
        WeightFileError: no such file, none of these, damaged, or refused; or it holds several
            sets of weights and `which` names none of them, or only one and `which` is given.
    """
    path = Path(path)
    if not path.is_file():
        what = "a directory, not a file" if path.is_dir() else "no such file"
        raise WeightFileError(f"{path}: {what}; give a file of weights")
    kind = file_kind(path)
    if kind is None:
        raise WeightFileError(f"{path}: {_what_else(path)}")
    if kind == "torch":
        return torch_zip.read_torch_zip(path, which=which)
    if which is not None:
        raise WeightFileError(f"which={which!r}: {path} holds one set of weights; leave it out")
    return _READERS[kind](path)


def _what_else(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        return "the file is empty"
    if start.startswith(_ZIP):
        return "a damaged zip archive, or one without tensors; fetch the file again"
    if start[:1] == b"\x80" or b"PK\x05\x06" in start:
        return (
            "a pickle or torch's format of before 1.6, which only executing it could read; save it "
            "anew with torch.save(state_dict, path) of a present torch, or as .safetensors"
        )
    return (
        f"no file of weights (it starts with {start[:8]!r}); known are .safetensors, torch zip "
        "archives (.pt, .bin, .pth) and .npz"
    )


def _open_sharded(path: Path) -> WeightFile:
    """Opens the shards that an index names as one file.

    Raises:
        WeightFileError: the index is damaged, names a file elsewhere, or its shards hold other
            tensors than it says.
    """
    weight_map = _read_index(path)
    shards = {name: open_tensors(path.parent / name) for name in shard_names(path)}
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
