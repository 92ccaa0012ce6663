"""The recomputation of a run, chosen once: the fastest row that fits the devices' memory.

Which rows should fit, a model of the memory says (memory.py); whether one does, its compilation,
which is the very one that the run goes on to use. What was chosen stands in the workdir, and a run
that goes on takes it from there.
"""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging

from clipjax.checkpoint.manifest import digest
from clipjax.experiment.compiled_memory import needed_bytes, read_memory
from clipjax.experiment.program import Program, build_program
from clipjax.experiment.resolving import Resolved
from clipjax.files import write_file
from clipjax.layers.remat import REMAT
from clipjax.processes.distributed import gather, is_lead

RECORD = "execution.json"
_GIB = 2**30


def fitting_program(resolved: Resolved, program: Program, workdir: Path) -> Program:
    """The program of a run; with `config.remat = auto`, one that fits.

    Args:
        resolved: of the run.
        program: as built by the model of the memory alone.
        workdir: of the run, where its choice is recorded.
    """
    if resolved.settings.remat != "auto" or program.memory_bytes is None:
        return program
    # One choice for all hosts: by the smallest memory, and what the lead finds recorded.
    least = min(gather(program.memory_bytes))
    if least != program.memory_bytes:
        program = _under(resolved, program, memory_bytes=least)
    facts = _facts(resolved, program)
    remat = gather(_recorded(workdir / RECORD, facts))[0]
    if remat is not None:
        program = _under(resolved, program, remat=remat, memory_bytes=least)
        _say(program, "as this run began")
        return program
    sizes: list[float] = []

    def needed(tried: Program) -> float:
        sizes.append(bytes_needed(tried))
        return sizes[-1]

    program, fits = first_fitting(
        program, lambda row: _under(resolved, program, remat=row, memory_bytes=least), needed
    )
    advice = "which keeps least; lower config.batch_size or set config.micro_batch_size"
    _say(program, f"compiled, a step needs {sizes[-1] / _GIB:.2f} GiB" if fits else advice)
    if fits and is_lead():
        record = {"remat": program.execution.remat, "chosen_for": facts}
        write_file(workdir / RECORD, json.dumps(record, indent=1) + "\n")
    return program


def first_fitting(
    program: Program, under: Callable[[str], Program], needed: Callable[[Program], float]
) -> tuple[Program, bool]:
    """The first of a program's rows of recomputation that fits the devices' memory, or the last.

    Args:
        program: under the first of its rows.
        under: builds the same program under another row.
        needed: compiles a program; bytes of one device for a step and the batch after it.

    Returns:
        The program, and whether it fits.
    """
    memory_bytes = program.memory_bytes or 0
    for row in program.rows:
        if row != program.execution.remat:
            program = under(row)
        size = needed(program)
        if size <= memory_bytes:
            return program, True
        logging.warning(
            "remat %s: a step needs %.2f GiB of %.2f GiB", row, size / _GIB, memory_bytes / _GIB
        )
    return program, False


def _under(resolved: Resolved, program: Program, **choice: Any) -> Program:
    """The same program under another choice, with the data that its stages have."""
    found = build_program(resolved, **choice)
    stages = [
        dataclasses.replace(stage, data=old.data)
        for stage, old in zip(found.stages, program.stages, strict=True)
    ]
    return dataclasses.replace(found, stages=tuple(stages))


def bytes_needed(program: Program) -> int:
    """Bytes of one device for the largest step and the batch after it, which is sent meanwhile.

    Steps that are equal are compiled once.
    """
    needed = 0
    with program.scope():
        for stage in program.stages:
            batch = program.batch_of(stage)
            lowered = stage.step.lower(program.abstract_state, batch)
            try:
                total = read_memory(lowered.compile().memory_analysis()).total
                needed = max(needed, total + batch_bytes(batch))
            except jax.errors.JaxRuntimeError as error:
                found = needed_bytes(str(error))
                if found is None:
                    raise
                needed = max(needed, found, int(program.memory_bytes or 0) + 1)
    return needed


def batch_bytes(batch: Any) -> int:
    """Bytes of a batch on one device; the next one is sent while a step runs."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(batch)
    )


def _say(program: Program, why: str) -> None:
    if is_lead():
        logging.info("config.remat = auto takes %s: %s", program.execution.remat, why)


def _facts(resolved: Resolved, program: Program) -> dict[str, Any]:
    """What the choice follows from."""
    settings, device = resolved.settings, program.mesh.devices.flat[0]
    narrow = [stage.narrow_towers(program.execution) for stage in resolved.stages]
    return {
        "device": device.device_kind,
        "memory_bytes": program.memory_bytes,
        "mesh": dict(program.mesh.shape),
        "batch_size": settings.batch_size,
        "micro_batch_size": settings.micro_batch_size,
        "dtype": settings.dtype,
        "attention": settings.attention,
        "sharding": settings.sharding,
        "jax": jax.__version__,
        "step": digest(
            [
                [stage.spec for stage in resolved.stages],
                [settings.scan_layers, settings.scan_unroll, settings.objective],
                [dataclasses.asdict(part) for part in (settings.loss, settings.optimizer)],
                settings.logical_axes,
                resolved.stages[-1].frozen,
                *([narrow] if any(narrow) else []),
                *([settings.stages] if settings.stages else []),
                *([dataclasses.asdict(settings.lora)] if settings.lora.rank else []),
            ]
        ),
    }


def _recorded(path: Path, facts: dict[str, Any]) -> str | None:
    """The row that was chosen for the same before; None where there is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    same = isinstance(record, dict) and record.get("chosen_for") == facts
    return record["remat"] if same and record.get("remat") in REMAT else None
