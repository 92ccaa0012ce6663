"""LoRA's differences added to the weights they were trained on: W + scale * B A.

As peft writes them: beside the weights in one file (`q_proj.base_layer.weight`,
`q_proj.lora_A.default.weight`), or alone in an adapter's file. Also with plain names (`lora_A`
beside `weight`), as loralib has them. The scale is no tensor: adapter_config.json says it, or a
person does.

Reference: arXiv:2106.09685; arXiv:2312.03732 (the scale of use_rslora).
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipjax.interop.files import open_tensors
from clipjax.interop.section import Section, read_json
from clipjax.interop.tensors import LazyTensor, WeightFileError
from clipjax.interop.weights import Hints
from clipjax.interop.wrappers import without_wrappers
from clipjax.ranges import POSITIVE

CONFIG = "adapter_config.json"
MAX_PATTERN, MAX_PATTERNS = 200, 4096
FILES = ("adapter_model.safetensors", "adapter_model.bin")
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])"
    r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?P<bias>\.bias)?(?:\.weight)?"
)
_WRAPPED = re.compile(r"\.(?:base_layer|original_module|modules_to_save\.[^.]+)(?=\.)")
# Patterns of a config are expressions from elsewhere: only those are tried that end soon.
_PATTERN = re.compile(r"[\w.\\^$|-]*(?:\*[\w.\\^$|-]*){0,2}")
_MAGNITUDE = "lora_magnitude_vector"
# What a layer calls the tensor that is adapted; a torch attention's is its q, k and v.
_BASE_NAMES = ("weight", "in_proj_weight")
# A start that changes the weights themselves leaves differences of those, not of the published.
_STARTS = (True, False, "gaussian", "eva", "orthogonal")
# Fields of adapter_config.json that training, finding or naming is about.
_NO_MATTER = """
    auto_mapping base_model_name_or_path bias corda_config ensure_weight_tying eva_config
    exclude_modules inference_mode layers_pattern layers_to_transform loftq_config lora_dropout
    megatron_config megatron_core modules_to_save peft_version qalora_group_size revision
    runtime_config target_modules task_type
"""

Tensors = dict[str, LazyTensor]


@dataclasses.dataclass(frozen=True)
class _Pair:
    """The two factors of a layer's difference; `b` of rank rows of `a` and columns of `b`."""

    a: LazyTensor
    b: LazyTensor
    is_embedding: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def merged(
    tensors: Mapping[str, LazyTensor], path: Path, hints: Hints
) -> tuple[Tensors, list[str]]:
    """Adds the differences that are in the file, or in the adapter that `hints.lora` names.

    Args:
        tensors: of the file, without wrappers.
        path: of the file; a config beside it says the scale.
        hints: `lora` and `lora_alpha`.

    Returns:
        The tensors without factors, and what to say of it.

    Raises:
        WeightFileError: a factor is alone, of another shape, of no layer, or of a method that is
            not plain LoRA; or the scale is not known.
        ValueError: a hint is wrong or has no effect.
    """
    if hints.lora is not None:
        folder, factors = _adapter(Path(hints.lora))
        if any(_FACTOR.fullmatch(name) for name in tensors):
            raise WeightFileError(
                "the file holds LoRA's factors itself, beside those of lora=; merge those first"
            )
        where = str(hints.lora)
    else:
        folder, factors, where = path.parent, dict(tensors), "the file"
        if not any(_FACTOR.fullmatch(name) for name in tensors):
            if hints.lora_alpha is not None:
                raise ValueError(
                    f"lora_alpha={hints.lora_alpha}: {path} holds no lora_A and lora_B"
                )
            return dict(tensors), []
    pairs, rest = _pairs(factors)
    if hints.lora is not None:
        base, replaced = _with_replaced(_without_adapter_names(tensors), rest, where)
    else:
        base, replaced = _without_adapter_names(rest), 0
    scales = _scales(pairs, folder, hints, where)
    found = dict(base)
    for module, pair in pairs.items():
        name = _base_name(module, base, where)
        found[name] = _sum(name, base[name], pair, scales[module])
    return found, [_note(pairs, scales, where, replaced)]


