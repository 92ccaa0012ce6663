"""The flag `--config FILE[:args]` and its overrides, `--config.a.b=value`.

ml_collections loads the file and sets what exists already, by its type. Here is what it lacks: None
for numbers, room for fields of the model that its row of the zoo has, and errors that say what
stands at a path.
"""

import ast
import linecache
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags
from ml_collections.config_flags import config_path

from clipjax.ranges import unknown_key

_CONFIG_WORD = re.compile(r"--?(no)?config([.=]|$)")
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]+)")


class ConfigError(flags.Error):
    """A config file, or an override, that cannot be used."""


def define(
    values: flags.FlagValues = flags.FLAGS, argv: Sequence[str] | None = None
) -> flags.FlagHolder:
    """Defines `--config`; a verb calls it once.

    Args:
        values: the flags that it is one of.
        argv: the command line that overrides are looked for in; that of this process by default.
    """
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "Config file, :args behind a colon.",
        flag_values=values,
        sys_argv=None if argv is None else list(argv),
    )
    flag = values["config"]
    flag.parser = _FileParser(flag.parser, argv)
    for kind, inner, what in (
        (int, flags.IntegerParser(), "one whole number"),
        (float, flags.FloatParser(), "one number"),
    ):
        config_flags.register_flag_parser_for_type(kind, _NumberOrNone(inner, what))
    config_flags.register_flag_parser_for_type(bool, _TrueOrFalse())
    return holder


def words_of(argv: Sequence[str]) -> list[str]:
    """Of a command line, the words that make its config: the file and the overrides."""
    words = flags.FLAGS.read_flags_from_files(list(argv), force_gnu=False)
    kept = []
    for number, word in enumerate(words):
        if _CONFIG_WORD.match(word):
            kept.append(word)
            value = words[number + 1 : number + 2]
            if "=" not in word and value and not value[0].startswith("-"):
                kept += value
    return kept


def file_of(values: flags.FlagValues) -> str:
    """The file of `--config`, as it was written, without what stands behind its colon."""
    flag: Any = values["config"]
    return str(flag.config_filename)


def parse(argv: Sequence[str]) -> ConfigDict:
    """The config of another command line, as `words_of` gives it.

    Raises:
        ConfigError, ValueError, ...: as for the command line of this process.
    """
    values = flags.FlagValues()
    argv = ["clipjax", *argv]
    holder = define(values, argv)
    values(argv)
    return holder.value


class _TrueOrFalse(flags.BooleanParser):
    """Reads true or false, and says so of anything else."""

    def parse(self, argument: Any) -> bool:
        try:
            return super().parse(argument)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{argument!r} is neither true nor false") from error


class _NumberOrNone(flags.ArgumentParser):
    """Reads a number; None gives None, which switches an optional field off."""

    def __init__(self, inner: flags.ArgumentParser, what: str) -> None:
        self.inner, self.what = inner, what

    def parse(self, argument: Any) -> Any:
        if argument is None or (isinstance(argument, str) and argument.strip() == "None"):
            return None
        try:
            return self.inner.parse(argument)
        except (TypeError, ValueError) as error:
            found = "; two are given, and images are square" if _is_pair(argument) else ""
            raise ValueError(
                f"expected {self.what}, or None where a field may be off{found}"
            ) from error

    def flag_type(self) -> str:
        return self.inner.flag_type()


def _is_pair(argument: Any) -> bool:
    try:
        return isinstance(ast.literal_eval(str(argument)), tuple | list)
    except (ValueError, SyntaxError):
        return False


class _FileParser(flags.ArgumentParser):
    """Loads the file, and makes room for the overrides of the model and of evaluations."""

    def __init__(self, inner: flags.ArgumentParser, argv: Sequence[str] | None) -> None:
        self.inner, self.argv = inner, argv

    def parse(self, path: str) -> Any:
        try:
            config = self.inner.parse(path)
        except (AttributeError, KeyError) as error:
            raise ConfigError(_where(error, path)) from error
        if isinstance(config, ConfigDict):
            # The dotted paths, where ml_collections looks for them, too.
            argv = sys.argv if self.argv is None else list(self.argv)
            for argument in flags.FLAGS.read_flags_from_files(argv, force_gnu=False):
                if found := _OVERRIDE.match(argument):
                    _make_room(config, found[1])
        return config

    def flag_type(self) -> str:
        return self.inner.flag_type()


def _make_room(config: ConfigDict, path: str) -> None:
    """Adds what an override names to a group of free fields; elsewhere it has to be there.

    What the model and an evaluation have as fields, their rows and constructors know: those check
    the name and the value when the run is built.

    Raises:
        ConfigError: an unknown name, with the near match and what stands there.
    """
    try:
        parts = config_path.split(path)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"--config.{path}: this is no path of a config field") from error
    node: Any = config
    for number, part in enumerate(parts):
        if not isinstance(node, ConfigDict) or not isinstance(part, str):
            return  # an element of a tuple: ml_collections finds it, or says that there is none
        if part not in node:
            is_free = parts[0] == "model" or (parts[0] == "evals" and number > 1)
            if not is_free:
                raise ConfigError(unknown_key(f"config.{'.'.join(parts[: number + 1])}", node))
            is_last = number + 1 == len(parts)
            with config.unlocked():
                node[part] = config_dict.placeholder(object) if is_last else ConfigDict()
        node = node[part]


def _where(error: Exception, path: str) -> str:
    """What a config file did wrong, with its line: these errors name a key alone."""
    file = Path(path.partition(":")[0])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == file]
    text = str(error.args[0] if error.args else error)
    if not frames:
        return text
    line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0).strip()
    return f"{file}, line {frames[-1].lineno}, `{line}`: there is no {text}"
