"""A model's weights on their way between formats, and the check that they are whole."""

import dataclasses
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.checkpoint import needs_file
from clipjax.interop.leaves import Leaf, Rows, by_name, their_shapes
from clipjax.interop.shapes import expected_shapes
from clipjax.interop.tensors import LazyTensor, WeightFileError
from clipjax.models.layers_layout import block_names
from clipjax.tokenizers import Tokenizer, end_id_of, make_tokenizer

MAX_LISTED = 8
_FLOAT32 = np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Hints:
    """What a person says about a file, for what the file cannot say itself.

    Attributes:
        model: a name of the zoo.
        activation: quick_gelu | gelu | gelu_tanh.
        plugins: modules that a checkpoint of clipjax may name.
        which: the set of weights, in a file that holds several.
        strip_prefix: what the names start with that is no part of them.
        rename: pairs (regular expression, replacement), applied to the names in order.
        ignore: regular expressions of names (renamed) to leave out.
        lora: a file or directory of peft's, or an adapter of clipjax's, whose differences are
            added.
        lora_alpha: their scale is this by their rank.
        text_from: a directory of transformers whose text tower is taken.
        logit_scale: the scale of the logits, where two towers come without it.
        tokenizer: file of the tokenizer's vocabulary.
        format: that of the files, a name of FORMATS or `module:Name` of one's own; None finds it by
            the files.
    """

    model: str | None = None
    activation: str | None = None
    plugins: tuple[str, ...] = ()
    which: str | None = None
    strip_prefix: str | None = None
    rename: tuple[tuple[str, str], ...] = ()
    ignore: tuple[str, ...] = ()
    lora: str | os.PathLike[str] | None = None
    lora_alpha: float | None = None
    text_from: str | os.PathLike[str] | None = None
    logit_scale: float | None = None
    tokenizer: str | os.PathLike[str] | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        for name in ("lora", "text_from", "tokenizer"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, os.path.expanduser(path))

    def of_names(self) -> list[str]:
        """The hints given that are about the names and the sets of a file of other packages."""
        names = ("which", "strip_prefix", "rename", "ignore", "lora", "lora_alpha")
        return [f"{name}=" for name in names if getattr(self, name)]


NO_HINTS = Hints()


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Differences of low rank, and what they were added to.

    Attributes:
        rank: of each.
        alpha: they are scaled by alpha / rank.
        factors: `KERNEL/a` and `KERNEL/b` by our unrolled names, see `clipjax.models.lora`.
        kernels: those that have factors, without the differences.
        base: the checkpoint that the training started from, as its config names it.
    """

    rank: int
    alpha: float
    factors: Mapping[str, LazyTensor]
    kernels: Mapping[str, LazyTensor]
    base: str


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model: its spec and its leaves.

    Attributes:
        spec: whole model spec.
        leaves: by our unrolled names without root (`batch_stats/...` for running statistics), in
            our layout, float32.
        tokenizer_files: files that the spec's tokenizer needs, by their name in the spec.
        source: what they were read from: format and path.
        ignored: names of their tensors that are no parameters, such as position_ids.
        plugins: modules that the spec may name.
        notes: what was done to read them that a person should know, one line each.
        evals: of the run that trained them, name of the evaluation -> its `templates`; they are the
            default of later ones.
        adapter: where differences of low rank are added in the leaves, these by themselves.
    """

    spec: dict[str, Any]
    leaves: Mapping[str, LazyTensor]
    tokenizer_files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    source: str = ""
    ignored: tuple[str, ...] = ()
    plugins: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    evals: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    adapter: Adapter | None = None

    def tokenizer(self) -> tuple[dict[str, Any], Tokenizer | None]:
        """Makes the model's tokenizer.

        Returns:
            Its spec, with the file as a path that can be opened, and the tokenizer: None where its
            vocabulary is not at hand.

        Raises:
            ValueError: the file is not the model's vocabulary.
        """
        spec, text = dict(self.spec["tokenizer"]), self.spec["text"]
        file = spec.get("model")
        if file is not None:
            spec["model"] = str(self.tokenizer_files.get(file, file))
        if needs_file(spec):
            return spec, None
        made = make_tokenizer(spec, context_length=text["context_length"], plugins=self.plugins)
        if made.vocab_size > text["vocab_size"]:
            raise ValueError(
                f"the tokenizer has {made.vocab_size} ids, the model's text tower has "
                f"{text['vocab_size']}: {file or spec['name']} is not its vocabulary"
            )
        end_id, wanted = end_id_of(made.contract()), text.get("eot_id")
        if wanted is not None and end_id != wanted:
            raise ValueError(
                f"the tokenizer ends a text with the id {end_id}, the model's text tower looks for "
                f"{wanted} (text.eot_id): {file or spec['name']} is not its vocabulary"
            )
        return spec, made

    def stacked(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, LazyTensor]:
        """The leaves as training names and stacks them; one block is in memory at a time.

        Args:
            shapes: of the wanted leaves by name, `params/.../blocks/...`, as `stacked_shapes` has
                them.
        """
        found = {}
        for name, shape in shapes.items():
            short = name.removeprefix("params/")
            blocks = [self.leaves[apart] for apart in block_names(short, shape)]
            found[name] = _stack(blocks, shape) if blocks else self.leaves[short]
        return found


