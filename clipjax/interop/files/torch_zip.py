"""torch's zip archives, without torch: state dicts, training checkpoints and TorchScript.

`<root>/data.pkl` describes the tensors, `<root>/data/<key>` holds their storages. A TorchScript
archive describes a tree of modules instead; its state dict is read off that tree.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from clipjax.interop.files.pickle_data import Name, Node, PickleData, Refused
from clipjax.interop.files.zip_archive import ZipArchive
from clipjax.interop.tensors import LazyTensor, WeightFile, WeightFileError

STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
# Where a training checkpoint keeps its state dict, beside tensors of its own.
STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model")
MAX_PICKLE_BYTES = 16 * 2**20
MAX_CODE_BYTES = 2**20
MAX_AXES = 16
MAX_NODES = 1_000_000
MAX_DEPTH = 100


@dataclasses.dataclass(frozen=True)
class Storage:
    """A member of the archive that tensors are views of; `size` in elements."""

    member: str
    dtype: np.dtype
    size: int


@dataclasses.dataclass(frozen=True)
class StridedTensor:
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_zip(path: Path, *, which: str | None = None) -> WeightFile:
    """Opens a file of `torch.save` (1.6 or later) or `torch.jit.save`.

    Args:
        path: of the file.
        which: key of the set of weights, where the file holds several; nested ones have a dot.

    Raises:
        WeightFileError: it is damaged, holds what would have to be executed, or several sets of
            weights of which `which` names none.
    """
    archive = ZipArchive(path)
    root = _root(archive)
    if f"{root}byteorder" in archive.names():
        order = archive.read(f"{root}byteorder", limit=100)
        if order != b"little":
            raise WeightFileError(f"{path}: byte order {order!r}; only b'little' is read")
    try:
        value = _unpickler(archive, root).load(
            archive.read(f"{root}data.pkl", limit=MAX_PICKLE_BYTES)
        )
        if isinstance(value, Node):
            _choose({}, which)
            found = _module_state(value, _declared_tensors(archive, root))
            metadata = {"torchscript": True}
        else:
            found, metadata = _state_dict(value, which)
    except Refused as error:
        raise Refused(f"{path}: refused: {error}") from error
    except WeightFileError as error:
        raise WeightFileError(f"{path}: {error}") from error
    tensors = {name: _lazy_tensor(archive, tensor) for name, tensor in found.items()}
    return WeightFile(tensors, "torch", metadata)


def _root(archive: ZipArchive) -> str:
    found = [name for name in archive.names() if name.rsplit("/", 1)[-1] == "data.pkl"]
    if len(found) != 1:
        raise WeightFileError(
            f"{archive.path}: {len(found)} members called data.pkl, one is needed"
        )
    return found[0].removesuffix("data.pkl")


def _unpickler(archive: ZipArchive, root: str) -> PickleData:
    members = set(archive.names())

    def persistent(identity: Any) -> Storage:
        if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
            raise WeightFileError("the pickle is damaged (a persistent id is no storage)")
        _, kind, key, _, size = identity
        if not isinstance(kind, Name) or kind.name not in STORAGES:
            raise Refused(f"a storage of kind {str(kind)[:50] if isinstance(kind, Name) else '?'}")
        dtype, member = STORAGES[kind.name], f"{root}data/{key}"
        if not isinstance(key, str) or member not in members:
            raise WeightFileError(f"damaged: no storage {key!r:.50} in the archive (cut off?)")
        if not archive.is_stored(member):
            raise WeightFileError(f"storage {member!r} is compressed, which torch never does")
        if not _is_size(size) or size * dtype.itemsize != archive.size(member):
            raise WeightFileError(
                f"damaged: storage {member!r} has {archive.size(member)} bytes, it should be "
                f"{size!r:.30} of {dtype}"
            )
        return Storage(member, dtype, size)

    return PickleData(_FUNCTIONS, _is_module_class, persistent)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> StridedTensor:
    """What torch._utils._rebuild_tensor_v2 would build; the rest is about gradients."""
    if not isinstance(storage, Storage):
        raise WeightFileError("damaged: a tensor without a storage")
    sizes_fit = isinstance(shape, tuple) and isinstance(strides, tuple)
    sizes_fit = sizes_fit and len(shape) == len(strides) <= MAX_AXES and _is_size(offset)
    if not sizes_fit or not all(_is_size(x) for x in (*shape, *strides)):
        raise WeightFileError("damaged: the shape or strides of a tensor are no sizes")
    count = math.prod(shape)
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # A view that repeats elements could be as large as it likes; weights never are one.
    if count > storage.size or (count and last >= storage.size):
        raise WeightFileError(
            f"damaged: a tensor of shape {shape} and strides {strides} at {offset} leaves its "
            f"storage {storage.member!r} of {storage.size} elements"
        )
    return StridedTensor(storage, offset, shape, strides)


def _first(value: Any, *_: Any) -> Any:
    return value


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _ordered_dict(*items: Any) -> dict[Any, Any]:
    if items not in ((), ([],)):
        raise Refused("the pickle makes an OrderedDict of something")
    return {}


_FUNCTIONS: dict[Name, Callable[..., Any]] = {
    Name("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    Name("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    Name("torch._utils", "_rebuild_parameter"): _first,
    Name("collections", "OrderedDict"): _ordered_dict,
    Name("torch", "Size"): _first,
    # How TorchScript marks the types of lists and dicts.
    **{
        Name("torch.jit._pickle", name): _first
        for name in (
            "build_intlist",
            "build_doublelist",
            "build_boollist",
            "build_tensorlist",
            "restore_type_tag",
        )
    },
}


def _is_module_class(name: Name) -> bool:
    """Classes that are only described: TorchScript's own modules, storages."""
    if name.module == "torch" and name.name in STORAGES:
        return True
    return name.module == "__torch__" or name.module.startswith("__torch__.")


