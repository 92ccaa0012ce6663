"""Bytes that a compiled step moves to and from HBM, loop trip counts multiplied in.

Counted where the program names it: operands read and results written by each instruction outside
of fusions, an operand that is named twice once. Buffers that a TPU's compiler keeps in VMEM (memory
space 1) cost nothing here, nor does the workspace of a GPU library's call; updates in place cost
their slice, not the whole array. Padding of tiled layouts is left out, and what caches save.
"""

from collections.abc import Iterable
from typing import NamedTuple

from clipjax.plan.hlo import Computation, Instruction, Module, Visit, matched
from clipjax.plan.kernels import LIBRARIES, is_workspace, target

HBM, VMEM = 0, 1
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier", "async-start", "async-update",
    "async-done", "copy-done", "slice-done", "domain", "add-dependency",
}  # fmt: skip
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")


class Traffic(NamedTuple):
    """Bytes of one device and one step.

    Attributes:
        hbm: read from and written to HBM.
        vmem_peak: largest single buffer that the compiler placed in VMEM.
    """

    hbm: float
    vmem_peak: int


def count_traffic(module: Module, visits: Iterable[Visit]) -> Traffic:
    """Sums the bytes over what a step runs."""
    hbm, vmem_peak = 0.0, 0
    per_instruction: dict[tuple[str, str], int] = {}
    for visit in visits:
        if visit.fused:
            continue
        key = (visit.computation.name, visit.instruction.name)
        if key not in per_instruction:
            per_instruction[key] = _moved(module, visit.instruction, visit.computation)
        hbm += visit.times * per_instruction[key]
        in_vmem = [s.nbytes for s in visit.instruction.shapes if s.space == VMEM]
        vmem_peak = max(vmem_peak, *in_vmem, 0)
    return Traffic(hbm, vmem_peak)


def _moved(module: Module, instruction: Instruction, computation: Computation) -> int:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0
    if opcode == "custom-call" and any(call in instruction.rest for call in _FREE_CALLS):
        return 0
    operands = [computation.instructions[name] for name in instruction.operands]
    if opcode == "fusion":
        return _of_fusion(module, instruction, operands)
    operands = list(dict.fromkeys(operands))  # q, k and v may be parts of one array
    if opcode in ("all-gather-start", "reduce-scatter-start", "collective-permute-start"):
        arrived = instruction.shapes[len(instruction.operands) :]  # (operands, results)
        return sum(s.nbytes for s in arrived if s.space == HBM) + sum(map(_hbm_bytes, operands))
    if opcode in ("copy-start", "slice-start"):
        # (destination, source, ...) and ((source), destination, ...): what arrives was read.
        first, second = instruction.shapes[:2]
        source, target = (second, first) if opcode == "copy-start" else (first, second)
        return target.nbytes * ((source.space == HBM) + (target.space == HBM))
    if opcode in ("dynamic-slice", "slice", "gather"):
        return instruction.nbytes * (_in_hbm(operands[0]) + _in_hbm(instruction))
    if opcode == "dynamic-update-slice":
        update = operands[1]
        return update.nbytes * (_in_hbm(update) + _in_hbm(instruction))
    if opcode == "scatter":
        updates = operands[-1]
        return updates.nbytes * (_in_hbm(updates) + 2 * _in_hbm(instruction))
    return _hbm_bytes(instruction) + sum(_hbm_bytes(o) for o in operands)


def _in_hbm(instruction: Instruction) -> bool:
    return any(shape.space == HBM for shape in instruction.shapes)


def _hbm_bytes(instruction: Instruction) -> int:
    return sum(
        shape.nbytes
        for place, shape in enumerate(instruction.shapes)
        if shape.space == HBM and not is_workspace(instruction, place)
    )


def _of_fusion(module: Module, fusion: Instruction, operands: list[Instruction]) -> int:
    body = _body(module, fusion)
    total = 0
    demand = _demand(module, body, _size(body.root))
    for parameter, operand in zip(body.parameters(), operands, strict=True):
        if _in_hbm(operand) and parameter.nbytes:
            total += demand[parameter.name] * parameter.nbytes // _size(parameter)
    results = [body.root]
    if body.root.opcode == "tuple":
        results = [body.instructions[name] for name in body.root.operands]
    for result, shape in zip(results, fusion.shapes, strict=False):
        if shape.space == HBM:
            total += _written(module, body, result)
    return total


def _body(module: Module, fusion: Instruction) -> Computation:
    return module.computations[matched(r"calls=%?([\w.-]+)", fusion.rest)[1]]


def _demand(module: Module, body: Computation, wanted: int) -> dict[str, int]:
    """Elements of each value of a fusion that its result asks for, from the result backwards.

    Args:
        module: holds fusions within the fusion.
        body: the fusion.
        wanted: elements of the result.
    """
    demand = dict.fromkeys(body.instructions, 0)
    demand[body.root.name] = wanted
    for user in reversed(body.instructions.values()):
        if user.opcode in ("parameter", "constant") or not demand[user.name]:
            continue
        inner: list[int] = []
        if user.opcode == "fusion":
            called = _body(module, user)
            asked = _demand(module, called, demand[user.name])
            inner = [asked[parameter.name] for parameter in called.parameters()]
        for place, name in enumerate(user.operands):
            if user.opcode == "tuple" and body.instructions[name].opcode == "parameter":
                continue  # passed through: a piece of an asynchronous collective
            size = _size(body.instructions[name])
            share = inner[place] if inner else _asked(user, place, size, demand[user.name])
            demand[name] = min(size, demand[name] + share)
    return demand


def _asked(user: Instruction, place: int, size: int, wanted: int) -> int:
    """Elements of an operand, of `size`, for `wanted` elements of one instruction's result."""
    result = _size(user)
    if user.opcode == "custom-call":
        # A library's call within a fusion reads a slice; others are passed through, too.
        return size if target(user).startswith(LIBRARIES) else 0
    if user.opcode == "dynamic-update-slice" and place == 0:
        return 0  # updated in place
    if user.opcode in ("dynamic-slice", "slice", "gather") and place == 0:
        return wanted
    if user.opcode == "pad" and place == 0:
        return wanted * size // max(1, result)
    if size == result:
        return wanted  # elementwise, or a change of shape
    return size


def _size(instruction: Instruction) -> int:
    return sum(shape.size for shape in instruction.shapes)


def _written(module: Module, body: Computation, result: Instruction) -> int:
    while result.opcode == "bitcast":
        result = body.instructions[result.operands[0]]
    if result.opcode == "dynamic-update-slice":
        return body.instructions[result.operands[1]].nbytes
    if result.opcode == "fusion":
        inner = _body(module, result)
        return (
            result.nbytes if inner.root.opcode == "tuple" else _written(module, inner, inner.root)
        )
    if result.opcode == "parameter":
        return 0
    if result.opcode == "get-tuple-element":  # of a library's call: its result or its workspace
        call = body.instructions[result.operands[0]]
        return 0 if is_workspace(call, int(result.attribute("index"))) else result.nbytes
    if result.opcode == "custom-call" and not target(result).startswith(LIBRARIES):
        return 0
    return _hbm_bytes(result)
