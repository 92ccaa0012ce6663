"""Where a run starts."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

import jax
from absl import logging

from clipjax.checkpoint.manager import CheckpointManager
from clipjax.checkpoint.pretrained import LoadReport


@dataclasses.dataclass(frozen=True)
class Start:
    """A run's first state and where it is from; `report` is that of `init`."""

    state: Any
    step: int
    source: Literal["workdir", "resume", "init", "scratch"]
    report: LoadReport | None = None


def find_start(
    manager: CheckpointManager,
    abstract_state: Any,
    initialise: Callable[[], Any],
    *,
    resume: str | os.PathLike[str] | None = None,
    load_init: Callable[[Any], tuple[Any, LoadReport]] | None = None,
) -> Start:
    """Finds the state that a run starts from.

    Args:
        manager: of the run's own workdir.
        abstract_state: tree of `jax.ShapeDtypeStruct` with shardings.
        initialise: makes a fresh state; called only if it is needed.
        resume: `config.resume`: a checkpoint, or the workdir of a run that this one continues.
        load_init: `config.init`: takes a fresh state, returns it with the parameters and running
            statistics that were loaded, and a report (see `load_pretrained`).

    Raises:
        DamagedCheckpointError, ValueError: see `CheckpointManager.restore_latest`.
    """
    # The priority, and the reason of each place:
    #   1. the workdir's newest whole step: a run that was killed goes on, whatever else is set,
    #      so that the same command line starts and restarts a run;
    #   2. config.resume: the whole state of another run, its step number included;
    #   3. config.init: parameters and running statistics; the optimizer and the step start anew;
    #   4. scratch.
    restored = manager.restore_latest(abstract_state)
    if restored is not None:
        return Start(*restored, source="workdir")
    if resume:
        return Start(*manager.restore_from(resume, abstract_state), source="resume")
    state = initialise()
    if load_init is None:
        return Start(state, 0, source="scratch")
    state, report = load_init(state)
    for line in report.lines():
        logging.info("init: %s", line)
    if getattr(state, "ema_params", None) is not None:
        # The average starts at the parameters, in buffers of its own: the step donates both.
        average = jax.tree.map(
            lambda x: jax.device_put(x, x.sharding, may_alias=False), state.params
        )
        state = state.replace(ema_params=average)
    return Start(state, 0, source="init", report=report)
