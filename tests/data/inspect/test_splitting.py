"""A held-out part: disjoint, whole, of the size that was asked for; nothing moves as data grow."""

import collections

import numpy as np
import pyarrow.parquet as pq
import pytest
from archives import png
from data_command import run

from clipjax.data import SampleError, make_source
from clipjax.data.inspect.splitting import count_classes, split
from clipjax.data.source import keys_of

pytestmark = pytest.mark.usefixtures("cache")


class Rows:
    """Rows of (key, picture, text, label)."""

    def __init__(self, rows, pictures=False):
        self.rows = list(rows)
        self.class_names = tuple("abc")
        if pictures:
            self.pictures = lambda: (row[1] for row in self.rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        key, _, text, label = self.rows[index]
        if text is None:
            raise SampleError("text_empty", "it has none", key)
        return {"image": b"", "text": text, "key": key, "label": label}

    def fingerprint(self):
        return str(hash(tuple(self.rows)))


def rows(count, start=0):
    """Three rows a picture, four pictures a caption."""
    for number in range(start, start + count):
        yield f"key {number}", f"picture {number // 3}", f"Caption  {number // 12}", number % 3


def held_keys(source, holdout=0.1, **options):
    found = split(source, holdout, **options)
    return {key for key, held in zip(keys_of(source), found.held, strict=True) if held}


@pytest.mark.parametrize("options", [{}, {"captions": True}])
@pytest.mark.parametrize("pictures", [False, True])
def test_nothing_moves_when_rows_come_go_or_change_places(pictures, options):
    few, more = list(rows(3000)), list(rows(6000))
    held = held_keys(Rows(few, pictures), **options)
    later = held_keys(Rows(more, pictures), **options)
    assert later & {row[0] for row in few} == held
    order = np.random.default_rng(0).permutation(len(few))
    assert held_keys(Rows([few[place] for place in order], pictures), **options) == held
    # A larger part holds the smaller one; another fraction is another part.
    assert held < held_keys(Rows(few, pictures), 0.3, **options)


def test_the_fraction_is_that_of_a_fair_coin_in_each_class():
    source = Rows(rows(30_000))
    for holdout in (0.02, 0.1, 0.5):
        found = split(source, holdout)
        parts, sizes = count_classes(found.labels, found.held)
        assert sizes.tolist() == [10_000] * 3 and parts.sum() == found.held.sum()
        deviation = (10_000 * holdout * (1 - holdout)) ** 0.5
        assert (abs(parts - 10_000 * holdout) < 4.5 * deviation).all()
        assert found.units == 30_000


def test_of_every_class_its_share_is_held_out():
    """Of 60, 7, 2 and 1 pictures, which are shuffled; two alone in theirs are a class."""
    sizes = {0: 60, 1: 7, 2: 2, 3: 1, 4: 1}
    of_classes = [(f"{label} {number}", None, "", label)
                  for label, size in sizes.items() for number in range(size)]  # fmt: skip
    source = Rows(np.random.default_rng(0).permutation(np.array(of_classes, object)).tolist())
    smaller = set()
    for holdout, expected in {0.1: (6, 1, 1, 0), 0.3: (18, 2, 1, 1), 0.9: (54, 6, 1, 2)}.items():
        found = split(source, holdout, stratify=True)
        parts, there = count_classes(found.labels, found.held)
        assert there.tolist() == list(sizes.values())
        assert (*parts[:3].tolist(), parts[3:].sum()) == expected
        held = held_keys(source, holdout, stratify=True)
        assert smaller < held and held == held_keys(Rows(of_classes), holdout, stratify=True)
        smaller = held
    assert parts[0] != count_classes(found.labels, split(source, 0.9).held)[0][0]  # by the hash
    # Rows of a picture go together, and the share is of pictures.
    found = split(Rows(rows(360), pictures=True), 0.25, stratify=True)
    assert found.units == 120 and found.held.sum() == 90
    assert (found.held[::3] == found.held[1::3]).all() and (
        found.held[::3] == found.held[2::3]
    ).all()
    # Without labels the hash alone decides.
    plain = Rows([(key, picture, text, None) for key, picture, text, _ in rows(300)])
    assert held_keys(plain, stratify=True) == held_keys(plain)


def test_what_belongs_together_is_on_one_side():
    def sides(column, **options):
        source = Rows(rows(6000), pictures=True)
        found, held = collections.defaultdict(set), split(source, 0.2, **options).held
        for row, side in zip(source.rows, held.tolist(), strict=True):
            found[row[column]].add(side)
        return [len(side) for side in found.values()], held

    by_picture, held = sides(1)
    assert set(by_picture) == {1} and 0.14 < held.mean() < 0.26
    assert 2 in sides(2)[0]  # equal captions are torn apart, unless that is asked for
    by_caption, held = sides(2, captions=True)
    assert set(by_caption) == {1} == set(sides(1, captions=True)[0]) and 0.1 < held.mean() < 0.3
    # Rows that share one of several captions, or are equal but for case; none is alone.
    texts = ["a", ("A ", "b"), {"en": "b", "de": ("c",)}, "d", None, None]
    for number in range(40):
        named = [(f"{number} {i}", None, text, None) for i, text in enumerate(texts)]
        source = Rows([*named, *rows(60)])
        found = split(source, 0.5, captions=True)
        assert len(set(found.held[:3].tolist())) == 1
        assert found.unusable == {"text_empty": 2}
        assert found.held[4:6].tolist() == split(source, 0.5).held[4:6].tolist()


def test_the_command_writes_two_filters(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(60):
            (tmp_path / "pets" / name / f"{number}.png").write_bytes(png(number))
    spec = f"folder:{tmp_path}/pets"
    assert run("split", spec, "--holdout=0.25", "--out", tmp_path / "parts") == 0
    out = capsys.readouterr().out
    assert "held out: " in out and "of 2 classes" in out
    sides = {}
    for side in ("train", "holdout"):
        file = tmp_path / "parts" / f"{side}.parquet"
        assert f"{spec}?filter={file}:min=1" in out
        assert pq.read_schema(file).metadata[b"holdout"] == b"0.25"
        sides[side] = set(keys_of(make_source(f"{spec}?filter={file}:min=1")))
    whole = set(keys_of(make_source(spec)))
    assert not sides["train"] & sides["holdout"] and sides["train"] | sides["holdout"] == whole
    assert f"held out: {len(sides['holdout'])} of 120 examples" in out
    assert collections.Counter(key.split("/")[0] for key in sides["holdout"]) == {
        "cat": 15,
        "dog": 15,
    }
    assert run("split", spec, "--holdout=0.25", "--out", tmp_path / "hash", "--nostratify") == 0
    by_hash = set(keys_of(make_source(f"{spec}?filter={tmp_path}/hash/holdout.parquet:min=1")))
    assert by_hash == held_keys(make_source(spec), 0.25) != sides["holdout"]
    # Of a part, again: the filters stand behind one another.
    part = f"{spec}?filter={tmp_path}/parts/train.parquet:min=1"
    assert run("split", part, "--holdout=0.5", "--out", tmp_path / "again") == 0
    told = f"{part},{tmp_path}/again/holdout.parquet:min=1"
    assert told in capsys.readouterr().out
    assert set(keys_of(make_source(told))) < sides["train"]


def test_a_table_is_divided_alike_wherever_it_lies(tmp_path):
    found = []
    for folder in ("here", "there/below"):
        (tmp_path / folder).mkdir(parents=True)
        lines = [f"{number // 2}.png,caption {number}" for number in range(200)]
        table = tmp_path / folder / "t.csv"
        table.write_text("\n".join(["image,text", *lines]))
        found.append(split(make_source(f"csv:{table}"), 0.3))
    assert found[0].held.tolist() == found[1].held.tolist() and found[0].units == 100
    assert (found[0].held[::2] == found[0].held[1::2]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("synthetic:9", "--out=o"), "--holdout"),
        (("synthetic:9", "--holdout=0.1"), "--out"),
        (("synthetic:9", "--holdout=1", "--out=o"), r"holdout = 1\.0.*\(0, 1\)"),
        (("synthetic:9", "--holdout=nan", "--out=o"), "holdout = nan"),
        (("synthetic:2", "--holdout=0.001", "--out=o"), "none of 2 examples"),
        (("mix:[]", "--holdout=0.1", "--out=o"), "one by one"),
    ],
)
def test_splits_that_cannot_be_made(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run("split", *arguments)
    assert not list(tmp_path.rglob("*.parquet"))