def _stack(blocks: list[LazyTensor], shape: tuple[int, ...]) -> LazyTensor:
    def read_rows(start: int, stop: int) -> np.ndarray:
        out = np.empty((stop - start, *shape[1:]), np.float32)
        for row, block in zip(out, blocks[start:stop], strict=True):
            row[...] = block.read()
        return out

    return LazyTensor(shape, _FLOAT32, lambda: read_rows(0, shape[0]), read_rows)


def convert(
    leaves: Sequence[Leaf],
    tensors: Mapping[str, LazyTensor],
    spec: Mapping[str, Any],
    *,
    ignored: Callable[[str], bool] = lambda name: False,
    where: str = "the file",
) -> dict[str, LazyTensor]:
    """Gives our leaves of their tensors, after checking that each is there and has its shape.

    Returns:
        Our leaves, float32 on read.

    Raises:
        WeightFileError: lists the missing, the left-over and the mis-shaped tensors.
        ValueError: the table is not that of the spec.
    """
    wanted = expected_shapes(spec)
    table = by_name(leaves)
    if table.keys() != wanted.keys():
        raise ValueError(
            f"the table of leaves is not that of the model {spec.get('name')!r}: without a row "
            f"{_some(wanted.keys() - table.keys())}; no parameter {_some(table.keys() - wanted)}"
        )
    used = {Rows.of(x).name for entry in leaves for x in entry.theirs}
    missing = used - tensors.keys()
    left_over = {name for name in tensors.keys() - used if not ignored(name)}
    shapes = _wrong_shapes(leaves, tensors, wanted)
    if missing or left_over or shapes:
        lines = [f"{where} does not hold the weights of {spec.get('name')!r}:"]
        lines += [f"  missing: {_some(missing)}"] if missing else []
        advice = "(ignore= leaves tensors out, rename= gives them other names)"
        lines += [f"  of no use: {_some(left_over)} {advice}"] if left_over else []
        lines += [f"  {line}" for line in shapes[:MAX_LISTED]]
        lines += [f"  and {len(shapes) - MAX_LISTED} more"] if len(shapes) > MAX_LISTED else []
        raise WeightFileError("\n".join(lines))
    return {x.name: _ours(x, tensors, wanted[x.name]) for x in leaves}


def export(leaves: Sequence[Leaf], ours: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Gives their tensors of our leaves, float32: the way back of `convert`.

    Raises:
        ValueError: the table is not that of these leaves.
    """
    table = by_name(leaves)
    if table.keys() != ours.keys():
        raise ValueError(
            f"the table of leaves does not fit: without a row {_some(ours.keys() - table.keys())}; "
            f"no parameter {_some(table.keys() - ours.keys())}"
        )
    parts: dict[str, list[tuple[int, LazyTensor]]] = {}
    # In the order of ours: a checkpoint holds a stack of blocks as one array, and reads it once.
    for name, tensor in ours.items():
        entry = table[name]
        for i, shape in enumerate(their_shapes(entry, tensor.shape)):
            rows = Rows.of(entry.theirs[i])
            part = (rows.start, _theirs(entry, i, tensor, shape))
            parts.setdefault(rows.name, []).append(part)
    return {
        name: _concatenated([x for _, x in sorted(some, key=operator.itemgetter(0))])
        for name, some in parts.items()
    }


def _some(names: Any) -> str:
    names = sorted(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return (", ".join(names[:MAX_LISTED]) or "none") + more


def _wrong_shapes(
    leaves: Sequence[Leaf],
    tensors: Mapping[str, LazyTensor],
    wanted: Mapping[str, tuple[int, ...]],
) -> list[str]:
    lines = []
    for entry in leaves:
        shapes = their_shapes(entry, wanted[entry.name])
        for theirs, shape in zip(entry.theirs, shapes, strict=True):
            name, start, stop, parts = dataclasses.astuple(Rows.of(theirs))
            if parts > 1:
                shape = (shape[0] * parts // (stop - start), *shape[1:])
            if name in tensors and tensors[name].shape != shape:
                lines.append(f"{name} has shape {tensors[name].shape}, the model takes {shape}")
    return lines


def _ours(entry: Leaf, tensors: Mapping[str, LazyTensor], shape: tuple[int, ...]) -> LazyTensor:
    def read_one(theirs: str | Rows) -> np.ndarray:
        if isinstance(theirs, str):
            return tensors[theirs].read()
        tensor = tensors[theirs.name]
        size = tensor.shape[0] // theirs.parts
        return tensor.rows(theirs.start * size, theirs.stop * size)

    def read() -> np.ndarray:
        return _own(entry.to_ours([read_one(x) for x in entry.theirs]))

    return LazyTensor(shape, _FLOAT32, read)


def _theirs(entry: Leaf, index: int, ours: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor(shape, _FLOAT32, lambda: _own(entry.to_theirs(ours.read())[index]))


def _concatenated(parts: list[LazyTensor]) -> LazyTensor:
    if len(parts) == 1:
        return parts[0]
    shape = (sum(x.shape[0] for x in parts), *parts[0].shape[1:])
    return LazyTensor(shape, _FLOAT32, lambda: np.concatenate([x.read() for x in parts]))


def _own(value: np.ndarray) -> np.ndarray:
    # np.ascontiguousarray would turn a scalar into [1].
    return np.asarray(value, np.float32, order="C")
