"""Read the text of a compiled HLO module: computations, instructions, and how often each runs.

XLA's own `cost_analysis` counts the body of a loop once. `walk` follows the calls instead and
multiplies by the loops' trip counts.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

ITEM_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32,
    "s64": 64, "u64": 64, "f8e4m3fn": 8, "f8e5m2": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128,
}  # fmt: skip
_SHAPE = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](?:\{[^{}]*?(?:S\((\d+)\))?[^{}()]*\})?")
_HEADER = re.compile(r"(ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?(\S+) = (.*?) ?([a-z][a-z0-9-]*)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|called_computations)=\{?%?([\w.-]+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """An array of a program.

    Attributes:
        dtype: as HLO writes it.
        dims: sizes.
        space: memory space; 0 is the device's main memory (HBM), 1 a TPU core's own (VMEM).
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        """Bytes, without the padding of a tiled layout; tokens and opaque values take none."""
        return self.size * ITEM_BITS.get(self.dtype, 0) // 8


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
    """One line.

    Attributes:
        name: unique within the computation.
        shapes: arrays of the result, tuples flattened.
        opcode: "fusion", "all-gather", ...
        operands: names of instructions of the same computation.
        rest: attributes as text, what stands behind the operands.
        is_root: whether it is the computation's result.
    """

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return sum(shape.nbytes for shape in self.shapes)

    @property
    def op_name(self) -> str:
        """Where it comes from in the JAX program; "" if that is not recorded."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""

    def attribute(self, name: str) -> str:
        """The value of `name=...` in the attributes, a word or a balanced bracket; else ""."""
        match = re.search(rf"(?:^|[ ,{{]){name}=", self.rest)
        return _leading_value(self.rest[match.end() :]) if match else ""


@dataclasses.dataclass(frozen=True, slots=True)
class Computation:
    """A named list of instructions, in schedule order."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The instruction that is the result."""
        return next(i for i in reversed(self.instructions.values()) if i.is_root)

    def parameters(self) -> list[Instruction]:
        """The parameters by number; a number that is not there is skipped."""
        found = [i for i in self.instructions.values() if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.operands[0]))


@dataclasses.dataclass(frozen=True, slots=True)
class Module:
    """A program."""

    computations: dict[str, Computation]
    entry: str


@dataclasses.dataclass(frozen=True, slots=True)
class Visit:
    """An instruction and how often a step runs it.

    Attributes:
        instruction: the line.
        computation: that holds it.
        times: runs a step, loops multiplied in.
        fused: whether it stands inside a fusion, so that its operands are not in memory.
    """

    instruction: Instruction
    computation: Computation
    times: int
    fused: bool


