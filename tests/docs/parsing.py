"""Parses commands as `clipjax` does, each in a process of its own that a fork makes quick.

Reads a JSON list of argument lists from stdin; writes a list of messages, empty where all is well.
"""

import importlib
import json
import os
import sys

from clipjax.cli import main as cli
from clipjax.config import validate


def parse(argv):
    """Flags, the config file with its arguments and overrides, and what they add up to."""
    verb = argv[0] if argv else ""
    sys.argv = ["clipjax", *argv]  # ml_collections looks there for --config.a.b=value
    if verb not in cli.VERBS:
        raise ValueError(f"{verb!r} is no verb")
    importlib.import_module(f"clipjax.cli.{verb}")
    cli.parse_flags(verb, [f"clipjax {verb}", *argv[1:]])
    if verb == "train":
        validate(cli.FLAGS.config)


def message_of(argv):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(write, 1)
        os.dup2(write, 2)
        try:
            parse(argv)
            sys.stdout.flush()
            os._exit(0)
        except BaseException as error:
            sys.stdout.write(f"{type(error).__name__}: {error}\n")
            sys.stdout.flush()
            os._exit(1)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        text = pipe.read()
    return text if os.waitpid(child, 0)[1] else ""


if __name__ == "__main__":
    import jax  # noqa: F401  what takes long to import is there before the forks

    json.dump([message_of(argv) for argv in json.load(sys.stdin)], sys.stdout)
