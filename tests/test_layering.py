"""Layers: an import points to a lower layer, or stays inside its own package."""

import ast
import functools
import itertools
import re
from pathlib import Path

import pytest

from clipjax.config import default_config

ROOT = Path(__file__).parent.parent / "clipjax"
LAYERS = (
    (
        "array_types",
        "averages",
        "building",
        "color_strengths",
        "compile_cache",
        "compiler_flags",
        "config",
        "config_fields",
        "config_lengths",
        "config_stages",
        "device_clock",
        "diagnostics",
        "faults",
        "files",
        "goodput",
        "importing",
        "lengths",
        "metric_writers",
        "partitioning",
        "platforms",
        "prefetching",
        "printable",
        "processes",
        "progress",
        "ranges",
        "recipes",
        "redaction",
        "skipped_steps",
        "spike_guard",
        "strict_json",
        "trackers",
        "trees",
    ),
    ("layers", "losses", "optim", "metrics"),
    ("models", "data", "tokenizers"),
    ("train_state", "train_step", "grad_cache", "checkpoint", "interop"),
    ("encoding",),
    ("evals", "inference"),
    ("experiment", "report"),
    (
        *("train", "step_log", "debugging", "evaluate", "evaluate_suite", "compare"),
        *("soup", "embeddings", "plan", "doctor", "sweep", "profiling", "scaling", "serving"),
    ),
    ("cli",),
)
SIBLINGS = {
    ("train_step", "train_state"),
    ("checkpoint", "train_state"),
    ("train_step", "grad_cache"),
    ("train", "step_log"),
    ("evaluate_suite", "evaluate"),
    ("compare", "evaluate"),
    ("soup", "evaluate"),
    ("doctor", "plan"),
    ("scaling", "plan"),
    ("serving", "embeddings"),
    ("profiling", "plan"),
    ("train", "profiling"),
    ("step_log", "plan"),
    ("interop", "checkpoint"),  # one of the formats is our own
}
# The lowest layer is a set of small modules; these pairs are the only ones that may import each
# other.
SIBLINGS |= {
    ("averages", "trees"),
    ("building", "files"),
    ("building", "ranges"),
    ("color_strengths", "ranges"),
    ("config", "array_types"),
    ("config", "config_fields"),
    ("config", "config_lengths"),
    ("config", "config_stages"),
    ("config", "lengths"),
    ("config", "ranges"),
    ("config_fields", "lengths"),
    ("config_fields", "ranges"),
    ("config_lengths", "config_fields"),
    ("config_lengths", "lengths"),
    ("config_lengths", "ranges"),
    ("config_stages", "config_fields"),
    ("config_stages", "lengths"),
    ("config_stages", "ranges"),
    ("diagnostics", "trees"),
    ("partitioning", "ranges"),
    ("recipes", "config"),
    ("recipes", "ranges"),
    ("trees", "ranges"),
    ("partitioning", "trees"),
    ("compile_cache", "files"),
    ("goodput", "files"),
    ("goodput", "processes"),
    ("lengths", "ranges"),
    ("metric_writers", "files"),
    ("metric_writers", "processes"),
    ("printable", "redaction"),
    ("processes", "files"),
    ("metric_writers", "trackers"),
    ("trackers", "building"),
    ("trackers", "files"),
    ("trackers", "ranges"),
    ("processes", "printable"),
    ("progress", "processes"),
}


# Inside data/: what reads bytes is lowest, what looks at a whole dataset highest.
DATA_LAYERS = (
    ("permutation", "storage"),
    ("source",),
    ("captions", "classes", "images"),
    ("packed", "tar"),
    ("sources", "transforms"),
    ("loading", "packing"),
    ("inspect",),
)


@functools.cache
def parsed(source: str) -> list[ast.AST]:
    """All nodes of a file's syntax tree."""
    return list(ast.walk(ast.parse(source)))


def imported_names(source: str) -> set[str]:
    """All that a file imports, inside functions too."""
    names = set()
    for node in parsed(source):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            # A name that is imported from a package may be a module of it.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(source: str) -> set[str]:
    """Of these, the names after `clipjax.`."""
    names = imported_names(source)
    return {name.removeprefix("clipjax.") for name in names if name.startswith("clipjax.")}


