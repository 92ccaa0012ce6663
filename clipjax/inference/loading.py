"""`clipjax.load`: a published or trained model, read into memory; nothing is written to disk."""

import dataclasses
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import Mesh

from clipjax import ranges
from clipjax.building import check_plugins
from clipjax.checkpoint import DamagedCheckpointError, MissingTokenizer
from clipjax.data.storage.files import local_path
from clipjax.encoding.prompts import prompts_of_run
from clipjax.inference.arguments import OPTIONS, check_arguments, own_mesh
from clipjax.inference.model import Model
from clipjax.interop import hub
from clipjax.interop.clipjax_checkpoint import check_hints
from clipjax.interop.reading import read_weights, recognise
from clipjax.interop.shapes import stacked_shapes
from clipjax.interop.tensors import WeightFileError
from clipjax.interop.weights import NO_HINTS, Hints, Weights
from clipjax.models.zoo import MODELS
from clipjax.partitioning import place, replicated
from clipjax.trees import unflatten_names


class _Path(ranges.Rule):
    def _accepts(self, value: Any) -> bool:
        return isinstance(value, str | os.PathLike)

    def __str__(self) -> str:
        return "a path"


_TEXT = ranges.Optional(ranges.Text(), "unsaid")
_PAIR = ranges.Pair(ranges.Pattern(), ranges.Text())
HINT_RULES: dict[str, ranges.Rule] = {
    **dict.fromkeys(("model", "activation", "which", "strip_prefix", "format"), _TEXT),
    **dict.fromkeys(("tokenizer", "lora", "text_from"), ranges.Optional(_Path(), "unsaid")),
    **dict.fromkeys(("lora_alpha", "logit_scale"), ranges.Optional(ranges.POSITIVE, "unsaid")),
    "rename": ranges.Many(_PAIR, "pairs (regular expression, replacement)"),
    "ignore": ranges.PATTERNS,
}
"""Of the fields of `Hints` but `plugins`."""
_RULES = {**HINT_RULES, **OPTIONS}


def load(
    source: str | os.PathLike[str],
    *,
    model: str | None = None,
    activation: str | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    which: str | None = None,
    strip_prefix: str | None = None,
    rename: Sequence[tuple[str, str]] = (),
    ignore: Sequence[str] = (),
    lora: str | os.PathLike[str] | None = None,
    lora_alpha: float | None = None,
    text_from: str | os.PathLike[str] | None = None,
    logit_scale: float | None = None,
    format: str | None = None,
    plugins: Sequence[str] = (),
    mesh: Mesh | None = None,
    batch_size: int = 256,
    dtype: str = "float32",
    preprocess: str = "clipjax",
) -> Model:
    """Loads a model of any known kind: architecture, weights, tokenizer and preprocessing.

    What a file is, is told from the file: OpenAI's archive, OpenCLIP's file or folder, a directory
    or file of Hugging Face's transformers, big_vision's `.npz`, or a checkpoint or workdir of
    clipjax. `docs/interop.md` says what each tells of itself, and what is to be said of it.

    Args:
        source: path of a file or folder; or `hf:owner/name[@revision]`, a model of the Hugging Face
            Hub, which the package huggingface_hub downloads to its cache.
        model: name of the zoo (`clipjax.list_models()`), where a file alone cannot say.
        activation: `quick_gelu`, `gelu` or `gelu_tanh`, where a file alone cannot say.
        tokenizer: file of the vocabulary, where the weights come without it.
        which: key of the weights, in a file that holds several sets: `state_dict_ema`; of a
            checkpoint of clipjax `params`, `ema_params` or the name of an average.
        strip_prefix: what the names of tensors start with that is no part of them.
        rename: pairs (regular expression, replacement): other names for tensors, in order.
        ignore: regular expressions of names of tensors to leave out.
        lora: peft's file or directory of LoRA that is added, or an adapter of clipjax.
        lora_alpha: alpha of LoRA, where no adapter_config.json says it.
        text_from: a directory of transformers whose text tower completes that of source.
        logit_scale: factor of the cosines, where two towers come without it.
        format: that of the files, where they do not say: `module:Name` of your own.
        plugins: modules of yours that a checkpoint may name; nothing else that a file names is
            imported.
        mesh: devices that share a batch, of any axes; this process's first device by default.
        batch_size: most rows that are encoded at once.
        dtype: of the computation: `float32` or `bfloat16`.
        preprocess: whose pixels: `clipjax`, or `open_clip` to compare numbers with it.

    Returns:
        The model. Its variables are float32, whatever the file holds; layers are stacked:
        `[depth, ...]`.

    Raises:
        ValueError: no such file, one of an unknown kind, damaged, or that leaves open what it is:
            the message says which argument tells it. Nothing is loaded in part.

    Example:
        >>> model = clipjax.load("ViT-B-32.pt")
        >>> model.encode_text(["a cat", "a dog"]).shape
        (2, 512)
    """
    said: dict[str, Any] = {name: value for name, value in locals().items() if name in _RULES}
    check_arguments(_RULES, **said)
    options = {name: said.pop(name) for name in OPTIONS}
    said |= {"rename": tuple(rename), "ignore": tuple(ignore)}
    hints = Hints(plugins=check_plugins(plugins, path="plugins"), **said)
    return read_model(source, hints, mesh=mesh, **options)


