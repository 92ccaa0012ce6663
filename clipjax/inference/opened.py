"""A checkpoint of any known kind, opened to be evaluated: model, and what its numbers depend on."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from clipjax.checkpoint import Choice, MissingTokenizer, make_contract, manifest_digest, read_newest
from clipjax.files import sha256
from clipjax.inference.loading import find_weights, read_model
from clipjax.inference.model import Model
from clipjax.interop.clipjax_checkpoint import STEP, check_hints
from clipjax.interop.converting import weight_digests
from clipjax.interop.reading import recognise
from clipjax.interop.weights import NO_HINTS, Hints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A model, and the checkpoint that it is from.

    Attributes:
        model: ready to encode.
        step: of the training; 0 of weights of another package, which say none.
        config: of the run that trained it; empty where it is not known.
        contract: of the model.
        sha256: of the step's manifest, or of the files of another package.
        which: of a run's parameters, where a person asks for others than those it computes with.
        told: what a person said that makes another model of the same files; None for nothing.
        hints: all that a person said.
    """

    model: Model
    step: int
    config: Mapping[str, Any]
    contract: Mapping[str, Any]
    sha256: str | None
    which: str | None = None
    told: str | None = None
    hints: Hints = NO_HINTS

    @property
    def weights_sha256(self) -> str | None:
        """Names the weights: one file may hold several, or be taken for several models."""
        chosen = self.which or self.told
        if chosen is None or self.sha256 is None:
            return self.sha256
        return sha256(f"{self.sha256} {chosen}")


def open_model(path: str | os.PathLike[str], hints: Hints = NO_HINTS, **options: Any) -> Opened:
    """Opens what `clipjax.load` reads; of a run its newest step.

    Args:
        path: a workdir, its `checkpoints` folder, one step's folder, or weights of any other kind.
        hints: what the files cannot say.
        **options: mesh, batch_size, dtype, preprocess; see `Model`.

    Raises:
        ValueError: there are no weights, they leave open what they are, or a hint is wrong.
        DamagedCheckpointError: the checkpoint is not what was written.
    """
    where = find_weights(path)
    found = recognise(where, hints)
    if found != "clipjax":
        # Before the weights are read: of several processes, each reads what was hashed.
        listed = weight_digests(where, found)
        for other in (hints.lora, hints.text_from):
            listed |= {} if other is None else weight_digests(find_weights(other), found)
        model = read_model(path, hints, **options)
        lacks = isinstance(model.tokenizer, MissingTokenizer)
        tokenizer = {} if lacks else model.tokenizer.contract()
        contract = make_contract(model.spec, tokenizer, plugins=hints.plugins)
        only = next(iter(listed.values())) if len(listed) == 1 else None
        digest = only or sha256(*(f"{name} {value}\n" for name, value in sorted(listed.items())))
        return Opened(
            model=model,
            step=STEP,
            config={},
            contract=contract,
            sha256=digest,
            told=_told(hints),
            hints=hints,
        )

    def read(choice: Choice) -> Opened:
        step_dir, manifest = choice.step_dir, choice.manifest
        model = Model.from_checkpoint(
            step_dir,
            plugins=hints.plugins,
            tokenizer=hints.tokenizer,
            which=hints.which,
            **options,
        )
        check_hints(hints, step_dir, model.spec["name"])
        return Opened(
            model=model,
            step=manifest.step,
            config=manifest.config,
            contract=manifest.contract,
            sha256=manifest_digest(step_dir),
            which=hints.which,
            hints=hints,
        )

    # One step for all of it: a run that is still going may save a newer one, and delete this one.
    return read_newest(where, read)


# Hints that say how files are read; those that name other files are told apart by their bytes.
_MAKING = (
    *("model", "activation", "which", "strip_prefix", "rename", "ignore"),
    *("lora_alpha", "logit_scale", "format"),
)


def _told(hints: Hints) -> str | None:
    said = {name: getattr(hints, name) for name in _MAKING}
    said = {name: value for name, value in said.items() if value != getattr(NO_HINTS, name)}
    return json.dumps(said, sort_keys=True) if said else None