def violations(importer: str, source: str, layers=LAYERS, package: str = "") -> list[str]:
    """Imports of a file that do not point to a lower layer.

    Args:
        importer: the module or package that the file belongs to, among `layers`.
        source: the file's text.
        layers: names by layer, the lowest first.
        package: what `layers` is about, with a dot behind; empty for clipjax itself.
    """
    layer_of = {name: number for number, names in enumerate(layers) for name in names}
    assert importer in layer_of, f"clipjax/{package}{importer} is in no layer: add it"
    names = {n.removeprefix(package) for n in imported_modules(source) if n.startswith(package)}
    return [
        f"{importer} (layer {layer_of[importer]}) imports {other} (layer {layer_of[other]})"
        for other in sorted({name.split(".")[0] for name in names} & layer_of.keys() - {importer})
        if layer_of[other] >= layer_of[importer] and (importer, other) not in SIBLINGS
    ]


def import_cycles(sources: dict[str, str]) -> list[list[str]]:
    """Groups of modules that import one another, inside functions too.

    Args:
        sources: text of each module by its name, without `clipjax.`.
    """
    graph = {}
    for name, source in sources.items():
        found = imported_modules(source)
        found = {n if n in sources else n.rpartition(".")[0] for n in found}
        graph[name] = (found & sources.keys()) - {name}
    reached: dict[str, set[str]] = {}
    for name in graph:
        seen, waiting = set(), [name]
        while waiting:
            new = graph[waiting.pop()] - seen
            seen |= new
            waiting += new
        reached[name] = seen
    cycles = {
        tuple(sorted(o for o in seen if name in reached[o])) for name, seen in reached.items()
    }
    return [list(cycle) for cycle in sorted(cycles) if cycle]


FILES = [p for p in sorted(ROOT.rglob("*.py")) if p.parent != ROOT or not p.name.startswith("__")]
SOURCES = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in FILES}


def documented_layers(page: str) -> tuple[set[str], ...]:
    """The names of each layer in the table of docs/architecture.md."""
    rows = [line.split("|") for line in page.splitlines() if re.match(r"\| \d \|", line)]
    names = [re.findall(r"(\w+)(/?)", row[2]) for row in rows]
    for name, slash in itertools.chain.from_iterable(names):
        assert (ROOT / name).is_dir() if slash else (ROOT / f"{name}.py").is_file(), name
    return tuple({name for name, _ in row} for row in names)


def test_the_documents_show_these_layers():
    page = (ROOT.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert documented_layers(page) == tuple(map(set, LAYERS))
    with pytest.raises(AssertionError):
        documented_layers(page.replace("`encoding/`", "`encoding`"))


def test_imports_point_down():
    for path, source in SOURCES.items():
        assert violations(path.parts[0].removesuffix(".py"), source) == [], path


def test_imports_of_the_data_point_down():
    for path, source in SOURCES.items():
        if path.parts[0] == "data" and path.parts[1:] != ("__init__.py",):
            importer = path.parts[1].removesuffix(".py")
            assert violations(importer, source, DATA_LAYERS, "data.") == [], path


def test_a_violation_is_seen():
    assert violations("layers", "from clipjax.models import zoo") != []
    assert violations("losses", "from clipjax import train") != []
    assert violations("models", "import clipjax.data.loading.loader") != []
    assert violations("train_step", "from clipjax.train_state import TrainState") == []
    upward = "def f():\n    from clipjax.data.sources import make_source"
    assert violations("tar", upward, DATA_LAYERS, "data.") != []
    assert violations("packing", upward, DATA_LAYERS, "data.") == []


def imports_linen(source: str) -> bool:
    return any(f"{name}.".startswith("flax.linen.") for name in imported_names(source))


def test_flax_modules_are_made_in_layers_and_models_alone():
    """And what all others need of their boxes and axes is in one file."""
    found = {path for path, source in SOURCES.items() if imports_linen(source)}
    others = {path for path in found if path.parts[0] not in ("layers", "models")}
    assert others == {Path("partitioning", "boxes.py")}
    for line in (
        "from flax import linen as nn",
        "import flax.linen",
        "from flax.linen import x",
    ):
        assert imports_linen(f"def f():\n    {line}")
    assert not imports_linen("import flax.struct\nfrom flax.core import meta")


def test_no_modules_import_one_another():
    """One that is imported in a function is not excused: the two are one module in two files."""
    modules = {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): source
        for path, source in SOURCES.items()
    }
    assert import_cycles(modules) == []
    modules["trees"] += "\ndef f():\n    from clipjax.partitioning import place"
    assert any("trees" in cycle for cycle in import_cycles(modules))


