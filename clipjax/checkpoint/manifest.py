"""manifest.json: what a step folder holds and what it was made with; written last, it commits.

A folder without it is an unfinished save. Orbax does not notice a flipped bit in array data, and
casts a leaf to the dtype that is asked for: the digests and the list of leaves are ours.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipjax import __version__, faults
from clipjax.checkpoint.folders import MANIFEST, is_file, refuse_links
from clipjax.checkpoint.manifest_fields import NewerError, check_manifest
from clipjax.data.storage.retrying import is_missing, retry
from clipjax.files import replacing, sha256, sha256_of_file, write_file
from clipjax.losses.objectives import is_of_objective
from clipjax.models.lora import is_of_lora
from clipjax.ranges import POSITIVE, show, whole
from clipjax.strict_json import read_json

FORMAT_VERSION = 1
METADATA_KEYS = ("config", "contract", "dataset_fingerprint", "global_batch_size", "seed")
_LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "optax", "orbax-checkpoint", "tensorstore")


class DamagedCheckpointError(RuntimeError):
    """The bytes of a checkpoint are not those that were written."""


@dataclasses.dataclass(frozen=True)
class LeafRecord:
    """One array of the state.

    `sha256` is that of the global array's bytes in C order. It is None for an array that lay on the
    devices of several processes in blocks when it was saved: `blocks` are their digests then, in C
    order of their grid. Older checkpoints hold neither for such an array; the digests of the files
    vouch for that one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str | None
    block_shape: tuple[int, ...] = ()
    blocks: tuple[str, ...] = ()

    def grid(self) -> list[tuple[slice, ...]]:
        """Where its blocks lie; one that is all of it has the index ()."""
        if not self.block_shape:
            return [()]
        counts = [n // b for n, b in zip(self.shape, self.block_shape, strict=True)]
        return [
            tuple(slice(i * b, (i + 1) * b) for i, b in zip(place, self.block_shape, strict=True))
            for place in np.ndindex(*counts)
        ]

    def digests(self) -> list[tuple[tuple[slice, ...], str]]:
        """The digests that there are, and the part of the array that each is of."""
        digests = self.blocks if self.sha256 is None else (self.sha256,)
        return list(zip(self.grid(), digests, strict=True)) if digests else []


@dataclasses.dataclass(frozen=True)
class FileRecord:
    """One file of the step folder; `path` is relative to it."""

    path: str
    size: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a step folder holds and what it was made with.

    `contract` is what it takes to use the parameters: model, tokenizer, preprocessing
    (clipjax/checkpoint/contract.py). `config` is data: it is compared, never executed.
    """

    step: int
    config: Mapping[str, Any]
    contract: Mapping[str, Any]
    dataset_fingerprint: str
    global_batch_size: int
    seed: int
    leaves: tuple[LeafRecord, ...]
    files: tuple[FileRecord, ...]
    versions: Mapping[str, str]
    config_sha256: str
    format_version: int = FORMAT_VERSION
    # What was replaced of the data up to this step, by reason: data/loading/bad_examples.py.
    bad_examples: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # What was measured at this step, if steps are compared by it: config.checkpoint.best.
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    skipped_in_a_row: int = 0  # steps just before this state; above 0 it may be a bad one

    @property
    def roots(self) -> set[str]:
        """What its leaves are of: `params`, `opt_state`, ..."""
        return {record.name.partition("/")[0] for record in self.leaves}

    @property
    def model_root(self) -> str:
        """Where the parameters are that a model computes with: the averaged ones, if any."""
        return "ema_params" if "ema_params" in self.roots else "params"

    @property
    def averages(self) -> list[str]:
        """The names of the averages of `config.optimizer.averages`."""
        leaves = [record.name.split("/") for record in self.leaves]
        return sorted({names[1] for names in leaves if names[0] == "averages"})

    def root_of(self, which: str | None) -> str:
        """Where the parameters are that a person asks for.

        Args:
            which: `params`, `ema_params` or the name of an average; None is `model_root`.

        Raises:
            ValueError: there are no such; those that there are.
        """
        if which is None:
            return self.model_root
        if which in self.averages:
            return f"averages/{which}"
        known = [root for root in ("params", "ema_params") if root in self.roots]
        if which not in known:
            raise ValueError(
                f"which={which!r}: the checkpoint holds {', '.join([*known, *self.averages])}"
            )
        return which

    @property
    def lora(self) -> tuple[int, float]:
        """Rank and alpha of the differences of low rank that are added to the kernels.

        Raises:
            DamagedCheckpointError: the config does not say them.
        """
        found = self.config.get("lora")
        if isinstance(found, dict):
            rank: Any = found.get("rank")
            alpha: Any = found.get("alpha")
            if whole().accepts(rank) and POSITIVE.accepts(alpha):
                return rank, float(alpha)
        raise DamagedCheckpointError(
            f"the checkpoint holds factors of low rank, and its config has lora = {show(found)}: "
            "rank and alpha are to be numbers above 0"
        )

    def of_model(self, which: str | None = None, *, factors: bool = False) -> dict[str, LeafRecord]:
        """The leaves that a model computes with, by their names in its variables.

        Args:
            which: as for `root_of`; what an average lacks was frozen: it is that of `params`.
            factors: those of the differences of low rank, `params/lora/...`, in place of the
                model's own.
        """
        root = self.root_of(which)
        found = {}
        for top in ("params", root) if root.startswith("averages/") else (root,):
            for record in self.leaves:
                if record.name.startswith(f"{top}/") and not is_of_objective(record.name):
                    found[f"params/{record.name.removeprefix(f'{top}/')}"] = record
        found = {name: record for name, record in found.items() if is_of_lora(name) == factors}
        if factors:
            return found
        for record in self.leaves:
            if record.name.startswith("model_state/") and not is_of_objective(record.name):
                found[record.name.removeprefix("model_state/")] = record
        return found


def check_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata of a run as JSON reads it back (tuples become lists).

    Raises:
        ValueError: a key is missing or unknown, or a value is not JSON.
    """
    if set(metadata) != set(METADATA_KEYS):
        raise ValueError(
            f"checkpoint metadata has the keys {sorted(metadata)}; it needs {sorted(METADATA_KEYS)}"
        )
    try:
        return json.loads(json.dumps(dict(metadata), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"checkpoint metadata is not plain JSON ({error}); give dicts, lists, strings and "
            "finite numbers"
        ) from error


def digest(value: Any) -> str:
    """SHA-256 of a JSON value; equal values have one."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False))


def digest_array(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes in C order."""
    # A view of bytes, because the buffer protocol does not know bfloat16.
    return sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def manifest_digest(step_dir: str | os.PathLike[str]) -> str | None:
    """SHA-256 of a step folder's manifest, which vouches for all that is in it; None without it."""
    path = Path(step_dir) / MANIFEST
    return retry(lambda: sha256_of_file(path), f"reading {path}") if is_file(path) else None


def record_files(step_dir: Path, known: Mapping[str, str] | None = None) -> tuple[FileRecord, ...]:
    """Sizes and digests of all files below a step folder, the manifest excepted.

    Args:
        step_dir: the folder.
        known: digests that other processes found, by path.
    """
    paths = sorted(p for p in step_dir.rglob("*") if p.is_file())
    names = {path: path.relative_to(step_dir).as_posix() for path in paths}
    return tuple(
        FileRecord(name, path.stat().st_size, (known or {}).get(name) or sha256_of_file(path))
        for path, name in names.items()
        if path.parent != step_dir or not path.name.startswith(MANIFEST)
    )


def hash_own_files(step_dir: Path, process: int) -> dict[str, str]:
    """SHA-256 of the files that a process of several wrote, by path; what it does not see is not
    among them, and the lead hashes it."""
    found = {}
    for folder in step_dir.glob(f"*/ocdbt.process_{process}"):  # the name is Orbax's
        for record in record_files(folder):
            found[f"{folder.relative_to(step_dir).as_posix()}/{record.path}"] = record.sha256
    return found


def commit_step(
    step_dir: Path,
    step: int,
    leaves: tuple[LeafRecord, ...],
    metadata: Mapping[str, Any],
    attachments: Mapping[str, bytes],
    bad_examples: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    skipped_in_a_row: int = 0,
    known: Mapping[str, str] | None = None,
) -> None:
    """Hashes the files of a step whose arrays are written, and writes its manifest.

    Args:
        known: digests of files that other processes found, by path.
    """
    for path, data in attachments.items():
        file = step_dir / path
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, data)
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    manifest = Manifest(
        step=step,
        leaves=leaves,
        files=record_files(step_dir, known),
        versions={"clipjax": __version__, "python": platform.python_version(), **versions},
        config_sha256=digest(metadata["config"]),
        bad_examples=dict(bad_examples or {}),
        metrics=dict(metrics or {}),
        skipped_in_a_row=skipped_in_a_row,
        **metadata,
    )
    write_manifest(step_dir, manifest)


def write_manifest(step_dir: Path, manifest: Manifest) -> None:
    """Commits a step: writes its manifest beside the data, flushes it to disk and renames it."""
    fields = dataclasses.asdict(manifest)
    # An older clipjax reads what has none of these.
    for name in ("metrics", "skipped_in_a_row"):
        if not fields[name]:
            del fields[name]
    for leaf in fields["leaves"]:
        if not leaf["blocks"]:
            del leaf["block_shape"], leaf["blocks"]
    # The manifest vouches for everything else, so it vouches for itself as well.
    fields["manifest_sha256"] = digest(fields)
    with replacing(step_dir / MANIFEST) as temporary:
        temporary.write_text(json.dumps(fields, indent=1, allow_nan=False), encoding="utf-8")
        faults.point("save.before_rename", manifest.step)


def read_manifest(step_dir: str | os.PathLike[str]) -> Manifest:
    """Reads the manifest of a step folder and checks it against its own digest.

    Raises:
        DamagedCheckpointError: it is missing, is not what was written, or names a path outside.
        ValueError: another version of clipjax wrote it in a way that this one cannot read, or the
            folder holds a link.
        OSError: the storage failed, which says nothing about the checkpoint.
    """
    path = Path(step_dir) / MANIFEST
    refuse_links(Path(step_dir))

    def read() -> Any:
        faults.point("checkpoint.read_manifest")
        return read_json(path)

    try:
        fields = retry(read, f"reading {path}")
        if not isinstance(fields, dict):
            raise ValueError(f"it holds {type(fields).__name__}, expected an object")
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{path} is missing: the save did not finish") from error
    except ValueError as error:
        raise DamagedCheckpointError(f"{path} is not a manifest: {error}") from error
    if fields.pop("manifest_sha256", None) != digest(fields):
        raise DamagedCheckpointError(f"{path} does not match its own SHA-256")
    if fields.get("format_version") != FORMAT_VERSION:
        versions = fields.get("versions")
        writer = versions.get("clipjax") if isinstance(versions, dict) else None
        raise ValueError(
            f"{path} has format version {show(fields.get('format_version'))}; this clipjax "
            f"({__version__}) reads {FORMAT_VERSION}: use the clipjax that wrote it, "
            f"{show(writer or 'unknown')}"
        )
    try:
        check_manifest(fields)
    except NewerError as error:
        raise ValueError(f"{path}: {error}") from error
    except ValueError as error:
        raise DamagedCheckpointError(f"{path} is not a manifest: {error}") from error
    fields["leaves"] = tuple(
        LeafRecord(
            **leaf | {key: tuple(value) for key, value in leaf.items() if isinstance(value, list)}
        )
        for leaf in fields["leaves"]
    )
    fields["files"] = tuple(FileRecord(**file) for file in fields["files"])
    return Manifest(**fields)


def verify_files(step_dir: Path, records: Iterable[FileRecord]) -> None:
    """Checks size and SHA-256 of every recorded file.

    Raises:
        DamagedCheckpointError: names the first file that is missing or differs.
        OSError: a file cannot be read, although it was tried more than once; that says nothing
            about its content.
    """
    for record in records:
        path = step_dir / record.path

        def verify(path: Path = path, record: FileRecord = record) -> None:
            faults.point("checkpoint.verify")
            if (size := path.stat().st_size) != record.size:
                raise DamagedCheckpointError(
                    f"{path} has {size} bytes, the manifest says {record.size}"
                )
            if sha256_of_file(path) != record.sha256:
                raise DamagedCheckpointError(f"{path} does not match its SHA-256 in the manifest")

        try:
            retry(verify, f"verifying {path}")
        except OSError as error:
            if not is_missing(error):
                raise
            raise DamagedCheckpointError(f"{path} cannot be read: {error}") from error
