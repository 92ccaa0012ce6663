"""Compile the train step ahead of time, and read what the compiler says about memory."""

import re
import time
from typing import Any, NamedTuple

import jax
from absl import logging

from clipjax.experiment import Program, Stage
from clipjax.plan import gpu
from clipjax.plan.chips import Chip

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NEEDED = (
    re.compile(r"\((?P<used>[\d.]+)(?P<unit>[KMGT]?)\) exceeds available HBM \((?P<of>[\d.]+)"),
    re.compile(r"Used (?P<used>[\d.]+)(?P<unit>[KMGT]?) of (?P<of>[\d.]+)[KMGT]? hbm"),
)


class Memory(NamedTuple):
    """HBM of one device, bytes.

    Attributes:
        arguments: train state and batch.
        temporaries: activations, gradients, buffers of collectives.
        outputs: the new state and the metrics.
        aliased: outputs that take the place of arguments (the state is donated).
        code: the program.
    """

    arguments: int
    temporaries: int
    outputs: int
    aliased: int
    code: int

    @property
    def total(self) -> int:
        """What has to fit."""
        return self.arguments + self.temporaries + self.outputs - self.aliased + self.code


class Compiled(NamedTuple):
    """The outcome of one compilation.

    Attributes:
        memory: None where the compiler gave up for lack of it.
        needed_bytes: HBM of one device that the step needs; of the temporaries alone where the
            compiler stopped there.
        text: the compiled HLO; "" where there is none.
        seconds: to trace and compile.
    """

    memory: Memory | None
    needed_bytes: int
    text: str
    seconds: float


def compile_step(program: Program, stage: Stage, chip: Chip | None = None) -> Compiled:
    """Compiles the very step that `train` runs in a stage, for the devices of its mesh.

    Args:
        program: of the run.
        stage: of its stages.
        chip: what the devices of the mesh stand for; None for devices that are there.
    """
    start = time.perf_counter()
    absent_gpu = chip is not None and chip.is_gpu
    with program.scope():
        lowered = stage.step.lower(program.abstract_state, program.batch_of(stage))
        logging.info("Traced in %.1f s; compiling ...", time.perf_counter() - start)
        try:
            compiled = lowered.compile(gpu.COMPILER_OPTIONS if absent_gpu else None)
        except jax.errors.JaxRuntimeError as error:
            needed = needed_bytes(str(error))
            if needed is None:
                raise
            return Compiled(None, needed, "", time.perf_counter() - start)
    seconds = time.perf_counter() - start
    memory = read_memory(compiled.memory_analysis())
    return Compiled(memory, memory.total, compiled.as_text(), seconds)


def read_memory(analysis: Any) -> Memory:
    """Reads XLA's memory analysis of a compiled program."""
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        outputs=analysis.output_size_in_bytes,
        aliased=analysis.alias_size_in_bytes,
        code=analysis.generated_code_size_in_bytes,
    )


def needed_bytes(message: str) -> int | None:
    """HBM that a refused program needs, from the compiler's message; None for other errors."""
    if "RESOURCE_EXHAUSTED" not in message and "hbm" not in message.lower():
        return None
    for pattern in _NEEDED:
        if match := pattern.search(message):
            return int(float(match["used"]) * _UNITS[match["unit"]])
    return None
