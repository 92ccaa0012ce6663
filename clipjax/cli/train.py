"""`clipjax train --config configs/x.py[:args] --workdir DIR [--config.k=v ...]`."""

import dataclasses

from absl import flags, logging

from clipjax import compile_cache, faults
from clipjax.cli import config_flag, joining, opening
from clipjax.cli.main import Failed, given, no_positional, print_results
from clipjax.cli.output import show
from clipjax.processes import distributed, exit_codes, exit_record, process_log, signals
from clipjax.processes.watchdog import Watchdog

_CONFIG = config_flag.define()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; it resumes by itself.")
_EVAL = flags.DEFINE_list("eval", [], "Evaluations to run on the newest checkpoint, not training.")
_TAKE_OVER = flags.DEFINE_bool(
    "take_over", False, "Take the workdir from a run that may still be alive; that one stops."
)
_RESUME_STEP = flags.DEFINE_integer(
    "resume_step", None, "Go back to this step; later ones are set aside, not deleted.", 0
)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps",
    None,
    "FIRST:LAST, such as 10:15: steps to trace, and a table of their kernels.",
)
flags.adopt_module_key_flags(opening)
flags.adopt_module_key_flags(joining)


def main(argv: list[str]) -> int:
    """Trains, or evaluates; returns the exit code."""
    no_positional(argv)
    how = ": --config configs/x.py --workdir DIR"
    config, folder = given(_CONFIG.value, "--config", how), given(_WORKDIR.value, "--workdir", how)
    opening.put_into(config)
    from clipjax.data.storage.cache import cache_dir
    from clipjax.data.storage.files import local_path  # these imports take a while: not for --help
    from clipjax.experiment import MOUNT, build_experiment, resolve
    from clipjax.profiling import parse_steps

    profile_steps = parse_steps(_PROFILE_STEPS.value) if _PROFILE_STEPS.value else None
    workdir = local_path(folder, way=f"{MOUNT} as --workdir")
    resolved = resolve(config, workdir=workdir)  # a typo is found before a pod is joined
    process_log.start(workdir)
    from clipjax.processes import peers

    limits = distributed.Limits(**dataclasses.asdict(resolved.settings.distributed))
    peers.guard(limits)
    # A little longer than the time after which joining itself says who did not come.
    with Watchdog(limits.join_timeout_s + 60, "joining the other processes"):
        faults.point("start.join")
        distributed.initialize(joining.mode(), limits)  # nothing before it touched a device
    peers.watch(limits)
    if (guard := signals.active()) is not None:
        guard.before_exit.append(exit_record.end)
        guard.share()
    if workdir.exists():
        process_log.keep(distributed.process_index())
    compile_cache.use(cache_dir() / "compiled", workdir=workdir)
    if not _EVAL.value:
        exit_record.open_record(workdir, is_lead=distributed.process_index() == 0)
    from clipjax.checkpoint import (
        CheckpointSaveError,
        DamagedCheckpointError,
        NonFiniteStateError,
        WorkdirTakenError,
    )
    from clipjax.evals.running import read_results
    from clipjax.evaluate import evaluate
    from clipjax.report.writing import REPORT
    from clipjax.train import NumericError, PreemptedError, train

    try:
        with Watchdog(resolved.settings.start_timeouts.data_s, "opening the data"):
            faults.point("start.data")
            experiment = build_experiment(resolved, workdir)
        faults.point("start.train")
        process_log.keep(distributed.process_index())
        if _EVAL.value:
            results = evaluate(experiment, _EVAL.value)
        else:
            train(
                experiment,
                take_over=_TAKE_OVER.value,
                resume_step=_RESUME_STEP.value,
                profile_steps=profile_steps,
            )
            results = read_results(experiment.workdir)
        if distributed.is_lead():
            print_results(results)
            if (experiment.workdir / REPORT).exists() and not _EVAL.value:
                show(f"report: {experiment.workdir / REPORT}")
    except PreemptedError as stop:
        logging.warning("%s", stop)
        exit_record.end(exit_codes.PREEMPTED, str(stop))
        return exit_codes.PREEMPTED
    except (NumericError, NonFiniteStateError) as error:
        raise Failed(exit_codes.NUMERIC) from error
    except WorkdirTakenError as error:
        exit_record.open_record(workdir, is_lead=False)  # the one that is there is another's
        raise Failed(exit_codes.FAILED) from error
    except (CheckpointSaveError, DamagedCheckpointError) as error:
        raise Failed(exit_codes.FAILED) from error
    except TimeoutError as error:
        raise Failed(exit_codes.HUNG) from error
    return exit_codes.OK
