"""The traffic between chips: which collectives a step runs, over which axes, how many bytes."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from clipjax.plan.device_groups import Crossing, crossing, group_text, groups_of
from clipjax.plan.hlo import Computation, Instruction, Module, Visit

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)


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
) -> list[Collective]:
    """Lists the collectives that cross more than one device.

    Args:
        module: the compiled program.
        visits: of `walk(module)`.
        mesh_shape: sizes of the mesh axes, in the order of the mesh.
        coords: of the devices in the torus, in the order of the mesh.
    """
    num_devices = math.prod(mesh_shape.values())
    found = []
    known: dict[tuple, Crossing] = {}  # groups of thousands of devices, written out once each
    for visit in visits:
        instruction = visit.instruction
        kind = collective_kind(module, visit)
        if kind is None:
            continue
        key = (kind, group_text(instruction))
        if key not in known:
            groups = groups_of(instruction, num_devices)
            is_permutation = kind == "collective-permute"
            known[key] = crossing(groups, mesh_shape, coords, is_permutation=is_permutation)
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
    # Nothing but the loss uses shard_map; the rest is left to the partitioner.
    return "shard_map" in instruction.op_name


def collective_kind(module: Module, visit: Visit) -> str | None:
    """The kind of a collective that is counted here, or None.

    Two TPU notations are undone. A reduce-scatter is written as a fusion named `all-reduce-scatter`
    that holds an all-reduce and a slice. An asynchronous collective is fused piecewise into the
    work that it overlaps: each piece repeats the instruction, only the first one starts it.
    """
    kind = visit.instruction.opcode.removesuffix("-start")
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