def _adapter(path: Path) -> tuple[Path, Tensors]:
    """The folder of an adapter, and its tensors."""
    file = path
    if path.is_dir():
        files = [path / name for name in FILES if (path / name).is_file()]
        if not files:
            raise ValueError(f"lora={str(path)!r}: it holds none of {', '.join(FILES)}")
        file = files[0]
    try:
        tensors, _ = without_wrappers(open_tensors(file).tensors)
    except WeightFileError as error:  # not of the weights, whose name is put before others
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"lora={str(path)!r}: {reason}") from error
    if not any(_FACTOR.fullmatch(name) for name in tensors):
        raise ValueError(f"lora={str(path)!r}: it holds no lora_A and lora_B")
    return file.parent, tensors


def _pairs(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, _Pair], Tensors]:
    """The pairs of factors by their layer, and what is no factor."""
    sides: dict[str, dict[str, tuple[LazyTensor, bool]]] = {}
    rest, adapters = {}, set()
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            rest[name] = tensor
            continue
        if match["bias"]:
            raise WeightFileError(f"{name}: LoRA with a bias of its own is not supported")
        module = match["module"].replace(".base_layer", "")
        adapters.add(match["adapter"])
        sides.setdefault(module, {})[match["side"]] = (tensor, match["embedding"] is not None)
    if len(adapters) > 1:
        names = ", ".join(sorted(str(name) for name in adapters))
        raise WeightFileError(
            f"it holds several adapters ({names}); leave all but one with ignore="
        )
    for name in rest:
        if _MAGNITUDE in name:
            raise WeightFileError(f"{name}: it is DoRA's, which is not supported; merge it in peft")
    pairs = {}
    for module, both in sides.items():
        if len(both) != 2:
            raise WeightFileError(
                f"{module} has lora_{next(iter(both))} alone, and not both of two"
            )
        (a, is_embedding), (b, _) = both["A"], both["B"]
        ok = len(a.shape) == len(b.shape) and len(a.shape) in (2, 4) and a.shape[0] == b.shape[1]
        if not ok or b.shape[2:] not in ((), (1, 1)):
            raise WeightFileError(
                f"{module}: lora_A of shape {a.shape} and lora_B of shape {b.shape} have no product"
            )
        pairs[module] = _Pair(a, b, is_embedding)
    return pairs, rest


def _without_adapter_names(tensors: Mapping[str, LazyTensor]) -> Tensors:
    """Names as they are without peft's wrapping; a layer trained whole goes before its original."""
    trained = {_WRAPPED.sub("", name) for name in tensors if ".modules_to_save." in name}
    found: Tensors = {}
    for name, tensor in tensors.items():
        plain = _WRAPPED.sub("", name)
        if ".original_module." in name and plain in trained:
            continue
        if plain in found:
            raise WeightFileError(f"two tensors are {plain} without peft's names, one is {name}")
        found[plain] = tensor
    return found


def _with_replaced(tensors: Tensors, rest: Tensors, where: str) -> tuple[Tensors, int]:
    """The weights with the layers that an adapter holds whole, such as trained biases."""
    whole = _without_adapter_names(rest)
    for name, tensor in whole.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            shape = tensors[name].shape if name in tensors else "missing"
            raise WeightFileError(
                f"{where} holds {name} of shape {tensor.shape}; in the weights it is {shape}"
            )
    return {**tensors, **whole}, len(whole)


def _base_name(module: str, base: Mapping[str, LazyTensor], where: str) -> str:
    names = [f"{module}.{name}" for name in _BASE_NAMES if f"{module}.{name}" in base]
    if not names:
        first = next(iter(base), "nothing")
        raise WeightFileError(
            f"{where} has lora_A and lora_B of {module}, whose weights are not there: give the "
            f"weights as source= and the adapter as lora= (tensors look like {first!r})"
        )
    return names[0]


def _sum(name: str, base: LazyTensor, pair: _Pair, scale: float) -> LazyTensor:
    """W + scale * B A, computed in float64 and rounded once, so that no order of sums shows."""
    a, b = pair.a, pair.b
    shape = (b.shape[0], *a.shape[1:])
    if (shape[::-1] if pair.is_embedding else shape) != base.shape:
        raise WeightFileError(
            f"{name} has shape {base.shape}, its LoRA is of shapes {b.shape} and {a.shape}"
        )

    def read() -> np.ndarray:
        left = b.read().astype(np.float64).reshape(b.shape[0], -1)
        product = left @ a.read().astype(np.float64).reshape(a.shape[0], -1)
        product = product.T if pair.is_embedding else product.reshape(shape)
        return (base.read().astype(np.float64) + scale * product).astype(np.float32)

    return LazyTensor(base.shape, np.dtype(np.float32), read)


