"""The model that a checkpoint describes: its spec, which may have been written by anybody.

Nothing in it is imported or opened unless a person says so, every part is checked before it is
built, and what would be built is compared with the leaves that are there before anything is
allocated.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from clipjax.building import (
    UnknownFieldError,
    check_name,
    outside_names,
    source_digests,
)
from clipjax.checkpoint.contract import spec_of_contract, warn_of_sources
from clipjax.checkpoint.manifest import DamagedCheckpointError, Manifest
from clipjax.checkpoint.manifest_fields import newer
from clipjax.models import leaf_shapes
from clipjax.models.layers_layout import unstacked_shapes
from clipjax.models.lora import LORA, check_factors
from clipjax.models.spec_ranges import (
    LOGIT_SCALE,
    MODEL,
    OPTIONAL_FIELDS,
    PREPROCESS,
    check_spec,
)
from clipjax.ranges import show

FOLDER = "tokenizer"
FILE_OPTION = "model"  # of every tokenizer that reads a file
_OF_A_FILE = ("sentencepiece", "tokenizer_json")  # no vocabulary of these is shipped
# Fixed tables, which no leaf vouches for, are made while a model is traced.
_MAX_PATCHES, _MAX_CONTEXT = 2**18, 2**16
_GROUPS = {"preprocess": PREPROCESS, "logit_scale": LOGIT_SCALE}


def needs_file(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer's spec lacks the file that it cannot do without."""
    is_shipped = tokenizer.get("shipped", tokenizer["name"] not in _OF_A_FILE)
    return tokenizer.get(FILE_OPTION) is None and not is_shipped


def spec_in(
    step_dir: Path,
    contract: Mapping[str, Any],
    *,
    plugins: Sequence[str] = (),
    tokenizer: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """The model spec of a checkpoint, with its tokenizer's file as a path that can be opened.

    Args:
        step_dir: of the checkpoint.
        contract: in its manifest.
        plugins: modules that its names may import, see `clipjax.building.resolve`.
        tokenizer: the vocabulary's file, for a checkpoint that has none inside.

    Raises:
        DamagedCheckpointError: the contract describes no model, or names a file that leads out of
            the step folder.
        ValueError: it has fields of a newer clipjax, names a module that is not among the plug-ins,
            or a file elsewhere and `tokenizer` is not given.
    """
    other = {part: contract.get(part) for part in ("preprocess", "logit_scale")}
    for path, name in (*outside_names(contract.get("model"), "model"), *outside_names(other)):
        check_name(name, plugins, path=f"{step_dir}: {path}")
    spec = _check_spec(step_dir, contract)
    warn_of_sources(contract, source_digests(spec, plugins), where=str(step_dir))
    options = spec["tokenizer"]
    file = options.get(FILE_OPTION)
    if tokenizer is not None and (file is not None or needs_file(options)):
        path = os.path.expanduser(str(tokenizer))
        if not epath.Path(path).is_file():
            raise ValueError(f"tokenizer={path!r}: no such file")
    elif file is None:
        return spec
    else:
        path = str(step_dir / _file_inside(step_dir, file))
    return {**spec, "tokenizer": {**options, FILE_OPTION: path}}


def _file_inside(step_dir: Path, file: Any) -> str:
    """Checks the path that a contract gives its vocabulary; it is opened only inside."""
    if not isinstance(file, str):
        raise DamagedCheckpointError(
            f"{step_dir}: model.tokenizer.{FILE_OPTION} is {file!r:.100}, expected a path"
        )
    folder, _, name = file.partition("/")
    if folder == FOLDER and name:
        if name in (".", "..") or set(name) & set("/\\\0"):
            raise DamagedCheckpointError(
                f"{step_dir} names a file outside its folder: {file!r:.200}"
            )
        return file
    # Checkpoints of before the files were taken in name one anywhere, by its whole path.
    raise ValueError(
        f"{step_dir} does not hold its tokenizer's vocabulary and names {file!r:.200}; nothing "
        "outside a checkpoint is opened for it: give the file by "
        "tokenizer=FILE"
    )


def _check_spec(step_dir: Path, contract: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the model's spec in a contract, up to what its towers check themselves."""
    for part in ("model", "preprocess", "logit_scale", "tokenizer"):
        if not isinstance(contract.get(part), Mapping):
            raise DamagedCheckpointError(
                f"{step_dir}: contract.{part} is {show(contract.get(part))}, expected a dict"
            )
    spec = spec_of_contract(contract)
    spec = {"logit_bias": None, "source": "", **spec}
    tables = {"": (spec, MODEL)}
    tables |= {f".{part}": (spec[part], known) for part, known in _GROUPS.items()}
    for part, (fields, known) in tables.items():
        for name in fields:
            if name not in known:
                raise ValueError(newer(f"{step_dir}: model{part}.{show(name)[1:-1]}"))
    missing = [name for name in MODEL if name not in spec and name not in OPTIONAL_FIELDS]
    if missing:
        raise DamagedCheckpointError(f"{step_dir}: model lacks {', '.join(missing)}")
    try:
        check_spec(spec, "model")
    except ValueError as error:
        raise DamagedCheckpointError(f"{step_dir}: {error}") from error
    return spec


def check_model(
    step_dir: Path, manifest: Manifest, spec: Mapping[str, Any], *, plugins: Sequence[str] = ()
) -> None:
    """Compares the model of a checkpoint's spec with its leaves; nothing is allocated.

    Raises:
        DamagedCheckpointError: the spec describes no model, or not the one that is there.
    """
    patches = (spec["image_size"] // spec["image"].get("patch_size", 1)) ** 2
    if "patch_size" in spec["image"] and patches > _MAX_PATCHES:
        raise DamagedCheckpointError(f"{step_dir}: an image of {patches} patches is too large")
    if spec["text"]["context_length"] > _MAX_CONTEXT:
        raise DamagedCheckpointError(
            f"{step_dir}: model.text.context_length = {spec['text']['context_length']} is too long"
        )
    try:
        wanted = leaf_shapes(spec, plugins)
    except UnknownFieldError as error:
        raise ValueError(f"{step_dir}: {error}; it may be from a newer clipjax") from error
    except ValueError as error:
        raise DamagedCheckpointError(f"{step_dir}: {error}") from error
    found = {name: record.shape for name, record in manifest.of_model().items()}
    if any("/block_0/" in name for name in found):
        wanted = unstacked_shapes(wanted)
    odd = sorted(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
    if odd:
        there, said = (table.get(odd[0], "absent") for table in (found, wanted))
        raise DamagedCheckpointError(
            f"{step_dir} does not hold the model that its contract describes: {len(odd)} leaves "
            f"differ, the first is {odd[0]}, {there} in the checkpoint and {said} by the contract"
        )
    if factors := manifest.of_model(factors=True):
        prefix = f"params/{LORA}/"
        try:
            check_factors(
                {name.removeprefix(prefix): record.shape for name, record in factors.items()},
                {name.removeprefix("params/"): shape for name, shape in found.items()},
                manifest.lora[0],
            )
        except ValueError as error:
            raise DamagedCheckpointError(f"{step_dir}: {error}") from error
