"""A checkpoint's tokenizer: its file lies in the step folder, so that nothing else is needed.

<step>/tokenizer/<file>, which the contract names relative to the step folder and the manifest
records like every other file.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from clipjax.building import UnknownFieldError
from clipjax.checkpoint.contract import check_contract
from clipjax.checkpoint.manifest import read_manifest
from clipjax.checkpoint.model_spec import FILE_OPTION, FOLDER, spec_in
from clipjax.tokenizers import Tokenizer, make_tokenizer


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
    file = os.path.expanduser(file)
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


def load_tokenizer(
    step_dir: Path,
    *,
    plugins: Sequence[str] = (),
    tokenizer: str | os.PathLike[str] | None = None,
) -> Tokenizer:
    """Makes the tokenizer of a checkpoint and checks that it is the one it was trained with.

    Raises:
        ValueError: this clipjax's tokenizer of that name, or the file, is another one.
        DamagedCheckpointError: the checkpoint is not what was written.
    """
    contract = read_manifest(step_dir).contract
    spec = spec_in(step_dir, contract, plugins=plugins, tokenizer=tokenizer)
    options, length = spec["tokenizer"], spec["text"]["context_length"]
    if tokenizer is not None and options.get(FILE_OPTION) is None:
        raise ValueError(
            f"tokenizer={str(tokenizer)!r}: {options['name']!r} is shipped with clipjax; leave it "
            "out"
        )
    wanted = contract["tokenizer"]
    is_missing = wanted.get("sha256", "") is None
    if is_missing and tokenizer is None:
        return MissingTokenizer(step_dir, options["name"], length)
    try:
        made = make_tokenizer(options, context_length=length, plugins=plugins)
    except UnknownFieldError as error:
        raise ValueError(f"{step_dir}: {error}; it may be from a newer clipjax") from error
    found = made.contract()
    if made.vocab_size > spec["text"]["vocab_size"]:  # others have no row of the embedding
        who = (
            f"the tokenizer of {step_dir}" if tokenizer is None else f"tokenizer={str(tokenizer)!r}"
        )
        raise ValueError(
            f"{who} has {made.vocab_size} ids, the text tower of {step_dir} has "
            f"{spec['text']['vocab_size']}: it is not its vocabulary"
        )
    if is_missing:
        return made
    if tokenizer is not None and found.get("sha256") != wanted.get("sha256"):
        raise ValueError(
            f"tokenizer={str(tokenizer)!r} is not what {step_dir} was trained with: its SHA-256 is "
            f"{found.get('sha256')}, expected {wanted.get('sha256')}"
        )
    # The spec only names the tokenizer; its vocabulary could have changed since.
    check_contract({"tokenizer": wanted}, {"tokenizer": found})
    return made


_VOCABULARIES = {
    "sentencepiece": "its SentencePiece model (spiece.model, tokenizer.model)",
    "tokenizer_json": "its tokenizer.json",
    "wordpiece": "its vocab.txt",
}


class MissingTokenizer:
    """The tokenizer of a converted file that came without its vocabulary: images only."""

    pad_id = 0

    def __init__(self, where: Path | str, name: str, context_length: int) -> None:
        self.context_length = context_length
        self._message = (
            f"{where} came without the vocabulary of its tokenizer ({name}), so it takes images "
            f"but no texts; give {_VOCABULARIES.get(name, 'it')} by tokenizer=FILE"
        )

    @property
    def vocab_size(self) -> int:
        """Raises ValueError: it is not known."""
        raise ValueError(self._message)

    def contract(self) -> Any:
        """Raises ValueError: it is not known."""
        raise ValueError(self._message)

    def __call__(self, texts: list[str]) -> Any:
        """Raises ValueError: there is nothing to encode texts with."""
        raise ValueError(self._message)

    def decode(self, ids: Any) -> Any:
        """Raises ValueError: there is nothing to decode ids with."""
        raise ValueError(self._message)
