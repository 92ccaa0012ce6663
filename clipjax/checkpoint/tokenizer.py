"""A checkpoint's tokenizer: its file lies in the step folder, so that nothing else is needed.

<step>/tokenizer/<file>, which the contract names relative to the step folder and the manifest
records like every other file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
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
    """
    contract = dict(contract)
    model = dict(contract.get("model") or {})
    tokenizer = dict(model.get("tokenizer") or {})
    file = tokenizer.get(FILE_OPTION)
    if not isinstance(file, str) or not epath.Path(file).is_file():
        return contract, {}
    path = f"{FOLDER}/{epath.Path(file).name}"
    tokenizer[FILE_OPTION] = path
    contract["model"] = {**model, "tokenizer": tokenizer}
    return contract, {path: epath.Path(file).read_bytes()}


def without_tokenizer(contract: Mapping[str, Any]) -> dict[str, Any]:
    """Marks a contract as that of a checkpoint whose tokenizer's file is not at hand."""
    name = contract["model"]["tokenizer"]["name"]
    return {**contract, "tokenizer": {"name": name, "sha256": None}}


def spec_in(
    step_dir: Path, contract: Mapping[str, Any], *, plugins: Sequence[str] = ()
) -> dict[str, Any]:
    """The model spec of a checkpoint, with its tokenizer's file as a path that can be opened.

    Args:
        step_dir: of the checkpoint.
        contract: in its manifest.
        plugins: modules that its names may import, see `clipjax.building.resolve`.

    Raises:
        DamagedCheckpointError: the contract names a file outside the step folder.
        ValueError: it names a module that is not among the plug-ins.
    """
    spec = spec_of_contract(contract)
    for path, name in outside_names(spec, "model"):
        check_name(name, plugins, path=f"{step_dir}: {path}")
    file = (spec.get("tokenizer") or {}).get(FILE_OPTION)
    # Checkpoints of before the files were taken in name a file anywhere, by its whole path.
    if not isinstance(file, str) or not file.startswith(f"{FOLDER}/"):
        return spec
    if ".." in PurePosixPath(file).parts:
        raise DamagedCheckpointError(f"{step_dir} names a file outside its folder: {file!r}")
    return {**spec, "tokenizer": {**spec["tokenizer"], FILE_OPTION: str(step_dir / file)}}


def load_tokenizer(step_dir: Path, *, plugins: Sequence[str] = ()) -> Tokenizer:
    """Makes the tokenizer of a checkpoint and checks that it is the one it was trained with.

    Args:
        step_dir: of the checkpoint.
        plugins: modules that its names may import.

    Raises:
        ValueError: this clipjax's tokenizer of that name is another one.
        DamagedCheckpointError: the checkpoint is not what was written.
    """
    contract = read_manifest(step_dir).contract
    spec = spec_in(step_dir, contract, plugins=plugins)
    length = spec["text"]["context_length"]
    if contract["tokenizer"].get("sha256", "") is None:
        return MissingTokenizer(step_dir, spec["tokenizer"]["name"], length)
    tokenizer = make_tokenizer(spec["tokenizer"], context_length=length, plugins=plugins)
    # The spec only names the tokenizer; its vocabulary could have changed since.
    check_contract({"tokenizer": contract["tokenizer"]}, {"tokenizer": tokenizer.contract()})
    return tokenizer


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
            "but no texts; convert it again with --tokenizer FILE"
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
