"""Opening a file of tensors of any kind, which its first bytes tell, not its name."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from clipjax.interop.files import npz, safetensors, torch_zip
from clipjax.interop.files.sharded import open_sharded
from clipjax.interop.tensors import WeightFile, WeightFileError

Kind = Literal["safetensors", "torch", "npz", "index"]

_ZIP = b"PK\x03\x04"
_READERS: dict[Kind, Callable[[Path], WeightFile]] = {
    "safetensors": safetensors.read_safetensors,
    "npz": npz.read_npz,
    "index": lambda path: open_sharded(path, open_tensors),
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
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return None
    if path.name.endswith(".index.json"):
        return "index"
    return "safetensors" if len(start) == 9 and start[8:] == b"{" else None


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
        raise WeightFileError(
            f"--which {which}: {path} holds one set of weights; leave the flag out"
        )
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
