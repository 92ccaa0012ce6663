"""The configs that are shipped, read as the command reads them: as modules of no package."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

CONFIGS = Path(__file__).parents[2] / "configs"


def read_config_module(path: Path) -> ModuleType:
    """A file of configs/."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_config_file(path: Path) -> Callable[..., Any]:
    """The `get_config` of a file."""
    return read_config_module(path).get_config


def shipped(name: str, *arguments: str) -> Any:
    """A config by the name of its file, of the argument behind the colon if one is given."""
    return read_config_file(CONFIGS / f"{name}.py")(*arguments)