@pytest.mark.parametrize(
    "path", sorted((ROOT.parent / "configs").glob("*.py")), ids=lambda p: p.name
)
def test_configs_touch_no_device(path):
    """A config is readable on any machine: clipjax.config, clipjax.recipes and ml_collections."""
    modules = modules_of(path.read_text(encoding="utf-8"))
    allowed = {"ml_collections", "clipjax.config", "clipjax.recipes", "dataclasses", "typing"}
    assert modules <= allowed


def test_what_recipes_share_touches_no_device():
    of_python = {"collections.abc", "dataclasses", "itertools", "typing"}
    found = modules_of((ROOT / "recipes.py").read_text(encoding="utf-8"))
    assert found - of_python <= {"ml_collections", "clipjax.config", "clipjax.ranges"}


def modules_of(source: str) -> set[str]:
    """What a file imports from."""
    nodes = parsed(source)
    modules = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    return modules | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}


def test_the_core_needs_neither_tensorflow_nor_torch():
    """Heavy frameworks may be imported by interop tests and benchmarks, never by the package."""
    for path, source in SOURCES.items():
        roots = {m.split(".")[0] for m in modules_of(source)}
        assert not roots & {"tensorflow", "torch", "transformers", "open_clip"}, path


# A config stops at `resolve`; before it there are only the flags that a person gives it by.
CONFIG_READERS = {
    "config.py",
    "config_fields.py",
    "experiment/resolving.py",
    "recipes.py",  # which writes one
    "cli/config_flag.py",
    "cli/opening.py",
}


def config_reads(source: str) -> set[str]:
    """Fields of `default_config()` that code reads from a config, and imports of its library."""
    fields, nodes = set(default_config()), parsed(source)
    found = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and node.attr in fields
        and re.fullmatch(r"_?config(\.value)?", ast.unparse(node.value), re.IGNORECASE)
    }
    modules = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    return found | {module for module in modules if module.split(".")[0] == "ml_collections"}


def test_only_resolve_and_the_flags_read_a_config():
    for path, source in SOURCES.items():
        if path.as_posix() not in CONFIG_READERS:
            assert config_reads(source) == set(), path
    assert {path.as_posix() for path in SOURCES} >= CONFIG_READERS


def test_a_field_that_is_read_is_seen():
    source = "def f(config): return config.optimizer.b1 + config.text + settings.seed"
    assert config_reads(source) == {"optimizer"}
    assert config_reads("x = _CONFIG.value.resume, layer.config.dtype") == {"resume"}
    assert config_reads("from ml_collections import ConfigDict") == {"ml_collections"}


# What a library's user calls: its messages name its arguments, and whoever reads a config adds
# where in it they are. A flag that a person may copy, `--config.mesh.fsdp=4`, is no such name.
WITHOUT_CONFIG = ("layers", "losses", "optim", "partitioning", "models", "tokenizers", "interop")
WITHOUT_CONFIG += ("building", "ranges", "train_state", "train_step", "grad_cache", "trees")


def messages(source: str) -> set[str]:
    """The texts of code, docstrings left out; what an f-string computes is `{}` there."""
    nodes = parsed(source)
    docstrings = {
        ast.get_docstring(node, clean=False)
        for node in nodes
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    }
    formatted = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    inside = {id(part) for node in formatted for part in node.values}
    texts = {
        "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        for node in formatted
    }
    plain = (node for node in nodes if isinstance(node, ast.Constant) and id(node) not in inside)
    return texts | {n.value for n in plain if isinstance(n.value, str)} - docstrings