def read_model(
    source: str | os.PathLike[str],
    hints: Hints = NO_HINTS,
    *,
    mesh: Mesh | None = None,
    **options: Any,
) -> Model:
    """As `load`; what is said of the files are `Hints`.

    Args:
        source: as for `load`.
        hints: what the files cannot say.
        mesh: devices that share a batch, of any axes; this process's first device by default.
        **options: batch_size, dtype, preprocess; see `Model`.
    """
    path = find_weights(source)
    found = recognise(path, hints)
    if found == "clipjax":
        options |= {"mesh": mesh, "plugins": hints.plugins, "tokenizer": hints.tokenizer}
        options["which"] = hints.which
        try:
            made = Model.from_checkpoint(path, **options)
        except DamagedCheckpointError as error:
            raise WeightFileError(f"{path} is a damaged checkpoint: {error}") from error
        check_hints(hints, path, made.spec["name"])
        return made
    _, weights = read_weights(path, dataclasses.replace(hints, format=found))
    # It is called after its folder, which is a commit.
    if str(source).startswith(hub.PREFIX) and weights.spec["name"] == path.name:
        spec = {**weights.spec, "name": hub.repository(str(source))}
        weights = dataclasses.replace(weights, spec=spec)
    for note in weights.notes:
        logging.info("%s: %s", source, note)
    return _in_memory(weights, own_mesh(mesh), str(source), **options)


def find_weights(source: str | os.PathLike[str]) -> Path:
    """The path of weights that a person names; those of the Hub are downloaded to its cache."""
    if str(source).startswith(hub.PREFIX):
        return hub.fetch(str(source))
    path = local_path(source, way="download it, or mount the bucket")
    if path.exists():
        return path
    missing = f"{source}: no such file or directory"
    if hub.is_address(f"{hub.PREFIX}{source}") and not path.parent.exists():
        raise ValueError(
            f'{missing}; a model of the Hugging Face Hub is written "{hub.PREFIX}{source}"'
        )
    if near := difflib.get_close_matches(str(source), MODELS, n=1, cutoff=0.75):
        found = f"{source} is" if near[0] == source else f"{missing}; near is {near[0]},"
        raise ValueError(
            f"{found} a name of the zoo, which holds no weights: give their file and what they "
            f'are, clipjax.load(FILE, model="{near[0]}"), or the Hugging Face Hub\'s, '
            '"hf:owner/name"'
        )
    return path


def variables_of(weights: Weights, mesh: Mesh) -> dict[str, Any]:
    """A model's variables, on each device of a mesh."""
    leaves = weights.stacked(stacked_shapes(weights.spec, weights.plugins))
    # One after the other: a host never holds a second copy of the model.
    variables = {name: place(leaf.read(), replicated(mesh)) for name, leaf in leaves.items()}
    return unflatten_names(variables)


def _in_memory(weights: Weights, mesh: Mesh, source: str, **options: Any) -> Model:
    spec, made = weights.tokenizer()
    if made is None:
        made = MissingTokenizer(source, spec["name"], weights.spec["text"]["context_length"])
    return Model(
        {**weights.spec, "tokenizer": spec},
        variables_of(weights, mesh),
        tokenizer=made,
        mesh=mesh,
        run_prompts=lambda: prompts_of_run({"evals": weights.evals}, source),
        plugins=weights.plugins,
        **options,
    )
