"""Models of the Hugging Face Hub, `hf:owner/name[@revision]`: a folder in the hub's own cache.

What is downloaded is data: configs, vocabularies and one set of weights; never code. All of it is
of one commit, which is looked up once.
"""

import re
from pathlib import Path
from typing import Any

from absl import logging

from clipjax.interop.files.opening import shard_names
from clipjax.interop.formats import FORMATS
from clipjax.interop.weights import NO_HINTS

PREFIX = "hf:"
SMALL = ("*.json", "*.txt", "*.model")
_ADDRESS = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def is_address(text: str) -> bool:
    """Whether a text is of the form `hf:owner/name[@revision]`."""
    return _ADDRESS.fullmatch(text) is not None


def repository(address: str) -> str:
    """The `owner/name` of `hf:owner/name[@revision]`."""
    return address.removeprefix(PREFIX).partition("@")[0]


def fetch(address: str) -> Path:
    """Downloads what of a model is not in the cache yet.

    Args:
        address: `hf:owner/name[@revision]`; the revision is a branch, a tag or a commit, by default
            the main branch.

    Returns:
        The folder, of one commit; its name is the commit's.

    Raises:
        ValueError: the address is none, the hub has no such model, huggingface_hub is not here, or
            there is no network and the cache lacks a file: the message says what to download.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(f"{address!r} is no address: expected hf:owner/name or hf:owner/name@TAG")
    repo, revision = match[1], match[2]
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError as error:
        raise ValueError(
            f"{address} needs the package huggingface_hub: pip install 'clipjax[hub]'; or download "
            "the model's files to a folder and give its path"
        ) from error
    try:
        folder = Path(
            huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=[*SMALL])
        )
        _fetch_weights(huggingface_hub, folder, repo, address)
    except errors.LocalEntryNotFoundError as error:
        raise ValueError(_offline(address, repo, revision, error)) from error
    except (errors.HfHubHTTPError, errors.HFValidationError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{address}: the hub does not give it: {text:.300}") from error
    if revision != folder.name:
        logging.info("%s is %s%s@%s, which pins it", address, PREFIX, repo, folder.name)
    return folder


def _fetch_weights(library: Any, folder: Path, repo: str, address: str) -> None:
    """Downloads the first of the files of weights that the format of the folder's config reads."""
    known = {name: entry for name, entry in FORMATS.items() if entry.weight_files}
    found = [e for e in known.values() if e.recognises(folder, NO_HINTS)]
    if not found:
        inside = ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"
        raise ValueError(
            f"{address} is of none of the formats {', '.join(known)}, which a config tells; of "
            f"{', '.join(SMALL)} it has {inside}. Download its file of weights and load that"
        )
    missing = None
    for name in found[0].weight_files:
        files = [name]
        if name.endswith(".index.json"):  # downloaded with the configs, if there is one
            files = shard_names(folder / name) if (folder / name).is_file() else []
        try:
            for file in files:
                library.hf_hub_download(repo, file, revision=folder.name)
            if files:
                return
        except library.errors.LocalEntryNotFoundError as error:
            missing = error  # offline; another file may be in the cache
        except library.errors.EntryNotFoundError:
            continue
    if missing is not None:
        raise missing
    raise ValueError(f"{address} holds no weights: none of {', '.join(found[0].weight_files)}")


def _offline(address: str, repo: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import constants

    files = " ".join(f"'{pattern}'" for pattern in SMALL)
    weights = list(dict.fromkeys(e.weight_files[0] for e in FORMATS.values() if e.weight_files))
    at = f" --revision {revision}" if revision else ""
    why = " ".join(str(error.__cause__ or error).split())
    return (
        f"{address} is not whole in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} "
        f"cannot be reached ({why:.150}). Where there is a network, run `hf download {repo}{at} "
        f"--include {files} {weights[0]} --local-dir FOLDER` (or its file of weights "
        f"of another name: {' or '.join(weights)}), bring FOLDER here and load it by its path"
    )
