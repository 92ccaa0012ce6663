"""`clipjax VERB [flags]`: finds the verb, turns errors to one line and an exit code."""

import ast
import contextlib
import functools
import importlib
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from absl import app, logging
from absl.flags import FLAGS
from absl.flags import Error as FlagsError

from clipjax import __version__, faults, importing
from clipjax.cli import logs
from clipjax.cli.flag_names import name_flags
from clipjax.cli.output import complain, show, show_page
from clipjax.printable import describe, printable
from clipjax.processes import exit_codes, exit_record, process_log, signals
from clipjax.processes.tracebacks import guard_tracebacks, show_traceback

T = TypeVar("T")

_EXIT_S = 10.0  # that the interpreter may take to exit after a failure
_CONFIG_AT_HOME = re.compile(r"(?<=^-config=)~.*|(?<=^--config=)~.*")


class Failed(Exception):
    """A verb failed with an exit code of its own; what happened is its cause."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


VERBS = {
    "train": "train a config into a workdir, or evaluate its newest checkpoint with --eval",
    "debug": "replay a step of a run and say where its first number arises that is not finite",
    "eval": "evaluate a checkpoint: --zero_shot and --retrieval on datasets named by SPEC",
    "sweep": "train a config over a grid of fields, one run after another; a table and a page",
    "fit": "scaling laws over a sweep's runs or a published ladder, and what a config should reach",
    "compare": "compare two checkpoints on one dataset, example by example",
    "soup": "mix checkpoints of one model: their mean, a greedy soup, the line between two",
    "classify": "rank labels for your own pictures",
    "convert": "convert weights: OpenAI, OpenCLIP, Hugging Face, big_vision, and back",
    "embed": "write the embeddings of a dataset's pictures to a folder",
    "search": "find the pictures of such a folder that are nearest to a text or a picture",
    "dedup": "find its pictures that show the same, and write a filter that keeps one of each",
    "cluster": "group its pictures by what they show, with the nearest words",
    "serve": "answer over HTTP, with a page: labels for a picture, search of such a folder",
    "data": "check, index, pack, stats or score a dataset named by SPEC",
    "tokenizer": "train a SentencePiece vocabulary on the captions of datasets, or try one",
    "plan": "compile the train step for absent TPUs or GPUs: memory, FLOPs, traffic, bounds, cost",
    "doctor": "examine this machine, or all hosts of a run, before it: what would stop or slow it",
    "models": "list the named models",
}

# Errors that are a person's to mend: one line says what, where and how (CLIPJAX_TRACEBACK=1 shows
# from where it came). Anything else is ours and shows its traceback.
_EXPECTED = (ValueError, OSError, FloatingPointError, MemoryError, FlagsError)


def usage() -> str:
    """The help page."""
    lines = [f"clipjax {__version__}: CLIP pretraining in JAX", "", "clipjax VERB [flags]", ""]
    lines += [f"  {verb:<10} {text}" for verb, text in VERBS.items()]
    return "\n".join([*lines, "", "clipjax VERB --help tells the flags of a verb."])


def command() -> None:
    """The console script: a failure ends the process, whatever threads a library has left behind.

    Orbax's wait for minutes where a save failed at its beginning, and the interpreter for them.
    """
    try:
        run()
    except SystemExit as stop:
        if stop.code:
            late = threading.Timer(_EXIT_S, os._exit, [stop.code])
            late.daemon = True
            late.start()
        raise


def run(argv: list[str] | None = None) -> None:
    """Runs a verb; raises SystemExit at its end."""
    argv = sys.argv if argv is None else argv
    verb = argv[1] if len(argv) > 1 else "--help"
    if verb in ("--help", "-h", "help"):
        show_page(usage())
        sys.exit(0 if len(argv) > 1 else 2)
    if verb == "--version":
        show(__version__)
        sys.exit(0)
    if verb not in VERBS:
        complain(f"clipjax: {verb!r} is no verb")
        show_page(f"\n{usage()}", sys.stderr)
        sys.exit(2)
    guard_tracebacks()
    if verb == "train":  # stops where it can go on from
        with signals.PreemptionGuard(is_command=True):
            _start(verb, argv)
    if verb == "serve":  # ends by a signal
        _start(verb, argv)
    if verb == "sweep":  # passes what stops it on to its run, and waits for that
        try:
            _start(verb, argv)
        except KeyboardInterrupt:
            complain("clipjax sweep: interrupted; start it again to go on")
            sys.exit(signals.INTERRUPTED)
    with signals.interruptible(f"clipjax {verb}: interrupted; start it again to have it all"):
        _start(verb, argv)


def _start(verb: str, argv: list[str]) -> NoReturn:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # XLA's own start-up chatter
    faults.point("start.import")
    module = importlib.import_module(f"clipjax.cli.{verb}")
    if {"--help", "-h"} & set(argv[2:]):
        show_page(f"{module.__doc__}\n{FLAGS.module_help(module.__name__)}")
        sys.exit(0)
    app.run(
        lambda rest: _run_verb(verb, module.main, rest),
        argv=[f"clipjax {verb}", *argv[2:]],
        flags_parser=lambda given: parse_flags(verb, given),
    )
    raise AssertionError("the verb exits")


def parse_flags(verb: str, argv: list[str]) -> list[str]:
    """Parses the flags; a config file runs here, so its errors and a typo's come from here too."""
    # A shell leaves the `~` behind `=` as it is; other paths are expanded where they are opened.
    argv = [_CONFIG_AT_HOME.sub(lambda found: os.path.expanduser(found[0]), a) for a in argv]
    if (folder := importing.folder_of_config(argv)) is not None:
        importing.make_importable([os.getcwd(), folder])  # for plug-ins, and for the config itself
    try:
        return FLAGS(argv)
    except (*_EXPECTED, AttributeError, KeyError, TypeError) as error:
        _fail(verb, error)