def parse(text: str) -> Module:
    """Parses `compiled.as_text()`.

    Raises:
        ValueError: there is no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None or not line.startswith(" "):
            header = _HEADER.match(line)
            if header:
                current = Computation(header[2], {})
                computations[header[2]] = current
                entry = header[2] if header[1] else entry
                continue
        if current is not None and (instruction := _parse_instruction(line)):
            current.instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled HLO module")
    return Module(computations, entry)


def _parse_instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    root, name, shape, opcode, tail = match.groups()
    inside = _leading_value("(" + tail)
    rest = tail[len(inside) - 1 :]
    if opcode in ("parameter", "constant"):
        operands: tuple[str, ...] = (inside[1:-1],)
    else:
        operands = tuple(_operand_names(inside[1:-1]))
    shapes = _shapes(shape)
    if opcode in ("fusion-start", "custom-call-start"):
        # What another stream runs: ((operands), results, context). It is done where it is started.
        opcode = opcode.removesuffix("-start")
        shapes = shapes[len(_shapes(_leading_value(shape[1:-1]))) : -1]
    return Instruction(name, shapes, opcode, operands, rest.lstrip(", "), bool(root))


def _operand_names(text: str) -> list[str]:
    text = re.sub(r"/\*.*?\*/", "", text)
    if "%" in text:
        return re.findall(r"%([\w.-]+)", text)
    return [part.strip() for part in text.split(",") if part.strip()]


@functools.lru_cache(maxsize=4096)
def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), int(space or 0))
        for dtype, dims, space in _SHAPE.findall(text)
    )


def matched(pattern: str | re.Pattern[str], text: str) -> re.Match[str]:
    """Finds a pattern that a program's text has to hold.

    Raises:
        ValueError: it does not; the compiler writes another notation.
    """
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the compiled program has an unknown notation: {text:.120}")
    return found


def _leading_value(text: str) -> str:
    """The word or balanced bracket that a text starts with."""
    pairs = {"{": "}", "(": ")", "[": "]"}
    if text[:1] not in pairs:
        return matched(r"[^,\s}]*", text)[0]
    opening, closing = text[0], pairs[text[0]]
    depth = 0
    for match in re.finditer(rf"[{re.escape(opening + closing)}]", text):
        depth += 1 if match[0] == opening else -1
        if depth == 0:
            return text[: match.end()]
    return text


def walk(module: Module) -> Iterator[Visit]:
    """Yields every instruction that a step runs, fusions opened, loops multiplied.

    Every branch of a conditional counts as taken.

    Raises:
        ValueError: the trip count of a loop is not a constant.
    """
    yield from _walk(module, module.entry, 1, False)


def _walk(module: Module, name: str, times: int, fused: bool) -> Iterator[Visit]:
    computation = module.computations[name]
    for instruction in computation.instructions.values():
        yield Visit(instruction, computation, times, fused)
        opcode = instruction.opcode
        if opcode == "while":
            body = instruction.attribute("body").lstrip("%")
            trips = trip_count(module, computation, instruction)
            yield from _walk(module, body, times * trips, fused)
        elif opcode == "conditional":
            for branch in _branches(instruction):
                yield from _walk(module, branch, times, fused)
        elif opcode in ("fusion", "call", "async-start"):
            inner = fused or opcode == "fusion"
            for callee in _CALLED.findall(instruction.rest):
                yield from _walk(module, callee, times, inner)


def _branches(instruction: Instruction) -> list[str]:
    listed = instruction.attribute("branch_computations")
    if listed:
        return re.findall(r"[\w.-]+", listed)
    names = (instruction.attribute(f"{which}_computation") for which in ("true", "false"))
    return [name.lstrip("%") for name in names if name]


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int:
    """Iterations of a while loop, from the compiler's note or from its condition.

    TPU modules carry no note. Their condition compares one counter of the loop's state with a
    constant; the counter's start stands in the caller, its increment in the body.

    Raises:
        ValueError: it is not a constant, or the loop does not count up.
    """
    known = re.search(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)', loop.rest)
    if known:
        return int(known[1])
    condition = module.computations[loop.attribute("condition").lstrip("%")]
    index, limit, direction = _counter(module, condition)
    if index is None or limit is None:
        raise ValueError(f"the trip count of {loop.name} is not a constant: {condition.root.rest}")
    body = module.computations[loop.attribute("body").lstrip("%")]
    start = _initial(module, computation, loop, index)
    step = _increment(module, body, index)
    if start is None or step is None or step <= 0 or direction not in ("LT", "LE"):
        raise ValueError(
            f"the trip count of {loop.name} is not known: its counter starts at {start}, grows by "
            f"{step} and is compared by {direction}; only loops that count up by a constant from "
            "a constant are read"
        )
    span = limit - start + (1 if direction == "LE" else 0)
    return max(0, -(-span // step))


def _counter(module: Module, condition: Computation) -> tuple[int | None, int | None, str]:
    """Which element of the state the condition compares, with which constant, how."""
    root = condition.root
    arguments = [condition.instructions[name] for name in root.operands]
    compare = root
    if root.opcode == "fusion":
        inner = module.computations[matched(_CALLED, root.rest)[1]]
        compare = inner.root
        by_parameter = dict(zip(inner.parameters(), arguments, strict=True))
        arguments = [
            by_parameter.get(inner.instructions[name], inner.instructions[name])
            for name in compare.operands
        ]
    index = limit = None
    for argument in arguments:
        if argument.opcode == "get-tuple-element":
            index = int(argument.attribute("index"))
        elif argument.opcode == "constant" and re.fullmatch(r"-?\d+", argument.operands[0]):
            limit = int(argument.operands[0])
    direction = compare.attribute("direction") or compare.opcode
    if arguments[0].opcode == "constant":  # 12 > i
        direction = {"GT": "LT", "GE": "LE", "LT": "GT", "LE": "GE"}.get(direction, direction)
    return index, limit, direction


def _source(computation: Computation, name: str) -> Instruction | None:
    """The instruction that a value comes from, copies looked through; None if it is not here."""
    found = computation.instructions.get(name)
    while found is not None and found.opcode in ("copy", "bitcast", "convert"):
        found = computation.instructions.get(found.operands[0])
    return found


def _constant(module: Module, computation: Computation, name: str) -> int | None:
    """An integer that stands in the program's text; None if it does not."""
    found = _source(computation, name)
    if found is None:
        return None
    if found.opcode == "constant" and re.fullmatch(r"-?\d+", found.operands[0]):
        return int(found.operands[0])
    if found.opcode == "get-tuple-element":
        index = int(found.attribute("index"))
        state = _source(computation, found.operands[0])
        if state is not None and state.opcode == "tuple":
            return _constant(module, computation, state.operands[index])
        if _is_handed_on(computation, index):  # hoisted out of an outer loop
            for caller in module.computations.values():
                for loop in caller.instructions.values():
                    if (loop.attribute("body") or "").lstrip("%") == computation.name:
                        return _initial(module, caller, loop, index)
    return None


def _is_handed_on(body: Computation, index: int) -> bool:
    """Whether a loop's body leaves an element of its state as it was."""
    return body.root.opcode == "tuple" and _is_state(body, body.root.operands[index], index)


def _is_state(body: Computation, name: str, index: int) -> bool:
    found = _source(body, name)
    if found is None or found.opcode != "get-tuple-element":
        return False
    state = _source(body, found.operands[0])
    return (
        state is not None and state.opcode == "parameter" and int(found.attribute("index")) == index
    )


def _initial(module: Module, computation: Computation, loop: Instruction, index: int) -> int | None:
    state = _source(computation, loop.operands[0])
    if state is None or state.opcode != "tuple":
        return None
    return _constant(module, computation, state.operands[index])


def _increment(module: Module, body: Computation, index: int) -> int | None:
    """What a loop's body adds to its counter; None if it does anything else with it."""
    if body.root.opcode != "tuple":
        return None
    update = _source(body, body.root.operands[index])
    inner, outer = body, {}
    if update is not None and update.opcode == "fusion":
        inner = module.computations[matched(_CALLED, update.rest)[1]]
        outer = dict(zip((p.name for p in inner.parameters()), update.operands, strict=True))
        update = inner.root
    if update is None or update.opcode != "add":
        return None
    places = [(body, outer[name]) if name in outer else (inner, name) for name in update.operands]
    if not any(where is body and _is_state(body, name, index) for where, name in places):
        return None
    found = [_constant(module, where, name) for where, name in places]
    return next((value for value in found if value is not None), None)
