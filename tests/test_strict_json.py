"""A key that stands twice in JSON that a person, or the web, gives is no silent choice."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "data"))
from archives import png, tar

from clipjax.data import SampleError, make_source
from clipjax.data.classes.named_lists import load_class_names
from clipjax.data.packed.records import pack_record, unpack_record
from clipjax.data.sources.mix import read_specs
from clipjax.encoding.templates import load_templates
from clipjax.evals.running import RESULTS, read_document
from clipjax.strict_json import parse_fields

TWICE = "'cat' stands twice"
READERS = {
    "templates.json": (
        '{"cat": ["a {}"], "cat": ["b {}"]}',
        lambda path: load_templates(str(path)),
    ),
    "classes.json": (
        '{"cat": ["a"], "cat": ["b"]}',
        lambda path: load_class_names(f"{path}:cat"),
    ),
    "mix.json": ('[{"spec": "a", "cat": 1, "cat": 2}]', lambda path: read_specs(str(path))),
    "coco.json": ('{"images": [], "cat": 1, "cat": 2}', lambda path: make_source(f"coco:{path}")),
    "rows.jsonl": (
        '{"image": "a", "text": "b", "cat": 1, "cat": 2}',
        lambda path: make_source(f"jsonl:{path}"),
    ),
    RESULTS: ('{"cat": 1, "cat": 2}', lambda path: read_document(path.parent)),
}


@pytest.mark.parametrize("name", READERS)
def test_files_that_a_person_gives(tmp_path, name):
    text, read = READERS[name]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=TWICE) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_records(tmp_path):
    about = b'{"caption": "a cat", "cat": 1, "cat": 2}'
    tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.json", about)])
    with pytest.raises(SampleError, match=TWICE):
        make_source(f"tar:{tmp_path}/a.tar")[0]
    packed = pack_record(key="cat", text=("a",), blobs={"image": b""})
    assert unpack_record(packed)["key"] == "cat"
    with pytest.raises(ValueError, match="'text' stands twice"):
        unpack_record(packed.replace(b'"key":"cat",', b'"text":"c", '))


def test_what_a_record_may_hold():
    assert parse_fields(b'{"a": {"b": NaN}, "c": {"b": 1}}')["c"] == {"b": 1}
    with pytest.raises(ValueError, match=TWICE):
        parse_fields('[{"a": {"cat": 1, "cat": 1}}]')