def _scales(pairs: Mapping[str, _Pair], folder: Path, hints: Hints, where: str) -> dict[str, float]:
    """The scale of each layer.

    Raises:
        WeightFileError: nobody says alpha, or the config is of another method or rank.
        ValueError: alpha is no positive number, or contradicts the config.
    """
    alpha, file = hints.lora_alpha, folder / CONFIG
    if alpha is not None and not POSITIVE.accepts(alpha):
        raise ValueError(f"lora_alpha={alpha}: expected a positive number")
    if file.is_file():
        return _scales_of_config(file, alpha, pairs)
    if alpha is None:
        ranks = ", ".join(str(rank) for rank in sorted({pair.rank for pair in pairs.values()}))
        raise WeightFileError(
            f"{where} holds LoRA of {len(pairs)} layers (rank {ranks}), and no {CONFIG} beside it "
            "says their alpha, by which they are scaled: add lora_alpha=NUMBER"
        )
    return {module: alpha / pair.rank for module, pair in pairs.items()}


def _scales_of_config(
    file: Path, alpha: float | None, pairs: Mapping[str, _Pair]
) -> dict[str, float]:
    section = Section(read_json(file), str(file), {"peft_type": "LORA", "use_rslora": False})
    section.must_be("peft_type", "LORA")
    if section.get("init_lora_weights", True) not in _STARTS:
        raise section.error("init_lora_weights", "true, or a start that leaves the weights")
    is_root = section.choice("use_rslora", {True: True, False: False})
    usual_rank, usual_alpha = section.integer("r"), section.number("lora_alpha")
    ranks, alphas = _pattern(section, "rank_pattern"), _pattern(section, "alpha_pattern")
    section.ignore(_NO_MATTER.split())
    section.close(falsy=True)
    if alpha not in (None, usual_alpha):
        raise ValueError(f"lora_alpha={alpha}: {file} says {usual_alpha:g}; leave it out")
    found = {}
    for module, pair in pairs.items():
        rank = _of_layer(ranks, module, usual_rank, file)
        if rank != pair.rank:
            raise WeightFileError(f"{module} has LoRA of rank {pair.rank}, {file} says {rank:g}")
        scale = _of_layer(alphas, module, usual_alpha, file)
        found[module] = scale / (math.sqrt(rank) if is_root else rank)
    return found


def _pattern(section: Section, name: str) -> dict[str, float]:
    values = section.get(name) or {}
    if (
        not isinstance(values, Mapping)
        or len(values) > MAX_PATTERNS
        or not all(type(x) in (int, float) and 0 < x < 1e9 for x in values.values())
    ):
        allowed = f"an object of at most {MAX_PATTERNS} positive numbers by names of layers"
        raise section.error(name, allowed)
    for key in values:
        if not _PATTERN.fullmatch(str(key)) or len(str(key)) > MAX_PATTERN:
            raise WeightFileError(
                f"{section.where}: {name} holds {str(key)!r:.80}; names of layers are read, and "
                "patterns of letters, digits and . ^ $ | with at most two *"
            )
    return dict(values)


def _of_layer(patterns: Mapping[str, float], module: str, usual: float, file: Path) -> float:
    """The value of a layer: of the first pattern that its name ends with, as peft has it."""
    for key, value in patterns.items():
        try:
            if re.fullmatch(rf"(.*\.)?({key})", module):
                return value
        except re.error as error:
            raise WeightFileError(f"{file}: {key!r} is no pattern: {error}") from error
    return usual


def _note(
    pairs: Mapping[str, _Pair], scales: Mapping[str, float], where: str, replaced: int
) -> str:
    values: Any = sorted({round(scale, 6) for scale in scales.values()})
    text = f"LoRA of {len(pairs)} layers added, scale {', '.join(f'{x:g}' for x in values)}"
    text += f", of {where}" if where != "the file" else ""
    return text + (f"; {replaced} tensors of it replace those of the weights" if replaced else "")
