"""`clipjax data`, run in this process."""

from absl import flags
from absl.testing import flagsaver

from clipjax.cli import data as data_cli


def run(*arguments):
    """Its exit code."""
    with flagsaver.flagsaver():
        return data_cli.main(flags.FLAGS(["clipjax data", *map(str, arguments)]))
