"""A checkpoint's tokenizer: its file lies in the step folder, so that nothing else is needed.

<step>/tokenizer/<file>, which the contract names relative to the step folder and the manifest
records like every other file.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from clipjax.building import check_name, outside_names
from clipjax.checkpoint.contract import check_contract, spec_of_contract
from clipjax.checkpoint.manifest import DamagedCheckpointError, read_manifest
from clipjax.tokenizers import Tokenizer, make_tokenizer

FOLDER = "tokenizer"
FILE_OPTION = "model"  # of every tokenizer that reads a file


def attach_tokenizer(contract: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Takes the tokenizer's file into a checkpoint.

    Args:
        contract: of the model; `model.tokenizer.model` is the path of a file, or is not there.

    Returns:
        The contract with the file's path relative to the step folder, and the files to write
        there, by that path.

    Raises:
        ValueError: there is no such file: a checkpoint names none that it does not hold.
    """
    contract = dict(contract)
    model = dict(contract.get("model") or {})
    tokenizer = dict(model.get("tokenizer") or {})
    file = tokenizer.get(FILE_OPTION)
    if file is None:
        return contract, {}
    if not epath.Path(file).is_file():
        raise ValueError(f"model.tokenizer.{FILE_OPTION} = {file!r}: no such file to take along")
    path = f"{FOLDER}/{epath.Path(file).name}"
    tokenizer[FILE_OPTION] = path
    contract["model"] = {**model, "tokenizer": tokenizer}
    return contract, {path: epath.Path(file).read_bytes()}


def without_tokenizer(contract: Mapping[str, Any]) -> dict[str, Any]:
    """Marks a contract as that of a checkpoint whose tokenizer's file is not at hand."""
    name = contract["model"]["tokenizer"]["name"]
    return {**contract, "tokenizer": {"name": name, "sha256": None}}


def needs_file(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer's spec lacks the file that it cannot do without."""
    return tokenizer.get(FILE_OPTION) is None and tokenizer["name"] in (
        "sentencepiece",
        "tokenizer_json",
    )


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
        DamagedCheckpointError: the contract names a file that leads out of the step folder.
        ValueError: it names a module that is not among the plug-ins, or a file elsewhere and
            `tokenizer` is not given.
    """
    spec = spec_of_contract(contract)
    for path, name in outside_names(spec, "model"):
        check_name(name, plugins, path=f"{step_dir}: {path}")
    options = spec["tokenizer"]
    file = options.get(FILE_OPTION)
    if tokenizer is not None and (file is not None or needs_file(options)):
        path = str(tokenizer)
        if not epath.Path(path).is_file():
            raise ValueError(f"--tokenizer {path}: no such file")
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
        "outside a checkpoint is opened for it: give the file by --tokenizer FILE (tokenizer= in "
        "Python)"
    )


def load_tokenizer(
    step_dir: Path,
    *,
    plugins: Sequence[str] = (),
    tokenizer: str | os.PathLike[str] | None = None,
) -> Tokenizer:
    """Makes the tokenizer of a checkpoint and checks that it is the one it was trained with.

    Args:
        step_dir: of the checkpoint.
        plugins: modules that its names may import.
        tokenizer: the vocabulary's file, for a checkpoint that has none inside.

    Raises:
        ValueError: this clipjax's tokenizer of that name, or the file, is another one.
        DamagedCheckpointError: the checkpoint is not what was written.
    """
    contract = read_manifest(step_dir).contract
    spec = spec_in(step_dir, contract, plugins=plugins, tokenizer=tokenizer)
    options, length = spec["tokenizer"], spec["text"]["context_length"]
    if tokenizer is not None and options.get(FILE_OPTION) is None:
        raise ValueError(
            f"--tokenizer {tokenizer}: {options['name']!r} is shipped with clipjax; leave the flag "
            "out"
        )
    wanted = contract["tokenizer"]
    is_missing = wanted.get("sha256", "") is None
    if is_missing and tokenizer is None:
        return MissingTokenizer(step_dir, options["name"], length)
    made = make_tokenizer(options, context_length=length, plugins=plugins)
    found = made.contract()
    if is_missing:
        if made.vocab_size > spec["text"]["vocab_size"]:
            raise ValueError(
                f"--tokenizer {tokenizer} has {made.vocab_size} ids, the text tower of {step_dir} "
                f"has {spec['text']['vocab_size']}: {Path(tokenizer).name} is not its vocabulary"
            )
        return made
    if tokenizer is not None and found.get("sha256") != wanted.get("sha256"):
        raise ValueError(
            f"--tokenizer {tokenizer} is not what {step_dir} was trained with: its SHA-256 is "
            f"{found.get('sha256')}, expected {wanted.get('sha256')}"
        )
    # The spec only names the tokenizer; its vocabulary could have changed since.
    check_contract({"tokenizer": wanted}, {"tokenizer": found})
    return made


class MissingTokenizer:
    """The tokenizer of a converted file that came without its vocabulary: images only.

    Args:
        step_dir: of the checkpoint.
        name: of the tokenizer.
        context_length: tokens in a row.
    """

    pad_id = 0

    def __init__(self, step_dir: Path, name: str, context_length: int) -> None:
        self.context_length = context_length
        self._message = (
            f"{step_dir} came without the vocabulary of its tokenizer ({name}), so it takes images "
            "but no texts; give it by --tokenizer FILE"
        )

    @property
    def vocab_size(self) -> int:
        """Raises ValueError: it is not known."""
        raise ValueError(self._message)

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Raises ValueError: there is nothing to encode texts with."""
        raise ValueError(self._message)

    def decode(self, ids: Any) -> str:
        """Raises ValueError: there is nothing to decode ids with."""
        raise ValueError(self._message)

    def contract(self) -> dict[str, Any]:
        """Raises ValueError: it is not known."""
        raise ValueError(self._message)
