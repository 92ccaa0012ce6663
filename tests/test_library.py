"""The public names: their cost, their docstrings, and the programs of docs/library.md."""

import ast
import doctest
import inspect
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from library_folder import standing_in, write_folder

import clipjax
from clipjax.data.loading.loader import Loader
from clipjax.inference.head import ZeroShotHead, ZeroShotScores

PAGE = Path(__file__).parent.parent / "docs" / "library.md"
OBJECTS = [name for name in clipjax.__all__ if name != "__version__"]
# Of Model, what an example shows.
METHODS = [
    name
    for name in dir(clipjax.Model)
    if not name.startswith("_") and inspect.isroutine(getattr(clipjax.Model, name))
]
# What others return or take: no names of the face, so without examples.
RETURNED = [
    ZeroShotHead,
    ZeroShotHead.__call__,
    ZeroShotScores,
    ZeroShotScores.top,
    Loader.batch,
    Loader.iterate,
]
# In one call what zero_shot does; what that takes; what load does.
WITHOUT_EXAMPLE = {"classify", "from_checkpoint", "prompts"}
NO_ARRAYS = {"classify", "from_checkpoint", "list_models", "prompts"}
SHAPE = re.compile(r"`\[[\w,. ]*\]`")
DTYPE = re.compile(r"\b(float|float32|f32|int32|i32|uint8|u8)\b")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def model(folder):
    return clipjax.load(folder / "ViT-B-32.pt", batch_size=8)


def test_importing_it_imports_nothing():
    program = (
        "import sys, json, clipjax; json.dumps(dir(clipjax)); "
        "print(json.dumps([n for n in ('jax', 'flax', 'numpy', 'absl') if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert json.loads(done.stdout) == [], done.stderr


def test_names_are_where_they_say():
    assert set(clipjax.__all__) <= set(dir(clipjax))
    for name in OBJECTS:
        assert getattr(clipjax, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = clipjax.nope
    source = Path(clipjax.__file__).read_text(encoding="utf-8")
    typed = {
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(OBJECTS) <= typed  # what a type checker sees
    assert (Path(clipjax.__file__).parent / "py.typed").is_file()
    listed = re.search(r"members: \[(.*)\]", (PAGE.parent / "reference.md").read_text())[1]
    assert set(listed.split(", ")) == set(OBJECTS)


def lacks(thing, name):
    """What a docstring does not say."""
    doc = inspect.getdoc(thing) or ""
    missing = [] if re.search(r"^Raises:", doc, re.M) or name in NO_ARRAYS else ["Raises"]
    if name not in NO_ARRAYS and not SHAPE.search(doc):
        missing.append("shapes")
    if name not in WITHOUT_EXAMPLE and not (">>> " in doc or "```python" in doc):
        missing.append("Example")
    parameters = [p for p in inspect.signature(thing).parameters if p not in ("self", "cls")]
    return missing + [p for p in parameters if not re.search(rf"\b{p}\b.*:", doc)]


def public():
    yield from ((name, getattr(clipjax, name)) for name in OBJECTS)
    yield from ((name, getattr(clipjax.Model, name)) for name in METHODS)


def test_docstrings_say_shapes_errors_and_an_example():
    assert {name: lacks(thing, name) for name, thing in public() if lacks(thing, name)} == {}

    def plain(images):
        """Does something."""

    assert lacks(plain, "plain") == ["Raises", "shapes", "Example", "images"]


def without_arrays(things):
    """Those whose docstrings lack a shape or a dtype."""
    docs = {name: inspect.getdoc(thing) or "" for name, thing in things.items()}
    return [name for name, doc in docs.items() if not (SHAPE.search(doc) and DTYPE.search(doc))]


def test_properties_and_what_is_returned_say_shapes_and_dtypes():
    found = {k: v for k, v in vars(clipjax.Model).items() if isinstance(v, property)}
    assert set(found) == {"apply", "logit_bias", "logit_scale"}
    assert without_arrays(found | {thing.__qualname__: thing for thing in RETURNED}) == []
    found = property(lambda self: 0, doc="The scale, `[]`.")
    assert without_arrays({"shape only": found, "none": property(lambda self: 0)}) == [
        "shape only",
        "none",
    ]


def test_the_examples_of_the_docstrings_run(folder, model):
    runner = doctest.DocTestRunner(verbose=False)
    found, said, num_run = doctest.DocTestFinder(recurse=False), [], 0
    with standing_in(folder):
        for name, thing in public():
            given = {"clipjax": clipjax, "model": model, "np": np}
            for example in found.find(thing, name, globs=given):
                runner.run(example, out=said.append)
            for block in re.findall(r"```python\n(.*?)```", inspect.getdoc(thing), re.S):
                exec(textwrap.dedent(block), given)
                num_run += 1
    assert runner.failures == 0, "".join(said)
    assert runner.tries + num_run >= 15


def programs():
    """(ours, theirs) of each task of the page."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    return [(block, "clipjax" in block) for block in blocks]


def test_the_page_has_each_task_twice():
    assert [is_ours for _, is_ours in programs()] == [True, False] * 6
    for text, is_ours in programs():
        assert ast.parse(text).body
        assert not is_ours or len(text.splitlines()) <= 12, text


OURS = [text for text, is_ours in programs() if is_ours]


# What the examples of the docstrings compile, too.
COMPILING = re.compile(r"encode_|zero_shot|make_train_step")
SLOW = [pytest.mark.slow if COMPILING.search(text) else () for text in OURS]


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=marks) for number, marks in enumerate(SLOW)]
)
def test_the_programs_of_the_page_run(folder, number, capsys):
    with standing_in(folder):
        exec(compile(OURS[number], f"{PAGE.name}, program {number}", "exec"), {})
    assert capsys.readouterr().out
