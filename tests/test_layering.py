"""The house has floors: an import points to a lower floor, or inside its own package."""

import ast
from pathlib import Path

import pytest

from clipjax.config import default_config

ROOT = Path(__file__).parent.parent / "clipjax"
FLOORS = (
    (
        "array_types",
        "building",
        "config",
        "config_fields",
        "device_clock",
        "distributed",
        "faults",
        "importing",
        "metric_writers",
        "partitioning",
        "printable",
        "ranges",
        "redaction",
        "strict_json",
        "trees",
    ),
    ("layers", "losses", "optim", "metrics"),
    ("models", "data", "tokenizers"),
    ("train_state", "train_step", "grad_cache", "checkpoint", "interop"),
    ("encoding",),
    ("evals", "inference"),
    ("experiment", "report"),
    ("train", "evaluate", "plan"),
    ("cli",),
)
SIBLINGS = {
    ("train_step", "train_state"),
    ("checkpoint", "train_state"),
    ("train_step", "grad_cache"),
    ("interop", "checkpoint"),  # one of the formats is our own
}
# Floor F0 is a set of small modules; these pairs are the only ones that may know each other.
SIBLINGS |= {
    ("building", "ranges"),
    ("config", "array_types"),
    ("config", "config_fields"),
    ("config", "ranges"),
    ("config_fields", "ranges"),
    ("partitioning", "trees"),
    ("metric_writers", "distributed"),
    ("printable", "redaction"),
}


def floor_of(name: str) -> int:
    for number, names in enumerate(FLOORS):
        if name in names:
            return number
    raise AssertionError(f"clipjax/{name} stands on no floor: add it to FLOORS")


def imported_rooms(source: str) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "clipjax":
                names = [f"clipjax.{alias.name}" for alias in node.names]
            else:
                names = [node.module]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("clipjax.")}
    return rooms


def violations(room: str, source: str) -> list[str]:
    return [
        f"{room} (floor {floor_of(room)}) imports {other} (floor {floor_of(other)})"
        for other in sorted(imported_rooms(source))
        if other != room
        and other != "__version__"
        and floor_of(other) >= floor_of(room)
        and (room, other) not in SIBLINGS
    ]


FILES = [p for p in sorted(ROOT.rglob("*.py")) if p.parent != ROOT or not p.name.startswith("__")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert violations(room, path.read_text(encoding="utf-8")) == []


def test_a_violation_is_seen():
    assert violations("layers", "from clipjax.models import zoo") != []
    assert violations("losses", "from clipjax import train") != []
    assert violations("models", "import clipjax.data.loading.loader") != []
    assert violations("train_step", "from clipjax.train_state import TrainState") == []


@pytest.mark.parametrize(
    "path", sorted((ROOT.parent / "configs").glob("*.py")), ids=lambda p: p.name
)
def test_configs_touch_no_device(path):
    """A config is readable on any machine: clipjax.config and ml_collections only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert modules <= {"ml_collections", "clipjax.config", "configs.common"}


def test_the_core_needs_neither_tensorflow_nor_torch():
    """Heavy frameworks may be imported by interop tests and benchmarks, never by the package."""
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        modules |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        roots = {m.split(".")[0] for m in modules}
        assert not roots & {"tensorflow", "torch", "transformers", "open_clip"}, path


def config_fields(source: str) -> set[str]:
    """Fields of `default_config()` that code reads from something called `config`."""
    fields = set(default_config())
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "config"
        and node.attr in fields
    }


def test_only_the_experiment_plans_and_flags_read_config_fields():
    for path in FILES:
        room = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if room not in ("experiment", "plan", "cli", "config"):
            assert config_fields(path.read_text(encoding="utf-8")) == set(), path


def test_a_field_that_is_read_is_seen():
    assert config_fields("def f(config): return config.optimizer.b1 + config.text") == {"optimizer"}