def _state_dict(value: Any, which: str | None) -> tuple[dict[str, StridedTensor], dict[str, Any]]:
    if not isinstance(value, dict):
        raise WeightFileError(f"holds a {type(value).__name__}, not a state dict")
    metadata: dict[str, Any] = {}
    key = _choose(_weight_sets(value), which)
    if key is not None:
        metadata = _plain(value)
        for part in key.split(".", 1):
            value = value[part]
    tensors = {name: x for name, x in value.items() if isinstance(x, StridedTensor)}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        keys = ", ".join(sorted(str(name)[:30] for name in list(value)[:8]))
        raise WeightFileError(f"holds no state dict; its keys are {keys or 'none'}")
    odd = [name for name, x in value.items() if isinstance(x, (dict, list, tuple, Node))]
    if odd:
        raise WeightFileError(
            f"the state dict has entries that are no tensors, the first is {odd[0]!r:.50}"
        )
    metadata |= _plain(value)
    return tensors, metadata | ({"which": key} if which else {})


def _weight_sets(value: Mapping[Any, Any]) -> dict[str, int]:
    """Key -> tensors of each set of weights in a training checkpoint, one key deep or two.

    Beside the weights stand smaller things, such as what a schedule or a loss keeps: a set with
    less than half the tensors of the largest is none.
    """
    sets: dict[str, int] = {}
    for key, inner in value.items():
        if not isinstance(key, str) or not isinstance(inner, dict):
            continue
        nested = {f"{key}.{k}": x for k, x in inner.items() if isinstance(k, str)}
        for name, each in {key: inner, **nested}.items():
            if isinstance(each, dict) and (count := _count_tensors(each)):
                sets[name] = count
    if _count_tensors(value) and not sets.keys() & set(STATE_DICT_KEYS):
        return {}  # the file is the state dict itself
    largest = max(sets.values(), default=0)
    return {name: count for name, count in sets.items() if 2 * count >= largest}


def _count_tensors(value: Mapping[Any, Any]) -> int:
    return sum(isinstance(x, StridedTensor) for k, x in value.items() if isinstance(k, str))


