"""Compile a config's train step for a topology and gather what there is to say about it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from absl import logging

from clipjax import partitioning
from clipjax.experiment import Program, Resolved, Stage, build_program
from clipjax.experiment.fitting import batch_bytes, first_fitting
from clipjax.experiment.memory import (
    Setting,
    Step,
    describes,
    extra_flops,
    setting_of,
    spared_flops,
    step_of,
)
from clipjax.plan import gpu
from clipjax.plan.advice import Preference, prefer, what_fits
from clipjax.plan.attention_time import attention_times
from clipjax.plan.collectives import Collective, find_collectives
from clipjax.plan.compiling import Compiled, Memory, compile_step
from clipjax.plan.flops import Flops, count_flops
from clipjax.plan.formulas import collective_formulas
from clipjax.plan.hlo import parse, walk
from clipjax.plan.model_flops import ModelFlops, flops_of
from clipjax.plan.roofline import Bounds, bounds
from clipjax.plan.topology import Topology
from clipjax.plan.traffic import Traffic, count_traffic


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """A setting that should fit where the planned one does not.

    Attributes:
        flags: overrides for the command line.
        predicted_bytes: HBM of one device, by a model; not compiled.
        extra_flops: recomputation that it costs, as a share of the model's FLOPs.
    """

    flags: tuple[str, ...]
    predicted_bytes: float
    extra_flops: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything known about a step before it runs. Figures are of one device unless named else.

    Attributes:
        config_name: the model's name.
        topology: what it is planned for.
        mesh: sizes of the mesh axes.
        setting: remat, micro-batches, sharding.
        step: sizes that the memory follows from.
        batch_size: of the planned stage, global.
        stages: of the run; one of them is planned.
        needs: FLOPs of each stage's model, one example.
        planned: which, by its place: the one that computes most.
        fits: whether the compiler found room, and the next batch has it, too.
        needed_bytes: HBM that the step and the next batch need; of the temporaries alone where the
            compiler gave up.
        capacity_bytes: HBM that a program may use.
        memory: split of what the step needs; None where the compiler gave up.
        next_batch_bytes: of the batch after it, which is sent meanwhile.
        flops: of the compiled step; None where there is none, as for the four below.
        traffic: HBM bytes.
        collectives: between chips.
        collective_formulas: bytes that theory asks for, by part.
        bounds: of the step time.
        attention_times: of the attention kernels of TPUs, an estimate: runs and seconds a step.
        advice: what should fit, if this does not.
        preference: remat or micro-batches; None for towers that the memory model does not know.
        unsharded_state: a warning of optimizer state that each device holds whole, or None.
        compile_seconds: to trace and compile.
        compiler_options: that the compiler was given beside the step's own.
    """

    config_name: str
    topology: Topology
    mesh: dict[str, int]
    setting: Setting
    step: Step
    batch_size: int
    stages: tuple[Stage, ...]
    needs: tuple[ModelFlops, ...]
    planned: int
    fits: bool
    needed_bytes: int
    capacity_bytes: float
    memory: Memory | None
    next_batch_bytes: int
    flops: Flops | None
    traffic: Traffic | None
    collectives: list[Collective]
    collective_formulas: dict[str, float]
    bounds: Bounds | None
    attention_times: dict[str, tuple[int, float]]
    advice: list[Advice]
    preference: Preference | None
    unsharded_state: str | None
    compile_seconds: float
    compiler_options: Mapping[str, Any]

    @property
    def bound_s(self) -> float:
        """Least seconds of a step; infinite where the compiler gave up."""
        return math.inf if self.bounds is None else self.bounds.step_s

    @property
    def total_steps(self) -> int:
        """Of the run."""
        return sum(stage.num_steps for stage in self.stages)

    @property
    def model_flops(self) -> ModelFlops:
        """Of one example of the planned stage."""
        return self.needs[self.planned]

    @property
    def batch_per_device(self) -> float:
        """Examples."""
        return self.batch_size / len(self.topology.devices)

    @property
    def flops_over_model(self) -> float | None:
        """FLOPs of the compiled step over those of the model; above 1 is recomputation."""
        if self.flops is None:
            return None
        return self.flops.total / (self.model_flops.train * self.batch_per_device)

    @property
    def expected_extra_flops(self) -> float:
        """What remat and gradient caching are known to add, as a share of the model's FLOPs."""
        return extra_flops(self.step, self.setting)

    @property
    def expected_spared_flops(self) -> float:
        """What last blocks that compute one token are known to spare, as the same share."""
        spared, stage = spared_flops(self.step), self.stages[self.planned]
        passes = {name: 1 if stage.is_locked(name) else 3 for name in spared}
        again = self.setting.micro_batches > 1
        total = sum((passes[name] + again) * flops for name, flops in spared.items())
        return total / self.model_flops.train


