"""The model contract: all that it takes to use a checkpoint's parameters as they were trained.

A wrong activation, layer-norm epsilon or padding rule loads without an error and costs accuracy
without a word, so it travels with the parameters and is compared.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

from clipjax.building import source_digests
from clipjax.config import iterate_leaves, to_plain

_warned: set[tuple[str, ...]] = set()  # once a process, however often a checkpoint is opened


def make_contract(
    spec: Mapping[str, Any], tokenizer: Mapping[str, Any], *, plugins: Sequence[str] = ()
) -> dict[str, Any]:
    """Makes the contract of a model, as plain JSON data.

    Args:
        spec: the model spec (a row of `clipjax.models.zoo.MODELS`, changes merged in); it holds
            the preprocessing and the logit-scale policy.
        tokenizer: `Tokenizer.contract()`.
        plugins: modules that the spec's names may import; the contract keeps what their source is
            known by.
    """
    spec = dict(to_plain(spec))
    sources = source_digests(spec, plugins)
    return {
        **({"plugins": sources} if sources else {}),
        "preprocess": spec.pop("preprocess", None),
        "logit_scale": spec.pop("logit_scale", None),
        "model": spec,
        "tokenizer": to_plain(tokenizer),
    }


def spec_of_contract(contract: Mapping[str, Any]) -> dict[str, Any]:
    """Gives back the model spec that `make_contract` was given."""
    parts = {name: contract[name] for name in ("preprocess", "logit_scale")}
    return {**contract["model"], **parts}


def check_contract(
    found: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    free: Iterable[str] = (),
    override: Iterable[str] = (),
) -> None:
    """Compares the contract of a checkpoint with the one that its parameters are to be used by.

    Args:
        found: contract in the checkpoint's manifest.
        wanted: contract of the use.
        free: dotted keys, with all below them, that the use may change as it likes.
        override: dotted keys that may differ because somebody said so: each difference is a
            warning.

    Raises:
        ValueError: names each difference with both values, or an override that is no key.
    """
    free, override = tuple(free), tuple(override)
    found, wanted = comparable(found), comparable(wanted)
    keys = {key for side in (found, wanted) for key, _ in iterate_leaves(side)}
    for key in override:
        if not any(_covers((key,), each) for each in keys):
            raise ValueError(
                f"contract override {key!r} is no key of the contract; its keys are "
                f"{', '.join(sorted(found.keys() | wanted.keys()))} and those below them"
            )
    lines = []
    for key, old, new in differences(found, wanted):
        if _covers(free, key):
            continue
        if _covers(override, key):
            logging.warning("contract override: %s is %r in the checkpoint, %r here", key, old, new)
        else:
            lines.append(f"  {key}: {old!r} in the checkpoint, {new!r} here")
    if lines:
        raise ValueError(
            "the checkpoint was made for another model contract:\n"
            + "\n".join(lines)
            + "\nUse the values of the checkpoint; to go on regardless, name the keys as overrides"
        )


def _covers(names: tuple[str, ...], key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def comparable(contract: Mapping[str, Any]) -> dict[str, Any]:
    """A contract without what may change: where its tokenizer's file is (the SHA-256 is compared),
    and the source of plug-ins, of which `warn_of_sources` speaks."""
    plain = to_plain(contract)
    plain.pop("plugins", None)
    tokenizer = (plain.get("model") or {}).get("tokenizer")
    if isinstance(tokenizer, dict):
        tokenizer.pop("model", None)
    return plain


def differences(found: Any, wanted: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted key, found, wanted) where two JSON values differ; absent is 'absent'."""
    old, new = dict(iterate_leaves(found, prefix)), dict(iterate_leaves(wanted, prefix))
    for key in sorted(old.keys() | new.keys()):
        # 1 and 1.0 are one value, True and 1 are not.
        before, after = old.get(key, "absent"), new.get(key, "absent")
        if before != after or isinstance(before, bool) != isinstance(after, bool):
            yield key, before, after


def warn_of_sources(found: Mapping[str, Any], now: Mapping[str, str], *, where: str) -> None:
    """Says which plug-ins have another source than a checkpoint was made with."""
    for name, digest in (found.get("plugins") or {}).items():
        told = (where, name, digest, now.get(name, digest))
        if now.get(name, digest) == digest or told in _warned:
            continue
        _warned.add(told)
        logging.warning(
            "%s was made with another source of %s: SHA-256 %.12s there, %.12s here; what it "
            "computes may differ",
            *told,
        )