def _choose(sets: Mapping[str, int], which: str | None) -> str | None:
    listed = ", ".join(f"{name} ({count} tensors)" for name, count in sets.items())
    if which is not None:
        if len(sets) < 2:
            raise WeightFileError(f"which={which!r}: there is one set of weights; leave it out")
        if which not in sets:
            raise WeightFileError(f"which={which!r}: the sets of weights are {listed}")
        return which
    if len(sets) > 1:
        raise WeightFileError(f"holds {len(sets)} sets of weights; choose with which=: {listed}")
    return next(iter(sets), None)


def _plain(value: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, (str, int, float))
    }


_CLASS = re.compile(r"^class (\w+)\(Module\):$")
_TENSOR_LIST = re.compile(r"^  __(?:parameters|buffers)__ = \[(.*)\]$")
_STRING = re.compile(r'"([^"\\]+)"')


def _declared_tensors(archive: ZipArchive, root: str) -> dict[str, set[str]]:
    """Class -> names of its parameters and buffers, as the archive's code lists them.

    A module may hold other tensors, such as a mask; its state dict does not.
    """
    declared: dict[str, set[str]] = {}
    code = f"{root}code/"
    for member in archive.names():
        if not member.startswith(f"{code}__torch__") or not member.endswith(".py"):
            continue
        module = member.removeprefix(code).removesuffix(".py").replace("/", ".")
        current: set[str] = set()
        text = archive.read(member, limit=MAX_CODE_BYTES).decode("utf-8", "replace")
        for line in text.splitlines():
            if match := _CLASS.match(line):
                current = declared.setdefault(f"{module}.{match[1]}", set())
            elif match := _TENSOR_LIST.match(line):
                current.update(_STRING.findall(match[1]))
    return declared


def _module_state(root: Node, declared: Mapping[str, set[str]]) -> dict[str, StridedTensor]:
    """The state dict of a tree of modules."""
    tensors: dict[str, StridedTensor] = {}
    to_visit: list[tuple[str, Node, int]] = [("", root, 0)]
    visits = 0
    while to_visit:
        prefix, node, depth = to_visit.pop()
        visits += len(node.attributes) + 1
        if visits > MAX_NODES or depth > MAX_DEPTH:
            raise WeightFileError("damaged: the tree of modules does not end")
        names = declared.get(str(node.name))
        for key, value in node.attributes.items():
            if isinstance(value, Node):
                to_visit.append((f"{prefix}{key}.", value, depth + 1))
            elif isinstance(value, StridedTensor) and (names is None or key in names):
                if f"{prefix}{key}" in tensors:
                    raise WeightFileError(f"damaged: two tensors are called {prefix}{key}")
                tensors[f"{prefix}{key}"] = value
    if not tensors:
        raise WeightFileError("a TorchScript archive without tensors")
    return tensors


def _lazy_tensor(archive: ZipArchive, tensor: StridedTensor) -> LazyTensor:
    storage, shape = tensor.storage, tensor.shape
    dtype = storage.dtype
    if _is_contiguous(tensor):

        def read_range(shape: tuple[int, ...], first: int) -> np.ndarray:
            offset = (tensor.offset + first) * dtype.itemsize
            return archive.read_array(storage.member, dtype, shape, offset)

        return LazyTensor.of_range(shape, dtype, read_range)

    def read() -> np.ndarray:
        if not math.prod(shape):
            return np.empty(shape, dtype)
        span = 1 + sum((n - 1) * s for n, s in zip(shape, tensor.strides, strict=True))
        offset = tensor.offset * dtype.itemsize
        flat = archive.read_array(storage.member, dtype, (span,), offset)
        strides = tuple(s * dtype.itemsize for s in tensor.strides)
        return np.array(np.lib.stride_tricks.as_strided(flat, shape, strides), order="C")

    return LazyTensor(shape, dtype, read)


def _is_contiguous(tensor: StridedTensor) -> bool:
    shape = tensor.shape
    return all(
        size == 1 or stride == math.prod(shape[i + 1 :])
        for i, (size, stride) in enumerate(zip(shape, tensor.strides, strict=True))
    )
