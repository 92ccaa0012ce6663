"""Compile the train step ahead of time, and read what the compiler says about memory."""

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from absl import logging

from clipjax.experiment import Program, Stage
from clipjax.experiment.compiled_memory import Memory, needed_bytes, read_memory
from clipjax.plan import gpu
from clipjax.plan.chips import Chip


class Compiled(NamedTuple):
    """The outcome of one compilation.

    Attributes:
        memory: None where the compiler gave up for lack of it.
        needed_bytes: HBM of one device that the step needs; of the temporaries alone where the
            compiler stopped there.
        text: the compiled HLO; "" where there is none.
        seconds: to trace and compile.
        options: of the compiler.
    """

    memory: Memory | None
    needed_bytes: int
    text: str
    seconds: float
    options: Mapping[str, Any] = MappingProxyType({})


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
        choices = gpu.option_sets() if absent_gpu else ({},)
        for options in choices:
            try:
                compiled = lowered.compile(options or None)
                break
            except jax.errors.JaxRuntimeError as error:
                needed = needed_bytes(str(error))
                if needed is not None:
                    return Compiled(None, needed, "", time.perf_counter() - start, options)
                if options is choices[-1]:
                    raise
                logging.info("Compiling again, with fewer choices: %.200s", error)
    seconds = time.perf_counter() - start
    memory = read_memory(compiled.memory_analysis())
    return Compiled(memory, memory.total, compiled.as_text(), seconds, options)
