"""FLOPs and collective bytes of a compiled module, loop trip counts multiplied in.

`cost_analysis` counts a loop's body once; this walks the call graph of the HLO text instead.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")


class Instruction(NamedTuple):
    name: str
    shapes: list[tuple[str, tuple[int, ...]]]
    op: str
    operands: list[str]
    line: str


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """Instructions of each computation, and the name of the entry."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%(\S+) \(.*\{$", line)
        if header:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
            continue
        match = re.match(r"\s+(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)", line)
        if match and current is not None:
            name, shape, op, rest = match.groups()
            shapes = [
                (kind, tuple(int(d) for d in dims.split(",") if d))
                for kind, dims in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shape)
            ]
            operands = re.findall(r"%([\w.-]+)", rest.split(")")[0])
            current.append(Instruction(name, shapes, op, operands, line))
    return computations, entry


def costs(text: str) -> tuple[float, dict[str, float]]:
    """Matrix-product FLOPs, and bytes of each kind of collective, on one device.

    Bytes: the result of an all-gather or a permute, the operand of a reduce-scatter, twice the
    operand of an all-reduce. A ring moves (group - 1) / group of that: these are upper bounds.
    """
    computations, entry = parse(text)
    flops, traffic = 0.0, defaultdict(float)

    def visit(name: str, times: float) -> None:
        nonlocal flops
        table = {i.name: i for i in computations[name]}
        for instruction in computations[name]:
            flops += times * _flops(instruction, table)
            kind, size = _collective(instruction, table)
            traffic[kind] += times * size
            if kind == "reduce-scatter" and instruction.op == "fusion":
                continue  # the all-reduce inside is how TPU writes a reduce-scatter
            for callee, trips in _callees(instruction, computations):
                visit(callee, times * trips)

    visit(entry, 1.0)
    traffic.pop("", None)
    return flops, {kind: size for kind, size in traffic.items() if size}


def _callees(instruction: Instruction, computations: dict) -> list[tuple[str, int]]:
    if instruction.op == "while":
        body = re.search(r"body=%([\w.-]+)", instruction.line)[1]
        condition = re.search(r"condition=%([\w.-]+)", instruction.line)[1]
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.line)
        if known:
            return [(body, int(known[1]))]
        bounds = [
            int(m[1])
            for i in computations[condition]
            if (m := re.search(r"= [su]32\[\]\S* constant\((\d+)\)", i.line))
        ]
        if len(bounds) != 1:
            raise ValueError(f"the trip count of {instruction.name} is not one constant: {bounds}")
        return [(body, bounds[0])]
    if instruction.op in ("fusion", "call", "async-start"):
        return [(m, 1) for m in re.findall(r"(?:calls|to_apply)=%([\w.-]+)", instruction.line)]
    if instruction.op == "conditional":
        raise ValueError(f"{instruction.name}: the branch taken is not known")
    return []


def _flops(instruction: Instruction, table: dict[str, Instruction]) -> float:
    if instruction.op not in ("convolution", "dot"):
        return 0.0
    left = table[instruction.operands[0]].shapes[0][1]
    if instruction.op == "dot":
        dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.line)[1]
        contracted = [int(d) for d in dims.split(",")]
    else:
        labels = re.search(r"dim_labels=(\w+?)_", instruction.line)[1]
        window = re.search(r"window=\{size=([\dx]+)", instruction.line)
        if window and set(window[1]) - set("1x"):
            raise ValueError(f"{instruction.name} is not a matrix product")
        contracted = [labels.index("f")]
    return 2.0 * math.prod(instruction.shapes[0][1]) * math.prod(left[d] for d in contracted)


def _collective(instruction: Instruction, table: dict[str, Instruction]) -> tuple[str, float]:
    op = instruction.op.removesuffix("-start")
    if instruction.op == "fusion" and "calls=%all-reduce-scatter" in instruction.line:
        op = "reduce-scatter"
    if op not in COLLECTIVES:
        return "", 0.0
    operand = sum(_size(s) for name in instruction.operands for s in table[name].shapes)
    if op == "all-reduce":
        return op, 2.0 * operand
    if op == "all-gather":
        return op, sum(_size(s) for s in instruction.shapes) - (
            operand if instruction.op.endswith("-start") else 0
        )
    return op, operand


def _size(shape: tuple[str, tuple[int, ...]]) -> int:
    return ITEM_BYTES[shape[0]] * math.prod(shape[1])
