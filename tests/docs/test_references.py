"""What the documents point to is there: links, anchors, files; figures stand in their files."""

import re

import pytest
from blocks import DOCUMENTS, ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.M)
# A path inside of the repository, in backticks; x stands for a name that a reader chooses.
FILE = re.compile(
    r"`((?:\.\./)*(?:clipjax|tests|configs|launch|benchmarks|docs|models|data|losses|evals|layers)"
    r"/[\w./-]*)`"
)
TEST = re.compile(r"`(tests/[\w/.-]+\.py)::(\w+)`")
FENCE = re.compile(r"^\s*```.*?^\s*```$", re.M | re.S)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


def anchor(heading):
    """As GitHub and mkdocs make it."""
    kept = re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower())
    return re.sub(r"[\s]+", "-", kept)


def broken_links(path, text):
    found = []
    for target in LINK.findall(FENCE.sub("", text)):
        name, _, fragment = target.partition("#")
        if "://" in name:
            continue
        file = (path.parent / name) if name else path
        there = file.exists() and (
            not fragment or fragment in map(anchor, HEADING.findall(file.read_text()))
        )
        if not there:
            found.append(target)
    return found


def missing_files(text):
    """Paths below the repository or the package, globs and places of new files excepted."""
    return [
        name
        for name in FILE.findall(text)
        if not re.search(r"(^|/)x(_\w+)?\.(py|sh)$", name)
        and not any((base / name).exists() for base in (ROOT, ROOT / "clipjax"))
    ]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.stem)
def test_links_anchors_and_files_exist(path):
    text = path.read_text(encoding="utf-8")
    assert broken_links(path, text) == []
    assert missing_files(text) == []


def missing_tables(page):
    """Tables that docs/architecture.md has new parts put into, and that are not where it says."""
    rows = page.split("## Where something new goes")[1].split("\n\n")[1].splitlines()[2:]
    found = []
    for row in rows:
        register = row.split("|")[-2]
        for name in re.findall(r"`([A-Z_]+)`", register):
            said = re.search(rf"`{name}` in `([\w/.]+)`", register)
            files = (
                (ROOT / "clipjax").rglob("*.py") if said is None else [ROOT / "clipjax" / said[1]]
            )
            assigned = re.compile(rf"^{name}\b.* = \{{", re.M)
            found += [] if any(assigned.search(file.read_text()) for file in files) else [name]
    return found


def test_new_parts_go_where_the_page_says():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert missing_tables(page) == []
    assert missing_tables(page.replace("optim/factory.py", "optim/masks.py")) == ["OPTIMIZERS"]
    assert missing_tables(page.replace("`EVALS`", "`EVALUATIONS`")) == ["EVALUATIONS"]


def missing_tests(text):
    """Tests that are named as pytest names them, and are not there."""
    return [
        f"{name}::{test}"
        for name, test in TEST.findall(text)
        if not (ROOT / name).exists()
        or not re.search(rf"^(def|class) {test}\b", (ROOT / name).read_text(), re.M)
    ]


def test_every_promise_of_security_names_a_test():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    promises = text.split("## What is promised")[1].split("\n## ")[0]
    rows = [row for row in promises.splitlines() if row.startswith("| ")][1:]
    assert len(rows) > 10 and all(TEST.search(row) for row in rows)
    assert missing_tests(text) == []
    assert missing_tests("`tests/docs/blocks.py::test_nope`") == ["tests/docs/blocks.py::test_nope"]


def test_what_is_broken_is_seen():
    path = DOCUMENTS[0]
    text = "[a](docs/nope.md) [b](docs/data.md#sources) [c](docs/data.md#nope) [d](#nope)"
    assert broken_links(path, text) == ["docs/nope.md", "docs/data.md#nope", "#nope"]
    assert missing_files("`clipjax/nope.py` `clipjax/train.py` `losses/x.py`") == [
        "clipjax/nope.py"
    ]


def figures(text):
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def unfounded(rows):
    """(figure, file) of table rows `| what | figure | file |` that the file does not hold.

    A figure may be rounded: a number of the file has to give its digits.
    """
    found = []
    for row in rows:
        what, figure, name = (cell.strip() for cell in row.strip("|").split("|"))
        file = ROOT / "benchmarks" / "results" / name.strip("`")
        held = figures(file.read_text(encoding="utf-8"))
        for text in NUMBER.findall(re.sub(r"v5e:\S+|\w+-\d\b", "", figure)):
            value = float(text.replace(",", ""))
            digits = 0 if "e" in text else len(text.partition(".")[2])
            if not any(x == value or ("e" not in text and round(x, digits) == value) for x in held):
                found.append((what, text, name))
    return found


def measured_rows():
    section = (
        DOCUMENTS[0].read_text(encoding="utf-8").split("## Measured here")[1].split("\n## ")[0]
    )
    return [line for line in section.splitlines() if line.startswith("|")][2:]


def test_every_figure_of_the_readme_stands_in_its_file():
    rows = measured_rows()
    assert len(rows) >= 8
    assert unfounded(rows) == []


def test_a_figure_without_ground_is_seen():
    (row,) = [row for row in measured_rows() if "Noto" in row]
    assert unfounded([row.replace("35.5", "95.5")])[0][1] == "95.5"


def test_results_name_their_commit():
    for row in measured_rows():
        file = ROOT / "benchmarks" / "results" / row.strip("|").split("|")[2].strip()
        assert re.search(r"\bcommit", file.read_text(encoding="utf-8")), file.name
