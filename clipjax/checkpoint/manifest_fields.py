"""What the fields of a manifest may hold: a checkpoint may come from anybody."""

import math
import re
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from clipjax import __version__
from clipjax.ranges import Choice, Group, Many, Number, Optional, Rule, Text, show, whole

_MAX_INT = 2**63 - 1
_MAX_FLOAT = sys.float_info.max
_COUNT = whole(0, _MAX_INT)
_DTYPES = (
    *("bool", "bfloat16", "float16", "float32", "float64"),
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (4, 8, 16, 32, 64)),
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LARGEST_LEAF = 2**48  # elements

FIELDS: dict[str, Rule] = {
    "step": _COUNT,
    "config": Group("the run's config"),
    "contract": Group("of the model"),
    "dataset_fingerprint": Text(),
    "global_batch_size": _COUNT,
    "seed": Number(-_MAX_INT, _MAX_INT, whole=True),
    "leaves": Many(Group("of a leaf"), "leaves"),
    "files": Many(Group("of a file"), "files"),
    "versions": Group("library -> version"),
    "config_sha256": Text(),
    "format_version": whole(),
    "bad_examples": Group("reason -> count"),
    "metrics": Group("metric -> value"),
    "skipped_in_a_row": _COUNT,
}
LEAF: dict[str, Rule] = {
    "name": Text("a name", may_be_empty=False),
    "shape": Many(whole(0, _LARGEST_LEAF), "sizes"),
    "dtype": Choice(_DTYPES),
    "sha256": Optional(Text(), "not known"),
    "block_shape": Many(whole(1, _LARGEST_LEAF), "sizes"),
    "blocks": Many(Text(), "SHA-256 digests"),
}
FILE: dict[str, Rule] = {
    "path": Text("a path inside the step's folder", may_be_empty=False),
    "size": _COUNT,
    "sha256": Text(),
}
CONTRACT = ("model", "preprocess", "logit_scale", "tokenizer", "plugins")
_OPTIONAL = ("bad_examples", "metrics", "skipped_in_a_row", "block_shape", "blocks")


class NewerError(ValueError):
    """A file holds a field that this clipjax does not know."""


def check_manifest(fields: Mapping[str, Any]) -> None:
    """Checks the fields of a manifest, each by itself.

    Raises:
        NewerError: a field is unknown.
        ValueError: one is missing, or holds something else than it should.
    """
    writer = fields["versions"].get("clipjax") if _is_map(fields.get("versions")) else None
    _check_group(fields, FIELDS, "", writer)
    for name, text in fields["versions"].items():
        Text().check(text, f"versions.{name}")
    for name, value in fields.get("metrics", {}).items():
        Number(-_MAX_FLOAT, _MAX_FLOAT).check(value, f"metrics.{show(name)[1:-1]}")
    for number, leaf in enumerate(fields["leaves"]):
        path = f"leaves[{number}]"
        _check_group(leaf, LEAF, f"{path}.", writer)
        _check_parts(leaf["name"], f"{path}.name")
        if len(leaf["shape"]) > 32 or math.prod(leaf["shape"]) > _LARGEST_LEAF:
            raise ValueError(
                f"{path}.shape = {show(leaf['shape'])}: no array has so many axes or elements"
            )
        _check_blocks(leaf, path)
    for number, file in enumerate(fields["files"]):
        path = f"files[{number}]"
        _check_group(file, FILE, f"{path}.", writer)
        _check_parts(file["path"], f"{path}.path")
        if not _SHA256.fullmatch(file["sha256"]):
            raise ValueError(f"{path}.sha256 = {show(file['sha256'])}: expected 64 hex digits")
    for where, key in (("leaves", "name"), ("files", "path")):
        twice = [x for x, n in Counter(each[key] for each in fields[where]).items() if n > 1]
        if twice:
            raise ValueError(f"{where}: {show(twice[0])} stands twice")
    for name in fields["contract"]:
        if name not in CONTRACT:
            raise NewerError(newer(f"contract.{show(name)[1:-1]}", writer))
    sources = fields["contract"].get("plugins", {})
    Group("module:Name -> SHA-256 of its source").check(sources, "contract.plugins")
    for name, digest in sources.items():
        Text().check(digest, f"contract.plugins.{show(name)[1:-1]}")
    evals = fields["config"].get("evals", {})
    if not _is_map(evals) or not all(map(_is_map, evals.values())):
        raise ValueError(f"config.evals = {show(evals)}: expected name -> a dict")


def _check_blocks(leaf: Mapping[str, Any], path: str) -> None:
    sizes, blocks = leaf.get("block_shape", []), leaf.get("blocks", [])
    if not sizes and not blocks:
        return
    pairs = list(zip(leaf["shape"], sizes, strict=False))
    count = math.prod(n // b for n, b in pairs)
    fits = len(sizes) == len(leaf["shape"]) and not any(n % b for n, b in pairs)
    if not fits or count != len(blocks) or leaf["sha256"] is not None:
        raise ValueError(
            f"{path} has {len(blocks)} blocks of {show(sizes)}: they do not make up an array of "
            f"{show(leaf['shape'])} that has no digest as a whole"
        )
    for digest in blocks:
        if not _SHA256.fullmatch(digest):
            raise ValueError(f"{path}.blocks holds {show(digest)}: expected 64 hex digits")


def newer(where: str, writer: Any = None) -> str:
    """The message about a field that is unknown, or names what is."""
    wrote = ""
    if isinstance(writer, str) and writer != __version__:
        wrote = f", clipjax {writer} by its own words: use that one"
    return (
        f"{where} is unknown to this clipjax ({__version__}); it may be from a newer clipjax"
        f"{wrote:.80}"
    )


def _check_group(fields: Any, rules: Mapping[str, Rule], prefix: str, writer: str | None) -> None:
    Group("see above").check(fields, prefix.rstrip(".") or "the manifest")
    for name in fields:
        if name not in rules:
            raise NewerError(newer(f"{prefix}{show(name)[1:-1]}", writer))
    for name, rule in rules.items():
        if name in fields:
            rule.check(fields[name], f"{prefix}{name}")
        elif name not in _OPTIONAL:
            raise ValueError(f"{prefix}{name} is missing: it lacks {rule}")


def _check_parts(path: str, where: str) -> None:
    """Refuses what leads elsewhere, whatever system reads it."""
    parts = path.split("/")
    odd = any(part in ("", ".", "..") for part in parts) or ":" in parts[0] or "\\" in path
    if odd or not path.isprintable():
        raise ValueError(f"{where} = {show(path)} leads outside its folder, or is no path a/b/c")


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)
