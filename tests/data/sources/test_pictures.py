"""Which examples show the same picture: by name where there is one, else by bytes."""

import itertools
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import png, tar

from clipjax.data import make_source
from clipjax.data.packed.records import pack_record, write_records
from clipjax.data.source import pictures_of

pytestmark = pytest.mark.usefixtures("cache")


def groups(source):
    """Examples of the same picture, by number."""
    found = {}
    for index, picture in enumerate(pictures_of(source)):
        found.setdefault(picture, []).append(index)
    return list(found.values())


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_that_name_the_same_path(tmp_path, kind):
    names = ["a.png", "./a.png", "sub/../a.png", str(tmp_path / "a.png"), "b.png", "../c.png", ""]
    names += ["../c.png", ""]
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png(1))  # the same bytes under two names are two pictures
    rows = [{"image": name, "text": f"caption {i}"} for i, name in enumerate(names)]
    lines = [json.dumps(row) for row in rows]
    if kind == "csv":
        lines = ["image,text", *(f"{row['image']},{row['text']}" for row in rows)]
    (tmp_path / f"t.{kind}").write_text("\n".join(lines))
    source = make_source(f"{kind}:{tmp_path}/t.{kind}")
    # What may not be read is like nothing else: each row is told as unusable by itself.
    assert groups(source) == [[0, 1, 2, 3], [4], [5], [6], [7], [8]]


def test_parquet(tmp_path):
    def source_of(name, images):
        table = pa.table({"image": images, "text": ["x"] * len(images)})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
        return make_source(f"parquet:{tmp_path}/{name}.parquet")

    assert groups(source_of("bytes", [png(1), png(2), png(1), None, b"", png(2)])) == [
        [0, 2], [1, 5], [3], [4],
    ]  # fmt: skip
    assert groups(source_of("paths", ["a.png", "b.png", "./a.png", None, None])) == [
        [0, 2], [1], [3], [4],
    ]  # fmt: skip
    # Beside the bytes a path need not be one of its own (`image.png` of every row), nor are equal
    # bytes of two names one picture.
    structs = [(1, "x.png"), (2, "x.png"), (1, "y.png"), (1, "x.png"), (1, None), (1, None)]
    both = [{"bytes": png(n), "path": path} for n, path in structs]
    assert groups(source_of("structs", both)) == [[0, 3], [1], [2], [4, 5]]


def test_a_damaged_row_group_is_like_nothing_else(tmp_path):
    path = tmp_path / "x.parquet"
    table = pa.table({"image": [png(1)] * 4, "text": ["x"] * 4})
    how = {"write_page_checksum": True, "use_dictionary": False, "compression": "none"}
    how["write_statistics"] = False  # they hold pictures, too
    pq.write_table(table, path, row_group_size=2, **how)
    content = bytearray(path.read_bytes())
    content[content.index(png(1)) + 20] ^= 1
    path.write_bytes(content)
    assert groups(make_source(f"parquet:{path}")) == [[0], [1], [2, 3]]


def test_tar_members_and_records_of_equal_bytes(tmp_path):
    numbers = (1, 2, 1, 3, 2)
    members = [(f"{i}.png", png(n)) for i, n in enumerate(numbers)]
    members += [(f"{i}.txt", b"x") for i in range(6)]
    tar(tmp_path / "a.tar", members)
    tar(tmp_path / "b.tar", members[:1] + members[5:6])
    expected = [[0, 2], [1, 4], [3]]
    assert groups(make_source(f"tar:{tmp_path}/a.tar")) == [*expected, [5]]  # without a picture
    assert groups(make_source(f"tar:{tmp_path}/{{a,b}}.tar"))[0] == [0, 2, 6]
    records = [
        pack_record(key=str(i), text=("x",), blobs={"image": png(n)}) for i, n in enumerate(numbers)
    ]
    write_records(tmp_path / "a.array_record", records)
    assert groups(make_source(f"arrayrecord:{tmp_path}/a.array_record")) == expected


def test_pictures_of_a_folder_are_its_files_and_those_of_a_mix_its_sources(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(png(1))
        (tmp_path / f"{name}.txt").write_text("x")
    assert groups(make_source(f"folder:{tmp_path}")) == [[0], [1]]
    (tmp_path / "t.csv").write_text("image,text\n" + "a.png,x\n" * 3)
    spec = [{"spec": f"csv:{tmp_path}/t.csv", "weight": 1}] * 2
    assert groups(make_source(f"mix:{json.dumps(spec)}")) == [[0, 1, 2], [3, 4, 5]]


def test_a_filter_keeps_identities(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").write_bytes(png(2))
    (tmp_path / "t.csv").write_text("image,text\na.png,x\nb.png,x\nb.png,y\na.png,y\n")
    keys = [f"t.csv:{i}" for i in range(4)]
    scores = pa.table({"key": keys, "score": [0.9, 0.1, 0.5, 0.8]})
    pq.write_table(scores, tmp_path / "s.parquet")
    source = make_source(f"csv:{tmp_path}/t.csv?filter={tmp_path}/s.parquet:min=0.4")
    assert groups(source) == [[0, 2], [1]]
    assert list(itertools.chain(*groups(make_source("synthetic:3")))) == [0, 1, 2]
