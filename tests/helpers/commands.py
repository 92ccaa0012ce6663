"""The command, run in this process."""

import contextlib
import io
import logging
import sys
import threading
import warnings
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import pytest
from absl import flags

import clipjax.cli


class Done(NamedTuple):
    code: int
    out: str
    err: str


_SHARED = {"clipjax.cli.main", "clipjax.cli.logs"}


def _forget_verbs():
    """Takes the verbs' modules and flags away: each verb has a process of its own elsewhere."""
    modules = {n: m for n, m in sys.modules.items() if n.startswith("clipjax.cli.")}
    modules = {n: m for n, m in modules.items() if n not in _SHARED}
    kept = {}
    for name in list(flags.FLAGS):
        module = flags.FLAGS.find_module_defining_flag(name)
        if module in modules or name.startswith("config"):
            kept[name] = (module, flags.FLAGS[name])
            delattr(flags.FLAGS, name)
    for name in modules:
        del sys.modules[name]
        vars(clipjax.cli).pop(name.rpartition(".")[2], None)
    return modules, kept


@contextlib.contextmanager
def in_this_process():
    """A function that runs `clipjax VERB ...` here; returns exit code, output and errors.

    The door that people take is a process of its own, which tests/integration starts; here it is
    left out where what stands behind it is tested.
    """
    from clipjax.cli import main

    modules, kept = _forget_verbs()
    root, absl = logging.getLogger(), logging.getLogger("absl")
    before = list(root.handlers), root.level, list(absl.handlers), absl.level
    path = list(sys.path)
    hooks = sys.excepthook, threading.excepthook, sys.argv

    def run(*arguments):
        _forget_verbs()
        argv = ["clipjax", *map(str, arguments)]
        sys.argv = argv
        out, err = io.StringIO(), io.StringIO()
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            warnings.catch_warnings(),
            pytest.raises(SystemExit) as stop,
        ):
            warnings.filterwarnings("ignore", r"the load_module\(\) method")  # ml_collections'
            main.run(argv)
        sys.path[:] = path
        return Done(stop.value.code or 0, out.getvalue(), err.getvalue())

    try:
        yield run
    finally:
        sys.excepthook, threading.excepthook, sys.argv = hooks
        root.handlers[:], root.level, absl.handlers[:], absl.level = before
        _restore(modules, kept)


def _restore(modules, kept):
    _forget_verbs()
    sys.modules.update(modules)
    for name, module in modules.items():
        setattr(clipjax.cli, name.rpartition(".")[2], module)
    for name, (module, flag) in kept.items():
        flags.FLAGS[name] = flag
        flags.FLAGS.register_flag_by_module(module, flag)
