"""Flags of libtpu that others set, compiled into a step for absent TPUs: what each changes.

    python benchmarks/tpu_flags.py                                     needs the extra [tpu]; no TPU
    python benchmarks/tpu_flags.py --topology v5e:2x4 --sets none vmem_64
    python benchmarks/tpu_flags.py --recipe ViT-L-14 --remat full

A row has what a compiler decides: memory, HBM traffic, what arrives from other chips, how much of
that is asynchronous, and how much of the products' work stands between the start of an asynchronous
collective and its end. Nothing runs, and no speed is claimed.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import jax

from benchmarks.common import setting_lines
from benchmarks.plan import GIB
from clipjax.experiment import build_program, resolve
from clipjax.experiment.compiled_memory import needed_bytes, read_memory
from clipjax.plan.collectives import bytes_received, collective_kind, groups_of
from clipjax.plan.hlo import Computation, Module, Visit, parse, walk
from clipjax.plan.products import product_flops
from clipjax.plan.topology import make_topology
from clipjax.plan.traffic import count_traffic
from configs.openai import get_config

# As public recipes for v5e, v5p and v6e have them; the values are theirs.
SETS: dict[str, dict[str, bool | int]] = {
    "none": {},
    "async": {
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_overlap_compute_collective_tc": True,
        "xla_enable_async_all_gather": True,
    },
    "data_parallel": {
        "xla_tpu_enable_data_parallel_all_reduce_opt": True,
        "xla_tpu_data_parallel_opt_different_sized_ops": True,
    },
    "async_all_reduce": {"xla_enable_async_all_reduce": True},
    "vmem_8": {"xla_tpu_scoped_vmem_limit_kib": 8192},
    "vmem_24": {"xla_tpu_scoped_vmem_limit_kib": 24576},
    "vmem_64": {"xla_tpu_scoped_vmem_limit_kib": 65536},
    "vmem_96": {"xla_tpu_scoped_vmem_limit_kib": 98304},
}
START, END = "AsyncCollectiveStart", "AsyncCollectiveDone"


class Overlap(NamedTuple):
    """Collectives of a step's schedule, of one device.

    Attributes:
        received: bytes from other devices.
        asynchronous: of them, by collectives that go on beside other work.
        flops: of products.
        hidden_flops: of those that stand between a start and its end.
    """

    received: float
    asynchronous: float
    flops: float
    hidden_flops: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--recipe", default="ViT-B-16", help="of configs/openai.py")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--remat", default="none", help="the row of the table; no `auto` here")
    parser.add_argument("--batch", type=int, default=128, help="of a chip")
    parser.add_argument("--fsdp", type=int, default=1, help="chips that share a copy of the state")
    options = parser.parse_args()
    topology = make_topology(options.topology)
    print("\n".join(setting_lines("jax", "libtpu")))
    print(
        f"- {options.recipe}, {options.batch} examples a chip of {topology.name}, "
        f"remat={options.remat}, fsdp={options.fsdp}; nothing ran\n"
    )
    head = ("flags", "compiled in s", "GiB", "HBM traffic GB", "received MB", "asynchronous MB")
    print(f"| {' | '.join(head)} | products TFLOP | of them beside a collective |")
    print(f"|{'---|' * 8}")
    batch = options.batch * topology.num_chips
    config = get_config(f"recipe={options.recipe},batch_size={batch},fsdp={options.fsdp}")
    resolved = resolve(config, to_run=False)
    program = build_program(resolved, topology.devices, remat=options.remat)
    with program.scope():
        lowered = program.step.lower(program.abstract_state, program.abstract_batch)
    for name in options.sets:
        print(f"| {name} | {row(lowered, SETS[name], len(topology.devices))} |", flush=True)


def row(lowered: jax.stages.Lowered, flags: Mapping[str, bool | int], num_devices: int) -> str:
    """Compiles with flags; the cells of the table."""
    begin = time.perf_counter()
    try:
        compiled = lowered.compile(dict(flags) or None)
    except jax.errors.JaxRuntimeError as error:
        needed = needed_bytes(str(error))
        reason = f"needs {needed / GIB:.2f} GiB" if needed else str(error).splitlines()[0][:120]
        return f"{time.perf_counter() - begin:.0f} | {reason} |  |  |  |  | "
    seconds = time.perf_counter() - begin
    module = parse(compiled.as_text())
    visits = list(walk(module))
    memory = read_memory(compiled.memory_analysis()).total / GIB
    traffic, found = count_traffic(module, visits).hbm / 1e9, overlap(module, visits, num_devices)
    return " | ".join(
        [
            *(f"{seconds:.0f}", f"{memory:.2f}", f"{traffic:.1f}"),
            *(f"{found.received / 1e6:.0f}", f"{found.asynchronous / 1e6:.0f}"),
            *(f"{found.flops / 1e12:.2f}", f"{found.hidden_flops / found.flops:.1%}"),
        ]
    )


def overlap(module: Module, visits: Iterable[Visit], num_devices: int) -> Overlap:
    """What of a schedule goes on while a collective does; visits come in the schedule's order.

    A collective is asynchronous by an instruction that starts it and one that ends it, or, on TPUs,
    by fusions that hold calls which do.
    """
    received = asynchronous = flops = hidden = 0.0
    going: set[tuple[str, str]] = set()  # of starts, by computation and name
    fused = 0  # that go on by fusions
    for visit in visits:
        instruction, computation = visit.instruction, visit.computation
        opcode, place = instruction.opcode, computation.name
        target = instruction.attribute("custom_call_target").strip('"')
        fused += (target == START) - (target == END)
        in_piece = visit.fused and place.startswith("async_collective_fusion")
        if opcode.endswith("-done"):
            going.difference_update((place, operand) for operand in instruction.operands)
        if (kind := collective_kind(module, visit)) is not None:
            size = groups_of(instruction, num_devices).shape[1]
            arrived = visit.times * bytes_received(kind, instruction, computation, size)
            received += arrived
            is_start = opcode.endswith("-start")
            asynchronous += arrived * (is_start or in_piece or _starts(computation))
            if is_start:
                going.add((place, instruction.name))
        if opcode in ("dot", "convolution"):
            work = visit.times * product_flops(instruction, computation)
            flops += work
            hidden += work * bool(going or fused or in_piece)
    return Overlap(received, asynchronous, flops, hidden)


def _starts(computation: Computation) -> bool:
    calls = computation.instructions.values()
    return any(i.attribute("custom_call_target").strip('"') == START for i in calls)


if __name__ == "__main__":
    main()
