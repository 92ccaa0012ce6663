"""Where the time of traced steps goes: jax.profiler's trace, summed by the names of the kernels."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from clipjax.plan.hlo import parse

# What a kernel does, told by its name or its operation's; the first that fits.
KINDS = (
    ("collective", r"nccl|all.?reduce|all.?gather|reduce.?scatter|all.?to.?all|permute"),
    ("attention kernel", r"cudnn.*(sdpa|mha|fprop|bprop)|flash|fmha|attention"),
    ("matrix product", r"gemm|cublas|cutlass|nvjet|xmma|matmul|\bdot|conv"),
    ("copy", r"memcpy|memset|copy|transpose|dynamic.?(update.?)?slice|concatenate"),
    ("fusion", r"fusion|triton|loop|input|reduce"),
    ("other", r""),
)


# Of an operation's path: what JAX wrapped around the modules' own names.
WRAPPERS = {
    *("", "jit", "jvp", "transpose", "vmap", "checkpoint", "remat", "rematted_computation"),
    *("while", "body", "cond", "closed_call", "step"),
}


class Span(NamedTuple):
    """One run of one kernel.

    Attributes:
        kernel: its name.
        op: the operation of the compiled program that it belongs to.
        start: nanoseconds.
        length: nanoseconds.
    """

    kernel: str
    op: str
    start: float
    length: float


def trace(run: Callable[[], Any], folder: Path) -> list[list[Span]]:
    """Traces a call; returns the spans of each stream of the devices.

    Args:
        run: what is traced; it waits for its results.
        folder: a new one, for the trace.
    """
    with jax.profiler.trace(str(folder)):
        run()
    (file,) = folder.rglob("*.xplane.pb")
    return streams(jax.profiler.ProfileData.from_file(str(file)))


def streams(data: Any) -> list[list[Span]]:
    """The spans of each line of a trace on which a device computes.

    A GPU's kernels stand on the lines of its streams and a TPU's operations on one of their own;
    both planes have other lines that sum these up. A CPU's operations are among the host's events.
    """
    devices = [plane for plane in data.planes if plane.name.startswith("/device:")]
    lines = [
        line
        for plane in devices
        for line in plane.lines
        if line.name.startswith("Stream") or line.name == "XLA Ops"
    ]
    if not lines:
        lines = [line for plane in data.planes if plane.name == "/host:CPU" for line in plane.lines]
    found = []
    for line in lines:
        spans = []
        for event in line.events:
            stats = dict(event.stats)
            op = str(stats.get("hlo_op", ""))
            if devices or (op and event.name == op):
                spans.append(Span(event.name, op or event.name, event.start_ns, event.duration_ns))
        if spans:
            found.append(spans)
    return found


def self_times(spans: Iterable[Span]) -> Iterable[tuple[Span, float]]:
    """Each span with its time outside the spans inside of it: a loop holds its body."""
    open_spans: list[list[Any]] = []  # [span, time of what is inside]
    for span in sorted(spans, key=lambda s: (s.start, -s.length)):
        while open_spans and open_spans[-1][0].start + open_spans[-1][0].length <= span.start:
            done, inside = open_spans.pop()
            yield done, max(0.0, done.length - inside)
        if open_spans:
            open_spans[-1][1] += span.length
        open_spans.append([span, 0.0])
    for done, inside in reversed(open_spans):
        yield done, max(0.0, done.length - inside)


def kind_of(kernel: str, op: str) -> str:
    """The kind of a kernel."""
    text = f"{kernel} {op}".lower()
    return next(kind for kind, pattern in KINDS if re.search(pattern, text))


def family(name: str) -> str:
    """A name without the numbers that tell one of its kind from the next."""
    return re.sub(r"[._]?\d+$", "", re.sub(r"(\.\d+)+", "", name)) or name


def origins(hlo: str) -> dict[str, str]:
    """The place in the JAX program that each operation of a compiled one comes from."""
    module = parse(hlo)
    return {
        instruction.name: instruction.op_name
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.op_name
    }


def direction(origin: str) -> str:
    """Forward, backward, recomputed, or the update behind both."""
    if re.search(r"rematted_computation|/remat\d*/|checkpoint/rem", origin):
        return "recomputed"
    if "transpose(" in origin:
        return "backward"
    return "forward" if "jvp(" in origin else "update and rest"


def scope(origin: str) -> str:
    """The part of the model that an operation belongs to, wrappers and numbers left out."""
    words = [w for w in re.split(r"[/()]+", origin) if w not in WRAPPERS and not w.isdigit()]
    return "/".join(words[:-1][-3:]) or "(top)"


def summarise(
    lines: Iterable[Iterable[Span]], origin_of: Mapping[str, str], *, steps: int, most: int = 40
) -> dict[str, Any]:
    """Milliseconds a step by kernel, kind, direction and part of the model.

    Args:
        lines: of `trace`.
        origin_of: of `origins`.
        steps: that were traced.
        most: kernels that are listed; the rest is one sum.
    """
    kernels: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0])
    sums: dict[str, dict[str, float]] = {
        name: defaultdict(float) for name in ("kind", "direction", "part")
    }
    total = 0.0
    for spans in lines:
        for span, own in self_times(spans):
            milliseconds = own / 1e6 / steps
            origin = origin_of.get(span.op, "")
            entry = kernels[family(span.kernel), scope(origin)]
            entry[0] += milliseconds
            entry[1] += 1 / steps
            sums["kind"][kind_of(span.kernel, span.op)] += milliseconds
            sums["direction"][direction(origin)] += milliseconds
            sums["part"][scope(origin)] += milliseconds
            total += milliseconds
    ranked = sorted(kernels.items(), key=lambda item: -item[1][0])
    return {
        "busy_ms": total,
        "kernels": [
            {"kernel": kernel[:120], "part": part, "ms": ms, "runs": runs}
            for (kernel, part), (ms, runs) in ranked[:most]
        ],
        "other_kernels_ms": sum(ms for _, (ms, _) in ranked[most:]),
        **{f"by_{name}": ordered(values) for name, values in sums.items()},
    }


def ordered(values: Mapping[str, float], most: int = 30) -> dict[str, float]:
    """The largest first."""
    return dict(sorted(values.items(), key=lambda item: -item[1])[:most])
