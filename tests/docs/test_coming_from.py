"""docs/from_*.md: each flag of theirs has its row, and each field of ours in it is there."""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import re
from pathlib import Path

import pytest
from blocks import ROOT

from clipjax.config_fields import FIELDS, Settings
from clipjax.models import IMAGE_ENCODERS, MODELS, TEXT_ENCODERS

OPEN_CLIP, BIG_VISION = (ROOT / "docs" / f"from_{name}.md" for name in ("open_clip", "big_vision"))
PAGES = (OPEN_CLIP, BIG_VISION)
WORD = re.compile(r"`([^`]+)`")


def rows(page, table):
    """Cells of the rows of a table."""
    text = page.split(f"<!-- {table}: begin -->\n")[1].split(f"<!-- {table}: end -->")[0]
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()[2:]]
    return [[cell.strip() for cell in line] for line in lines]


def nested(fields, prefix=""):
    for name, value in fields.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from nested(value, f"{prefix}{name}.")


def known_fields():
    """Dotted fields of a config, groups among them, and those of models."""
    groups = {field.name for field in dataclasses.fields(Settings)}
    towers = {"image": IMAGE_ENCODERS, "text": TEXT_ENCODERS}
    model = {name for row in MODELS.values() for name in nested(row)} | {"tokenizer.model"}
    model |= {
        f"{t}.{name}" for t, kinds in towers.items() for k in kinds.values() for name in k.ranges
    }
    return set(FIELDS) | groups | {f"model.{name}" for name in model}


def known_flags():
    """Flags of our verbs."""
    sources = [path.read_text() for path in (ROOT / "clipjax" / "cli").glob("*.py")]
    return {name for text in sources for name in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text)}


def wrong_rows(page):
    """Rows that name what is not here, or say neither where something is nor why it is not."""
    fields, flags, wrong = known_fields(), known_flags(), []
    for theirs, ours, note in rows(page, "flags"):
        words = [word for cell in (ours, note) for word in WORD.findall(cell)]
        unknown = [
            word
            for word in words
            if (
                word.startswith("config.")
                and word.split(" = ")[0].removeprefix("config.") not in fields
            )
            or (ours == f"`{word}`" and word.startswith("--") and word[2:] not in flags)
        ]
        says = re.match(r"`(config\.|--)", ours) or re.match(r"no: .{8,}", ours)
        if unknown or not says:
            wrong.append((theirs, unknown or ours))
    return wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.stem)
def test_what_is_named_of_ours_is_there(path):
    page = path.read_text(encoding="utf-8")
    assert len(rows(page, "flags")) > 60
    assert wrong_rows(page) == []
    for _, ours in rows(page, "files"):
        files = [word for word in WORD.findall(ours) if re.match(r"(clipjax|configs)/", word)]
        assert files and [f for f in files if not (ROOT / f).exists()] == []


def test_a_row_of_something_else_is_seen():
    page = OPEN_CLIP.read_text(encoding="utf-8")
    for right, wrong in (
        ("`config.optimizer.b1`", "`config.optimizer.beta1`"),
        ("| `--workdir` |", "| `--work_dir` |"),
        ("| no: as `--torchscript` |", "| |"),
    ):
        assert right in page and len(wrong_rows(page.replace(right, wrong))) > 0, right


def named(page):
    """What the first cells name, and how often at most."""
    words = [word for row in rows(page, "flags") for word in WORD.findall(row[0])]
    assert len(words) == len(set(words))
    return set(words)


def test_the_fields_of_big_vision_have_their_rows():
    """Of a list with its source and commit: tests/golden/docs/make_big_vision_fields.py."""
    shipped = json.loads((ROOT / "tests/golden/docs/big_vision_fields.json").read_text())
    assert re.fullmatch("[0-9a-f]{40}", shipped["commit"])
    page = BIG_VISION.read_text(encoding="utf-8")
    assert named(page) == {field for found in shipped["fields"].values() for field in found}
    assert {WORD.findall(theirs)[0] for theirs, _ in rows(page, "files")} == set(shipped["fields"])


@pytest.mark.interop
def test_the_flags_of_open_clip_have_their_rows(monkeypatch):
    params = pytest.importorskip("open_clip_train.params")

    theirs, add = set(), argparse.ArgumentParser.add_argument

    def noted(self, *names, **options):
        theirs.update(names)
        return add(self, *names, **options)

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", noted)
    params.parse_args([])
    page = OPEN_CLIP.read_text(encoding="utf-8")
    assert named(page) == theirs - {"-h", "--help"}
    for file in (WORD.findall(row[0])[0] for row in rows(page, "files")):
        package, name = file.split("/")
        (folder,) = importlib.util.find_spec(package).submodule_search_locations
        assert (Path(folder) / name).is_file(), file