def make_plan(resolved: Resolved, topology: Topology) -> Plan:
    """Compiles the step of a config for a topology.

    Raises:
        ValueError: the config does not fit the number of devices, or is wrong in itself.
    """
    memory_bytes = topology.chip.hbm_bytes / topology.chip.devices
    with gpu.answering_for(topology.chip):
        program = build_program(resolved, topology.devices, memory_bytes=memory_bytes)
        needs = tuple(flops_of(stage) for stage in program.stages)
        of_a_step = [
            stage.batch_size * flops.train
            for stage, flops in zip(program.stages, needs, strict=True)
        ]
        planned = of_a_step.index(max(of_a_step))
        tried: list[Compiled] = []

        def needed(program: Program) -> float:
            stage = program.stages[planned]
            tried.append(compile_step(program, stage, topology.chip))
            return beside_next(tried[-1], batch_bytes(program.batch_of(stage)))

        def under(row: str) -> Program:
            return build_program(resolved, topology.devices, memory_bytes=memory_bytes, remat=row)

        program, _ = first_fitting(program, under, needed)
    compiled = tried[-1]
    logging.info("Compiled in %.1f s.", compiled.seconds)
    return describe(program, topology, compiled, needs, planned)


def beside_next(compiled: Compiled, next_batch_bytes: int) -> float:
    """Bytes of one device for a step and the batch after it; infinite where the compiler gave up.

    The next batch is sent while a step runs.
    """
    return math.inf if compiled.memory is None else compiled.needed_bytes + next_batch_bytes


def describe(
    program: Program,
    topology: Topology,
    compiled: Compiled,
    needs: tuple[ModelFlops, ...],
    planned: int,
) -> Plan:
    """Reads a compiled step."""
    stage = program.stages[planned]
    settings, batch_size = stage.settings, stage.batch_size
    mesh = dict(program.mesh.shape)
    setting = setting_of(settings, program.mesh, program.execution.remat)
    step = step_of(stage, program.abstract_state, program.mesh, program.execution)
    chip = topology.chip
    capacity = chip.hbm_bytes / chip.devices
    next_batch = batch_bytes(program.batch_of(stage))
    fits = beside_next(compiled, next_batch) <= capacity
    needed = compiled.needed_bytes + (next_batch if compiled.memory is not None else 0)
    counted: dict[str, Any] = {"flops": None, "traffic": None, "collectives": [], "bounds": None}
    counted["attention_times"] = {}
    if compiled.text:
        counted = _count(compiled.text, program, topology, needs[planned], batch_size)
    known = describes(step.spec)
    return Plan(
        config_name=program.spec["name"],
        topology=topology,
        mesh=mesh,
        setting=setting,
        step=step,
        batch_size=batch_size,
        stages=program.stages,
        needs=needs,
        planned=planned,
        fits=fits,
        needed_bytes=needed,
        capacity_bytes=capacity,
        memory=compiled.memory,
        next_batch_bytes=next_batch,
        collective_formulas=collective_formulas(step, setting, mesh, batch_size),
        advice=[] if fits else _advice(step, setting, mesh, needed, capacity),
        preference=prefer(step, setting, needed_bytes=needed, capacity=capacity, fits=fits)
        if known
        else None,
        unsharded_state=partitioning.unsharded_state(
            program.abstract_state, program.state_axes, program.mesh, program.rules
        ),
        compile_seconds=compiled.seconds,
        compiler_options=compiled.options,
        **counted,
    )


def _count(
    text: str, program: Program, topology: Topology, needs: ModelFlops, batch_size: int
) -> dict[str, Any]:
    module = parse(text)
    visits = list(walk(module))
    flops, traffic = count_flops(visits), count_traffic(module, visits)
    # The program is that of one slice, the first along `data`.
    mesh = dict(program.mesh.shape)
    mesh["data"] //= topology.num_slices
    devices = list(program.mesh.devices[: mesh["data"]].flat)
    # The devices of a CPU have no place in a torus.
    places: list[Any] = [getattr(device, "coords", None) for device in devices]
    coords = None if None in places else places
    hosts = [device.process_index for device in devices]
    collectives = find_collectives(module, visits, mesh, coords, hosts, topology.num_slices)
    return {
        "flops": flops,
        "traffic": traffic,
        "collectives": collectives,
        "attention_times": attention_times(topology.chip, visits),
        "bounds": bounds(
            topology.chip,
            flops=flops.total,
            hbm_bytes=traffic.hbm,
            collectives=collectives,
            batch_per_device=batch_size / len(topology.devices),
            model_flops_per_example=needs.train,
        ),
    }


def _advice(
    step: Step, setting: Setting, mesh: dict[str, int], needed: float, capacity: float
) -> list[Advice]:
    found = what_fits(
        step,
        setting,
        needed_bytes=needed,
        capacity=capacity,
        fsdp_sizes=fsdp_sizes(setting, mesh),
    )
    return [
        Advice(
            flags=other.flags(round(step.batch_per_device * step.num_devices), setting),
            predicted_bytes=predicted,
            extra_flops=price,
        )
        for other, predicted, price in found
    ]


def fsdp_sizes(setting: Setting, mesh: Mapping[str, int]) -> tuple[int, ...]:
    """Sizes of the axis fsdp worth trying: about one axis of the torus, and all devices.

    The axis tensor stays as it is, unless it is the table of that name which is left.
    """
    num_devices = mesh["data"] * mesh["fsdp"]
    num_devices *= mesh["tensor"] if setting.sharding == "tensor" else 1
    near = max(
        (d for d in range(2, num_devices + 1) if num_devices % d == 0 and d * d <= num_devices),
        default=num_devices,
    )
    return tuple(sorted({near, num_devices})) if num_devices > 1 else ()
