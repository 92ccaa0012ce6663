"""Whether a run may go on from a checkpoint of another config."""

from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from clipjax.checkpoint.contract import comparable, differences, warn_of_sources
from clipjax.checkpoint.manifest import Manifest
from clipjax.config import default_config, iterate_leaves, to_plain
from clipjax.losses import PAIR_RULES
from clipjax.redaction import redact_tree

# What a difference between the checkpoint's config and the run's means, by the longest prefix of
# the dotted key that is listed. `fatal`: it would be another run. `ask`: the run would go on with
# another recipe, which config.allow_config_change permits. `free`: no influence on the result, or
# on the order of float additions only.
CHANGES = {
    "": "ask",
    "allow_config_change": "free",
    "attention": "free",
    "batch_size": "fatal",
    "checkpoint": "free",
    "collapse_steps": "free",
    "data.max_bad_fraction": "free",
    "data.num_workers": "free",
    "data.prefetch": "free",
    "data.source": "free",  # data may move; its fingerprint may not change
    "data.token_cache_bytes": "free",
    "data.workers": "free",
    "diagnostics": "free",
    "distributed": "free",
    "eval_time_fraction": "free",
    "evals": "free",
    "hang_timeout_s": "free",
    "init": "free",  # the checkpoint comes before it
    "log_every": "free",
    "logical_axes": "free",
    "lora": "fatal",
    "loss.layout": "free",
    "loss.tile_size": "free",
    "max_skipped_fraction": "free",
    "max_skipped_in_a_row": "free",
    "mesh": "free",
    "micro_batch_size": "free",
    "model": "fatal",
    "model.tokenizer.model": "free",  # the file may move; the contract has its SHA-256
    "optimizer.mu_dtype": "fatal",
    "optimizer.name": "fatal",
    "plugins": "free",
    "remat": "free",
    "report": "free",
    "resume": "free",
    "scan_layers": "free",
    "scan_unroll": "free",
    "seed": "fatal",
    "sharding": "free",
    "start_timeouts": "free",
    "target": "free",
    "tensorboard": "free",
    "trackers": "free",
}


# Free for a run that goes on; one that is done was done with them.
_OF_A_RUN = ("data", "evals", "init")


def kind_of_change(key: str) -> str:
    """Says whether a change of a dotted config key is `fatal`, `ask` or `free`."""
    parts = key.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts), -1, -1))
    return next(CHANGES[prefix] for prefix in prefixes if prefix in CHANGES)


def check_resume(
    manifest: Manifest, metadata: Mapping[str, Any], *, where: str = "the checkpoint"
) -> None:
    """Compares a checkpoint with the run that wants to go on from it.

    Raises:
        ValueError: names each key that must be the same, with both values.
    """
    config = metadata["config"]
    warn_of_sources(manifest.contract, metadata["contract"].get("plugins") or {}, where=where)
    fatal = [
        ("dataset_fingerprint", manifest.dataset_fingerprint, metadata["dataset_fingerprint"]),
        ("global_batch_size", manifest.global_batch_size, metadata["global_batch_size"]),
        ("seed", manifest.seed, metadata["seed"]),
    ]
    fatal = [(key, old, new) for key, old, new in fatal if old != new]
    fatal += differences(
        comparable(manifest.contract), comparable(metadata["contract"]), "contract."
    )
    ask = []
    defaults = dict(iterate_leaves(to_plain(default_config())))
    # Without credentials: an older clipjax wrote them, and a new token is no other config.
    for key, old, new in differences(redact_tree(manifest.config), redact_tree(config)):
        if old == "absent" and key in defaults and defaults[key] == new:
            if key == "loss.dtype" and _loss_is_rounded(config):
                logging.warning(
                    "resuming with another config.loss.dtype: 'float32' before there was a choice, "
                    "'auto' now, which is bfloat16 here; config.loss.dtype=float32 keeps it"
                )
            continue  # younger than the checkpoint; all others default to what was done before
        if old == "absent" and (key, new) == ("loss.dtype", "float32"):
            continue
        kind = kind_of_change(key)
        if kind == "fatal":
            fatal.append((f"config.{key}", old, new))
        elif kind == "ask":
            ask.append((f"config.{key}", old, new))
    if fatal:
        raise ValueError(
            f"workdir of another config: {where} differs from this run in\n{_table(fatal)}\n"
            "Give these values back to go on with it, or another workdir to start a run"
        )
    if ask and not config.get("allow_config_change", False):
        raise ValueError(
            f"workdir of another config: the recipe of {where} differs from this run's in\n"
            f"{_table(ask)}\nGive these values back, or add config.allow_config_change=true to "
            "go on with the new ones, or another workdir to start a run"
        )
    for key, old, new in ask:
        logging.warning("resuming with another %s: %r before, %r now", key, old, new)


def is_same_run(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a config means a run that another one has done: its recipe, data and evaluations.

    Args:
        old: of the run's checkpoint.
        new: as `Resolved.config`.
    """
    defaults = dict(iterate_leaves(to_plain(default_config())))
    for key, before, now in differences(redact_tree(old), redact_tree(new)):
        younger = before == "absent" and key in defaults and defaults[key] == now
        is_free = kind_of_change(key) == "free" and key.split(".")[0] not in _OF_A_RUN
        if not (younger or is_free):
            return False
    return True


def _loss_is_rounded(config: Mapping[str, Any]) -> bool:
    """Whether `loss.dtype = auto` multiplies in bfloat16, where it was once float32."""
    of_pairs = config["loss"].get("name") in PAIR_RULES
    return of_pairs and config.get("dtype") != "float32" and jax.default_backend() != "cpu"


def _table(rows: list[tuple[str, Any, Any]]) -> str:
    return "\n".join(f"  {key}: {old!r} in the checkpoint, {new!r} now" for key, old, new in rows)
