"""The training loop.

Its order is a contract. At the top of step i, with state_i:

    1. evaluations on state_i, if due; at step 0 only of a fine-tuning, as its baseline
    2. checkpoint.save(i), if due, or if the run is asked to stop
    3. batch(i)
    4. step: state_i -> state_{i+1}
    5. metrics of an earlier step, if due

After the last step: the save, then all evaluations and the report, whose results name the
checkpoint. A run that is asked to stop does so between two of these, and between two batches of an
evaluation or, in a single process, while it waits for a batch: it saves state_i, and the
evaluations that are owed on state_i run when it is started again. Before its first step and after
its last save it ends at once (clipjax/processes/signals.py).

Saving before the batch of step i is drawn makes (state, data position) one consistent point: the
data position is the step number, so a resumed run draws exactly the batches that it would have
drawn. The step donates its state. The host reads device values of logging steps only, when the
next step is under way, so that the device does not wait for it; before an evaluation or a save it
reads at once. What hosts tell one another here goes through the coordination service, not through
the devices.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
from absl import logging

from clipjax import __version__, averages, faults
from clipjax.checkpoint import CheckpointManager, find_start, manifest_digest, owned
from clipjax.data.loading.bad_examples import add_states
from clipjax.device_clock import DeviceClock
from clipjax.evals.budget import LEFT_OUT, EvalBudget
from clipjax.evals.running import (
    RESULTS,
    SAVED,
    EvalResult,
    ScheduledEval,
    by_parameters,
    flat_metrics,
    model_facts,
    read_document,
    read_results,
    run_evals,
    set_aside_damaged,
    write_results,
)
from clipjax.experiment import Experiment, Program, fitting_program
from clipjax.goodput import Goodput
from clipjax.losses.objectives import split_variables
from clipjax.metric_writers import MetricWriter, keep_metrics
from clipjax.models.lora import merged
from clipjax.partitioning import global_batch
from clipjax.processes import distributed, exit_record, peers
from clipjax.processes.signals import StopRequestedError, guarding
from clipjax.processes.watchdog import Closing, Watchdog
from clipjax.profiling import StepProfile
from clipjax.progress import ProgressBar
from clipjax.report.writing import REPORT, collect_answers, write_report
from clipjax.skipped_steps import SKIPPED_FILE, SkippedSteps
from clipjax.step_log import StepLog
from clipjax.trackers import Trackers
from clipjax.train_state import TrainState
from clipjax.trees import count_bytes, count_parameters

CHECKPOINTS = "checkpoints"


class PreemptedError(Exception):
    """The run was asked to stop; its current step is saved."""

    is_agreed = True  # all processes stop


class NumericError(Exception):
    """Too many steps had a loss, gradient or state that was not finite."""

    is_agreed = True  # the count is the same in all processes


def train(
    experiment: Experiment,
    *,
    take_over: bool = False,
    resume_step: int | None = None,
    profile_steps: tuple[int, int] | None = None,
) -> TrainState:
    """Trains from where the run stands to its last step.

    Args:
        experiment: the run.
        take_over: take the workdir from another run that may still be alive.
        resume_step: go back to this step of the workdir; later ones are set aside.
        profile_steps: the first and the last step of a trace; see `clipjax.profiling`.

    Raises:
        WorkdirTakenError: another run writes into the workdir.
        PreemptedError: SIGTERM, SIGINT, SIGHUP or SIGUSR1 came; the current step is saved.
        NumericError: the gradient was not finite for too many steps.
        ValueError, CheckpointSaveError, ...: see the parts; nothing goes on silently.
    """
    settings, init = experiment.settings, experiment.resolved.init
    limits = settings.start_timeouts
    with Watchdog(limits.data_s, "waiting for the data of the other processes"):
        distributed.agree(
            {
                "clipjax version": __version__,
                "jax version": jax.__version__,
                "config": experiment.resolved.config_sha256,
                "dataset": experiment.metadata["dataset_fingerprint"],
                "step of config.init.checkpoint": init.step_dir.name if init is not None else "",
            }
        )
        distributed.connect(experiment.program.mesh)
    experiment.workdir.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack, peers.telling():  # before what is open closes, and may wait
        closing = Closing(settings.hang_timeout_s)
        stack.push(closing.end)
        check_owner = stack.enter_context(owned(experiment.workdir, take_over=take_over))
        exit_record.begin()
        goodput = Goodput(experiment.workdir, check_owner)
        with Watchdog(limits.compile_s, "compiling the step"), goodput.spending("compile"):
            program = fitting_program(experiment.resolved, experiment.program, experiment.workdir)
            distributed.agree({"config.remat = auto": program.execution.remat})
        experiment = dataclasses.replace(experiment, program=program)
        manager = stack.enter_context(
            CheckpointManager(
                experiment.workdir / CHECKPOINTS,
                keep=settings.checkpoint.keep,
                keep_every=settings.checkpoint.keep_every,
                best=settings.checkpoint.best,
                metadata=experiment.metadata,
                check_owner=check_owner,
            )
        )
        stack.callback(experiment.loader.close)
        stack.enter_context(experiment.program.scope())
        stack.push(closing.begin)
        with Watchdog(limits.restore_s, "restoring the state"):
            faults.point("restore")
            if (
                resume_step is not None
                and manager.go_back_to(resume_step)
                and distributed.is_lead()
            ):
                keep_metrics(experiment.workdir, f"after_{resume_step}")
            start = find_start(
                manager,
                experiment.program.abstract_state,
                lambda: experiment.program.create_state(settings.seed),
                resume=settings.resume,
                load_init=experiment.load_init,
            )
        _announce(experiment, start.step, start.source)
        if start.step > settings.total_steps:
            raise ValueError(
                f"{experiment.workdir} stands at step {start.step}, after config.total_steps = "
                f"{settings.total_steps}; raise it, or give another --workdir"
            )
        if start.step < settings.total_steps:
            manager.check_free_space(count_bytes(experiment.program.abstract_state))
        if manager.restored is not None and manager.restored.bad_examples:
            experiment.loader.restore_bad(manager.restored.bad_examples)
        exit_record.begin(start.step)
        loop = Loop(experiment, manager, stack, start.step, check_owner, profile_steps, goodput)
        return loop.run(start.state)


def _announce(experiment: Experiment, step: int, source: str) -> None:
    if not distributed.is_lead():
        return
    program = experiment.program
    params = count_parameters(program.abstract_state.params)
    device = program.mesh.devices.flat[0]
    logging.info("%s", program.optimizer_summary)
    logging.info(
        "devices: %d x %s (%s) of %d host%s",
        program.mesh.devices.size,
        device.device_kind,
        device.platform,
        jax.process_count(),
        "s" if jax.process_count() > 1 else "",
    )
    logging.info("layers: %s", program.execution.summary)
    logging.info(
        "model %s: %s parameters; mesh %s; %s examples; step %d of %d (from %s)",
        program.spec["name"],
        f"{params:,}",
        dict(program.mesh.shape),
        f"{len(experiment.loader.source):,}",
        step,
        experiment.settings.total_steps,
        source,
    )


def _announce_stage(program: Program, index: int, step: int) -> None:
    if distributed.is_lead():
        stage = program.stages[index]
        logging.info(
            "stage %d of %d, steps %d to %d: %s",
            index + 1,
            len(program.stages),
            step,
            stage.until_step - 1,
            stage.sizes,
        )


class Loop:
    """The loop's own variables; `run` is the contract above, read top to bottom."""

    def __init__(
        self,
        experiment: Experiment,
        manager: CheckpointManager,
        stack: ExitStack,
        start: int,
        check_owner: Callable[[], None] = lambda: None,
        profile_steps: tuple[int, int] | None = None,
        goodput: Goodput | None = None,
    ) -> None:
        self.experiment, self.settings = experiment, experiment.settings
        self.check_owner = check_owner  # before each write into the workdir
        self.manager = manager
        self.writer = MetricWriter(
            experiment.workdir,
            start_step=start,
            log_every=self.settings.log_every,
            is_finished=start == self.settings.total_steps,
            tensorboard=self.settings.tensorboard,
            trackers=Trackers(
                self.settings.trackers, experiment.workdir, experiment.resolved.config
            )
            if self.settings.trackers and distributed.is_lead()
            else None,
        )
        if distributed.is_lead():
            set_aside_damaged(experiment.workdir)
        stack.callback(self.writer.close)
        self.profile = StepProfile(experiment.workdir, profile_steps, start)
        stack.callback(self.profile.close)
        self.progress = ProgressBar(
            self.settings.total_steps,
            num_examples=experiment.program.num_examples,
            start_step=start,
        )
        stack.callback(self.progress.close)
        self.guard = stack.enter_context(guarding())
        self.watchdog = stack.enter_context(Watchdog(self.settings.hang_timeout_s))
        self.devices = DeviceClock()
        stack.callback(self.devices.close)
        self.start = start
        self.is_best = False  # the step whose evaluation was the last one
        self.stage: int | None = None  # of the program, that the last step belongs to
        self.goodput = goodput or Goodput(experiment.workdir)
        self.goodput.begin(start)
        self.budget = EvalBudget(
            experiment.evals,
            self.settings.eval_time_fraction,
            self.goodput.age_s,
            self.goodput.evaluations,
        )
        self.log = StepLog(
            experiment,
            self.writer,
            self.progress,
            self.devices,
            self.goodput,
            start=start,
            check_owner=check_owner,
        )
        self.skipped = SkippedSteps(
            experiment.workdir / SKIPPED_FILE if distributed.is_lead() else None,
            in_a_row=self.settings.max_skipped_in_a_row,
            fraction=self.settings.max_skipped_fraction,
            total_steps=self.settings.total_steps,
            examples=lambda step: experiment.loader.indices(step - 1).tolist(),
        )

    def run(self, state: TrainState) -> TrainState:
        """Trains from a state to the last step; gives the state that is saved last."""
        settings = self.settings
        batches = self.experiment.loader.iterate(self.start)
        for step in range(self.start, settings.total_steps):
            exit_record.at(step)
            faults.point("loop.step", step)
            with self.stopping(step, state):
                self.evaluate(step, state)
                self.save(step, state)
                batch = self.next_batch(batches)
            self.profile.before(step + 1, state)
            state, metrics = self.step(step, state, batch)
            self.log.stood_still(self.profile.after(step + 1, state))
            self.goodput.at(step + 1)
            if step == self.start:
                self.guard.losing(True)  # until here, starting again costs nothing but time
            self.log.flush()  # of an earlier step: the device is busy with this one
            self.check_skipped(self.skipped.give(step + 1, metrics["skipped_in_a_row"]))
            self.log.give(step + 1, metrics)
            # The first loss is fetched by itself, so that the first line has one.
            first = {"loss": jax.device_get(metrics["loss"])} if step == self.start else None
            if step + 1 < settings.total_steps:  # the last one's line has its metrics
                self.progress.update(step + 1, first)
            self.watchdog.beat()
        self.check_skipped(self.skipped.read())
        exit_record.at(settings.total_steps)
        faults.point("loop.step", settings.total_steps)
        with self.stopping(settings.total_steps, state):
            self.save(settings.total_steps, state)
            self.guard.losing(False)
            self.evaluate(settings.total_steps, state)
            self.finish(state)
        return state

    @contextmanager
    def stopping(self, step: int, state: TrainState) -> Iterator[None]:
        """Saves state_step and stops the run if it is asked to inside."""
        try:
            yield
        except StopRequestedError as error:
            last = step == self.settings.total_steps  # then it is saved
            if not last:
                self.save_now(step, state, block=True)
            rest = "; its evaluations and the report are owed" if last else ""
            raise PreemptedError(
                f"asked to stop; step {step} is saved{rest}; start again to go on"
            ) from error

    def evaluate(self, step: int, state: TrainState) -> None:
        """Runs the evaluations that are due on state_step."""
        if step == self.start and step > 0 and not self.owes_evals(step):
            return
        last = step == self.settings.total_steps
        # Step 0 of a fine-tuning is the baseline: what its parameters could do before it.
        all_of_them = last or (step == 0 and self.experiment.load_init is not None)
        asked = [
            e
            for e in self.experiment.evals
            if all_of_them or (e.every_steps and step and step % e.every_steps == 0)
        ]
        if not asked:
            return
        due = asked if all_of_them else self.budget.choose(step, asked)
        counts = {LEFT_OUT: len(asked) - len(due)} if len(due) < len(asked) else {}
        results = self.run_evals(step, state, due) if due else []
        if not all_of_them:
            self.budget.took(results)
        self.check_owner()
        self.writer.write_evals(step, {**flat_metrics(results), **counts})
        self.is_best = self.manager.measured(step, flat_metrics(results))
        if last and distributed.is_lead():
            self.write_results(step, results)

    def run_evals(
        self, step: int, state: TrainState, due: Sequence[ScheduledEval]
    ) -> list[EvalResult]:
        """Runs evaluations; the clock of the steps stands still meanwhile."""
        self.log.flush()
        try:
            limit_s = self.settings.hang_timeout_s
            phase = self.watchdog.phase(f"the evaluations of step {step}", limit_s)
            with phase, self.log.clock_stopped(state, "evaluation"):
                results = []
                for which, part in by_parameters(due).items():
                    variables, every = self.variables(state, which), self.experiment.evals
                    results += run_evals(part, variables, of=every, beat=self.watchdog.beat)
                return results
        except StopRequestedError:
            raise
        except Exception:
            if jax.process_count() == 1:  # elsewhere the others may not have failed, and would wait
                self.save_now(step, state, block=True)
            raise

    def variables(self, state: TrainState, which: str | None = None) -> Any:
        """What is evaluated, as `eval_variables`, the differences of config.lora added."""
        found, scale = eval_variables(state, which), self.settings.lora.scale
        if scale is None:
            return found
        params = jax.jit(merged, static_argnames="scale")(found["params"], scale=scale)
        return {**found, "params": params}

    def write_results(self, step: int, results: Sequence[EvalResult]) -> None:
        """Writes results.json, which names the checkpoint by its SHA-256."""
        sha256 = manifest_digest(self.experiment.workdir / CHECKPOINTS / str(step))
        facts = model_facts(self.experiment.metadata["contract"], checkpoint=sha256)
        write_results(self.experiment.workdir, step, results, facts)

    def owes_evals(self, step: int) -> bool:
        """Whether the run was stopped before it had evaluated the step that it starts from."""
        lacks = False
        if distributed.is_lead() and step == self.settings.total_steps:
            lacks = read_results(self.experiment.workdir).get("step") != step
        elif distributed.is_lead():
            lacks = self.writer.evaluated_step != step
        return distributed.gather(lacks)[0]

    def save(self, step: int, state: TrainState) -> None:
        """Saves state_step if it is due; stops the run if it was asked to."""
        self.manager.check_for_errors()
        stop = self.guard.should_stop()
        last = step == self.settings.total_steps
        due = step > self.start and step % self.settings.checkpoint.every_steps == 0
        due, self.is_best = due or self.is_best, False
        if last or (due and not stop):
            self.save_now(step, state, block=last)
        if stop and (not last or self.experiment.evals or self.settings.report):
            raise StopRequestedError

    def save_now(self, step: int, state: TrainState, *, block: bool) -> None:
        """Saves state_step."""
        self.log.flush()  # a run that goes on from here does not write this step's metrics again
        jax.block_until_ready(state)  # as the copy of it does: till then, steps take the time
        with self.goodput.spending("checkpoint"):
            self.writer.sync()
            bad = distributed.gather_at_lead(f"save/{step}", self.experiment.loader.bad_state())
            self.manager.save(step, state, bad_examples=add_states(bad), block=block)
        self.goodput.save()

    def next_batch(self, batches: Iterator[Any]) -> Any:
        """Takes the next batch."""
        return global_batch(self.log.next_of(batches), self.experiment.program.mesh)

    def step(self, step: int, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        """Hands state and batch to the step of its stage; compiles it where a stage begins."""
        program = self.experiment.program
        index = program.stage_index(step)
        with ExitStack() as stack:
            if index != self.stage:
                _announce_stage(program, index, step)
                limit_s = self.settings.start_timeouts.compile_s
                stack.enter_context(self.watchdog.phase("compiling the step", limit_s))
                stack.enter_context(self.log.clock_stopped(state, "compile"))
                faults.point("compile", step)
                self.stage = index
                if self.settings.diagnostics:  # compiles it, in the time that this may take
                    jax.block_until_ready(program.stages[index].diagnose(state, batch))
            stack.enter_context(jax.transfer_guard("disallow"))
            more = {}
            if self.settings.diagnostics and self.log.is_due(step + 1):
                more = program.stages[index].diagnose(state, batch)
            state, metrics = program.stages[index].step(state, batch)
            metrics = {**metrics, **more}
        self.devices.give(metrics["loss"])
        return state, metrics

    def check_skipped(self, wrong: str) -> None:
        """Stops the run if too many steps were skipped, and names the step to go back to."""
        if not wrong:
            return
        self.log.flush()
        good = self.manager.good_steps()
        back = "no checkpoint is without skipped steps just before it"
        if good:
            back = (
                f"the newest checkpoint without skipped steps just before it is of step {good[0]}: "
                f"--resume_step={good[0]} goes back to it"
            )
        if good[1:]:
            back += f", --resume_step={good[1]} where steps after that are skipped again"
        raise NumericError(
            f"loss, gradient or state was not finite in {wrong} and these were skipped; {back}. "
            "Lower config.optimizer.learning_rate, set config.optimizer.clip_norm, or look at the "
            f"data of those steps ({SKIPPED_FILE} in the workdir lists their examples, and clipjax "
            "debug --step=N says where it arises in one)"
        )

    def finish(self, state: TrainState) -> None:
        """Writes the report."""
        if distributed.is_lead() and read_document(self.experiment.workdir).get(SAVED, "") is None:
            # They are of an older version, which evaluated before it saved.
            self.write_results(self.settings.total_steps, ())
        path = self.experiment.workdir / REPORT
        results = self.experiment.workdir / RESULTS
        is_done = (
            self.start == self.settings.total_steps
            and path.exists()
            and (not results.exists() or path.stat().st_mtime >= results.stat().st_mtime)
        )
        if not self.settings.report or is_done:
            return
        faults.point("report")
        own = [each for each in self.experiment.evals if each.which is None]
        with self.goodput.spending("evaluation"):
            answers = collect_answers(own, self.variables(state))
        self.goodput.save()
        if distributed.is_lead():
            self.check_owner()
            self.writer.close()  # the curves are read from its files
            write_report(self.experiment.workdir, answers)


def eval_variables(state: TrainState, which: str | None = None) -> Any:
    """What is evaluated, with running statistics: `ema_params` where there are any, or an average.

    Args:
        state: of a run.
        which: the name of an average of `config.optimizer.averages`; None is the model itself.
    """
    params = state.params if state.ema_params is None else state.ema_params
    if which is not None:
        params = averages.whole(state.params, state.averages[which])
    return split_variables({"params": params, **state.model_state})[0]