def config_names(source: str) -> set[str]:
    """Fields of a config that the texts of code name."""
    pattern = rf"(?<!--)\bconfig\.(?:{'|'.join(default_config())})\b"
    return {found for text in messages(source) for found in re.findall(pattern, text)}


def flag_names(source: str) -> set[str]:
    """Flags that the texts of code name, but those of a whole command in backticks."""
    texts = (re.sub(r"`(?:clipjax|hf) [^`]*`", "", text) for text in messages(source))
    return {found for text in texts for found in re.findall(r"(?<![\w-])--[a-z]\w*", text)}


def test_messages_of_the_library_do_not_know_the_config():
    for path, source in SOURCES.items():
        if path.parts[0].removesuffix(".py") in WITHOUT_CONFIG:
            assert config_names(source) == set(), path


def test_a_message_that_knows_the_config_is_seen():
    assert config_names('raise ValueError(f"set config.model.{x}")') == {"config.model"}
    assert config_names('"""As config.model."""\nx = "--config.mesh.data=4, config.json"') == set()


# A message names the argument, and `cli/flag_names.py` the flag that gives it. Above these layers
# are the bodies of the verbs.
WITHOUT_FLAGS = (*WITHOUT_CONFIG, "checkpoint", "data", "encoding", "evals", "inference", "metrics")
WITHOUT_FLAGS += ("averages", "diagnostics", "files", "metric_writers", "spike_guard", "trackers")
FLAGS_OF_OTHERS = {("interop/hub.py", "--revision"): "part of a command of the Hub's"}


def test_messages_of_the_library_name_no_flags():
    found = {
        (path.as_posix(), name)
        for path, source in SOURCES.items()
        if path.parts[0].removesuffix(".py") in WITHOUT_FLAGS
        for name in flag_names(source)
    }
    assert found == FLAGS_OF_OTHERS.keys()


def test_a_flag_in_a_message_is_seen():
    assert flag_names('raise ValueError(f"{x}: add --model {y}")') == {"--model"}
    assert flag_names('f"run `hf download {x} " f"--include {y}`"; "a -- b"; """See --x."""') == {
        "--x"
    }
    assert flag_names('"""See --x."""\ny = "`clipjax data pack --format tar`"') == set()


# Tests go through the names that modules offer: what begins with `_` may move at any time.
TESTS = Path(__file__).parent
# Documented names of Python's own that begin with an underscore.
PYTHONS = {"_replace", "_fields", "_exit"}
ALLOWED = {
    ("golden/models/make_naflex.py", "_from_config"): "transformers has no other way to attention",
    ("interop/naming_case.py", "_utils"): "what a pickle of torch names",
    ("interop/naming_case.py", "_rebuild_tensor_v2"): "what a pickle of torch names",
}


def is_private(name):
    return name.startswith("_") and not name.endswith("__") and name not in PYTHONS | {"_"}


def private_names(source):
    """Private attributes that are read, imported or replaced, but not those of a class's own."""
    tree = ast.parse(source)
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                names.append(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            function = node.func.id if isinstance(node.func, ast.Name) else function
            if function.endswith("attr"):  # getattr, monkeypatch.setattr
                texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                names += [text.rpartition(".")[2] for text in texts if isinstance(text, str)]
    return {name for name in names if is_private(name)}


def test_no_test_looks_behind_a_private_name():
    found = {
        (path.relative_to(TESTS).as_posix(), name)
        for path in TESTS.rglob("*.py")
        for name in private_names(path.read_text())
    }
    assert found - ALLOWED.keys() == set(), "use a public name, or give the thing one"
    assert ALLOWED.keys() - found == set(), "no longer needed"


@pytest.mark.parametrize(
    "text",
    [
        "loader._workers",
        "loader.workers._maker.indices",
        "from clipjax.train import _Loop",
        "monkeypatch.setattr(cleaning, '_SAFE', 1)",
        "patch.setattr('clipjax.train._Loop', 1)",
        "getattr(loader, '_workers')",
    ],
)
def test_a_private_name_is_seen(text):
    """Negative control."""
    assert len(private_names(text)) == 1
    assert private_names(text.replace("_", "")) == set()
