"""The traffic between chips: which collectives a step runs, over which axes, how many bytes."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from clipjax.plan.flops import LOSS
from clipjax.plan.hlo import Computation, Instruction, Module, Visit, matched

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_NOTATIONS = (
    r"(\{\{.*?\}\}|\{\}"  # {{0,1},{2,3}}, or {}: everyone
    r"|mesh\[[^\]]*\](?:, device_ids=\(.*?\))? *\{[^}]*\}"  # mesh['a'=2,'b'=2] {'b'}
    r"|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)"  # [2,2]<=[4]
)


class Crossing(NamedTuple):
    """What a collective crosses.

    Attributes:
        label: mesh axes such as `data` or `data,fsdp`; `data:16` is 16 of the devices of an axis.
        size: devices in a group.
        torus_axes: physical axes of the interconnect that a group spans.
        hosts: that the devices of a group stand in, at most.
        slices: that they are of; between slices it is each device with its like in the others.
    """

    label: str
    size: int
    torus_axes: int = 1
    hosts: int = 1
    slices: int = 1


class Collective(NamedTuple):
    """One collective of the program.

    Attributes:
        kind: one of KINDS.
        crossing: the axes it crosses.
        times: runs a step.
        bytes_received: by each device in one run, by the ring algorithm.
        part: "loss" (the contrastive loss's own exchange) or "step".
        op_name: where it comes from in the JAX program.
    """

    kind: str
    crossing: Crossing
    times: int
    bytes_received: float
    part: str
    op_name: str

    @property
    def total_bytes(self) -> float:
        """Received by each device in a step."""
        return self.times * self.bytes_received


def find_collectives(
    module: Module,
    visits: Iterable[Visit],
    mesh_shape: dict[str, int],
    coords: Sequence[Sequence[int]] | None = None,
    hosts: Sequence[int] | None = None,
    num_slices: int = 1,
) -> list[Collective]:
    """Lists the collectives that cross more than one device.

    The program of several slices is one slice's: its groups are of that slice's devices, and what
    goes to other slices is sent and received by the host.

    Args:
        module: the compiled program.
        visits: of `walk(module)`.
        mesh_shape: sizes of the mesh axes within a slice, in the order of the mesh.
        coords: of a slice's devices in the torus, in the order of the mesh.
        hosts: of the devices, in the same order.
        num_slices: that the program is for.
    """
    num_devices = math.prod(mesh_shape.values())
    found = []
    known: dict[tuple, Crossing] = {}  # groups of thousands of devices, written out once each
    for visit in visits:
        instruction = visit.instruction
        kind = collective_kind(module, visit)
        if kind is None:
            continue
        if visit.instruction.opcode == "send":
            where = Crossing("slices", num_slices, hosts=num_slices, slices=num_slices)
            size = bytes_received(kind, instruction, visit.computation, num_slices)
            part = _part(instruction, visit.computation)
            found.append(Collective(kind, where, visit.times, size, part, instruction.op_name))
            continue
        key = (kind, group_text(instruction))
        if key not in known:
            groups = groups_of(instruction, num_devices)
            is_permutation = kind == "collective-permute"
            known[key] = crossing(groups, mesh_shape, coords, hosts, is_permutation=is_permutation)
        where = known[key]
        if where.size == 1:
            continue
        part = _part(instruction, visit.computation)
        size = bytes_received(kind, instruction, visit.computation, where.size)
        found.append(Collective(kind, where, visit.times, size, part, instruction.op_name))
    return found


def _part(instruction: Instruction, computation: Computation) -> str:
    """Whose traffic it is. The compiler merges collectives and keeps one name of many."""
    if len(instruction.operands) == 1:
        return "loss" if _is_loss(instruction) else "step"
    operands = [computation.instructions[name] for name in instruction.operands]
    of_loss = sum(operand.nbytes for operand in operands if _is_loss(operand))
    return "loss" if 2 * of_loss > sum(operand.nbytes for operand in operands) else "step"


def _is_loss(instruction: Instruction) -> bool:
    return LOSS.search(instruction.op_name) is not None


def collective_kind(module: Module, visit: Visit) -> str | None:
    """The kind of a collective that is counted here, or None.

    Two TPU notations are undone. A reduce-scatter is written as a fusion named `all-reduce-scatter`
    that holds an all-reduce and a slice. An asynchronous collective is fused piecewise into the
    work that it overlaps: each piece repeats the instruction, only the first one starts it.
    """
    kind = visit.instruction.opcode.removesuffix("-start")
    if kind == "send":  # to the host, which does with the other slices what is written beside it
        way = re.search(r'_xla_megascale_transfer_type="(\w+)"', visit.instruction.rest)
        kind = way[1].lower().replace("_", "-") if way else ""
        return kind if kind in KINDS else "collective-permute" if way else None
    if kind not in KINDS:
        return None
    if visit.fused:
        targets = {
            i.attribute("custom_call_target")
            for i in visit.computation.instructions.values()
            if i.opcode == "custom-call"
        }
        is_start = '"AsyncCollectiveStart"' in targets
        is_piece = visit.computation.name.startswith("async_collective_fusion")
        if not is_start and (is_piece or '"AsyncCollectiveDone"' in targets):
            return None
        if kind == "all-reduce" and visit.computation.name.startswith("all-reduce-scatter"):
            return "reduce-scatter"
    return kind


def bytes_received(
    kind: str, instruction: Instruction, computation: Computation, group_size: int
) -> float:
    """Bytes that each device receives in one run of a collective, on a ring of its group."""
    operand = sum(computation.instructions[name].nbytes for name in instruction.operands)
    share = (group_size - 1) / group_size
    if kind == "all-gather":
        return operand * (group_size - 1)
    if kind == "all-reduce":
        return 2 * operand * share
    if kind in ("reduce-scatter", "all-to-all"):
        return operand * share
    return operand


def group_text(instruction: Instruction) -> str:
    """The groups of a collective as they are written; empty if none are.

    Raises:
        ValueError: a notation that is not known.
    """
    rest = instruction.rest
    pairs = instruction.attribute("source_target_pairs")
    if pairs:
        return pairs
    found = re.search(r"replica_groups=" + _NOTATIONS, rest)
    if found is None and "replica_groups=" in rest:
        start = rest.index("replica_groups=")
        raise ValueError(f"device groups in an unknown notation: {rest[start : start + 120]}")
    return found[1] if found else ""


def groups_of(instruction: Instruction, num_devices: int) -> np.ndarray:
    """The groups of a collective, as indices into the mesh's devices.

    Returns:
        [groups, size]; for a permutation the (source, target) pairs.

    Raises:
        ValueError: a notation that is not known.
    """
    text = group_text(instruction)
    if "source_target_pairs=" in instruction.rest:
        return _listed(text)
    everyone = np.arange(num_devices)[None]
    if text in ("", "{}", "{{}}"):
        return everyone
    if text.startswith("{"):
        groups = _listed(text)
    elif text.startswith("mesh"):
        groups = _of_mesh_axes(text)
    else:
        groups = _of_iota(text)
    # Without global ids, an operation with a channel names replicas, of which jit has one: its
    # group is then that replica's every partition.
    if "channel_id=" in instruction.rest and "use_global_device_ids=true" not in instruction.rest:
        return everyone
    return groups


def _listed(text: str) -> np.ndarray:
    rows = re.findall(r"\{([\d,\s]+)\}", text)
    return np.array([[int(n) for n in row.split(",")] for row in rows])


def _of_iota(text: str) -> np.ndarray:
    """`[2,4]<=[4,2]T(1,0)`: count up, reshape, transpose, reshape."""
    found = matched(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    shape, source, order = found.groups()
    source_dims = [int(d) for d in source.split(",")]
    ids = np.arange(np.prod(source_dims)).reshape(source_dims)
    if order:
        ids = ids.transpose([int(d) for d in order.split(",")])
    dims = [int(d) for d in shape.split(",")]
    return ids.reshape(dims[0], -1)


def _of_mesh_axes(text: str) -> np.ndarray:
    """`mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`; without device_ids, in order."""
    inside, chosen = matched(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text).groups()
    axes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", inside)]
    names = [name for name, _ in axes]
    ids = np.arange(np.prod([size for _, size in axes])).reshape([size for _, size in axes])
    order = re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", text)
    if order:
        dims = [int(d) for d in order[1].split(",")]
        permutation = [int(d) for d in (order[2] or "").split(",") if d] or list(range(len(dims)))
        ids = np.arange(np.prod(dims)).reshape(dims).transpose(permutation).reshape(ids.shape)
    elif "device_ids" in text:
        raise ValueError(f"device groups in an unknown notation: {text[:120]}")
    inner = []
    for part in re.findall(r"'([^']+)'(:\([^)]*\)\d+)?", chosen):
        if part[1]:
            raise ValueError(f"device groups over part of an axis are not read: {text[:120]}")
        inner.append(names.index(part[0]))
    outer = [axis for axis in range(len(axes)) if axis not in inner]
    size = int(np.prod([axes[axis][1] for axis in inner]))
    return ids.transpose(outer + inner).reshape(-1, size)


def crossing(
    groups: np.ndarray,
    mesh_shape: dict[str, int],
    coords: Sequence[Sequence[int]] | None = None,
    hosts: Sequence[int] | None = None,
    *,
    is_permutation: bool = False,
) -> Crossing:
    """Names the mesh axes along which the devices of a group differ.

    Args:
        groups: [groups, size], from `groups_of`.
        mesh_shape: sizes of the mesh axes, in the order of the mesh.
        coords: the place of each device in the torus, in the order of the mesh.
        hosts: the host of each device, in the same order.
        is_permutation: whether the rows are (source, target) pairs.
    """
    names, sizes = list(mesh_shape), tuple(mesh_shape.values())
    places = np.stack(np.unravel_index(groups, sizes), axis=-1)  # [groups, size, axes]
    varies = (places != places[:, :1]).any(axis=(0, 1))
    size = groups.shape[1]
    whole = int(np.prod([s for s, v in zip(sizes, varies, strict=True) if v]))
    label = ",".join(name for name, v in zip(names, varies, strict=True) if v) or "self"
    if not is_permutation and size != whole:
        label += f":{size}"
    torus_axes = 1
    if coords is not None and size > 1:
        spots = np.asarray(coords)[groups]
        torus_axes = max(1, int((spots != spots[:, :1]).any(axis=(0, 1)).sum()))
    num_hosts = 1
    if hosts is not None:
        num_hosts = max(len(set(row)) for row in np.asarray(hosts)[groups].tolist())
    return Crossing(label, size, torus_axes, num_hosts)