def _run_verb(verb: str, main: Callable[[list[str]], int], argv: list[str]) -> None:
    logs.configure(verb)  # after absl has parsed its flags, which would set its own handler
    try:
        code = main(argv)
        if (peers := sys.modules.get("clipjax.processes.peers")) is not None:
            peers.leave()
        exit_record.end(code)
    except KeyboardInterrupt as error:
        if (peers := sys.modules.get("clipjax.processes.peers")) is not None:
            peers.fail(error, signals.INTERRUPTED, lambda: complain(f"clipjax {verb}: interrupted"))
        raise
    except Failed as failed:
        cause = failed.__cause__ or failed
        name_flags(cause, verb)
        _end(failed.code, cause, lambda: logging.error("%s", cause))
    except Exception as error:
        from clipjax.checkpoint import CheckpointSaveError, DamagedCheckpointError

        name_flags(error, verb)
        if isinstance(error, (*_EXPECTED, CheckpointSaveError, DamagedCheckpointError)):
            _fail(verb, error)
        if process_log.path() is None:
            exit_record.end(exit_codes.FAILED, describe(error))
            raise
        _end(exit_codes.FAILED, error, functools.partial(_show_unexpected, verb, error))
    sys.exit(code)


def _fail(verb: str, error: Exception) -> NoReturn:
    if os.environ.get("CLIPJAX_TRACEBACK"):
        _end(exit_codes.FAILED, error, functools.partial(show_traceback, error))
    text = str(error)
    if isinstance(error, MemoryError):
        text = f"not enough memory: {text or 'a file is larger than what there is'}"
    with contextlib.suppress(ValueError, SyntaxError):  # a KeyError quotes its sentence
        text = str(ast.literal_eval(text))
    if "Traceback (most recent call last)" in text:
        # ml_collections puts the whole trace of a config file's error into its message.
        ends = list(re.finditer(r"^[\w.]+: ", text, flags=re.MULTILINE))
        text = " ".join(text[ends[-1].end() :].split()) if ends else text.strip().splitlines()[-1]
    lines = text.split("\n")
    if process_log.path() is not None and len(lines) > process_log.SHOWN_LINES:
        _keep_log()
        process_log.write(f"{text}\n")
        shown, more = lines[: process_log.SHOWN_LINES], len(lines) - process_log.SHOWN_LINES
        text = "\n".join([*shown, f"and {more} lines more{process_log.where()}"])
    _end(exit_codes.FAILED, error, lambda: complain(f"clipjax {verb}: {text}"))


def _show_unexpected(verb: str, error: Exception) -> None:
    _keep_log()
    show_traceback(error)
    first = str(error).partition("\n")[0]
    complain(f"clipjax {verb}: {type(error).__name__}: {first:.500}{process_log.where()}")


def _end(code: int, error: BaseException, say: Callable[[], None]) -> NoReturn:
    """Says an error and exits; of several processes, all end together."""
    if process_log.has_dumps():
        _keep_log()
    if (peers := sys.modules.get("clipjax.processes.peers")) is not None:
        peers.fail(error, code, say)
    exit_record.end(code, describe(error))
    say()
    if code == exit_codes.HUNG:
        os._exit(code)  # a thread hangs, and the interpreter's own exit would wait for it for ever
    sys.exit(code)


def _keep_log() -> None:
    from clipjax.processes.distributed import (
        process_index,  # an import that takes a while: not for --help
    )

    process_log.keep(process_index())


def no_positional(argv: list[str]) -> None:
    """Refuses arguments that no flag takes."""
    if len(argv) > 1:
        raise ValueError(f"unexpected arguments {argv[1:]}; flags are written --name=value")


def given(value: T | None, flag: str, how: str = "") -> T:
    """The value of a flag that a verb cannot do without."""
    if not value:
        raise ValueError(f"{flag} is missing{how}")
    return value


def print_results(results: Mapping[str, Any]) -> None:
    """Prints the numbers of a map as a table: counts whole, the rest with four digits."""
    numbers = {name: v for name, v in results.items() if isinstance(v, int | float)}
    shown = [(printable(name), value) for name, value in sorted(numbers.items())]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        show(f"{name:<{width}}  {value:.4f}" if value % 1 else f"{name:<{width}}  {int(value)}")
