"""`?examples=N` takes the same examples, whatever their order."""

import json

import pytest

from clipjax.data.source import keys_of
from clipjax.data.sources import make_source


def keys(spec):
    return list(keys_of(make_source(spec)))


def test_a_part_is_chosen_by_keys_and_grows(tmp_path):
    rows = [f"p{number // 2}.png,caption {number}" for number in range(40)]
    for name, order in (("a", rows), ("b", rows[::-1])):
        (tmp_path / f"{name}.csv").write_text("image,text\n" + "\n".join(order) + "\n")
    small, large = (keys(f"synthetic:64?examples={n}") for n in (5, 20))
    assert len(small) == 5 and len(large) == 20
    assert set(small) < set(large) and small != keys("synthetic:64")[:5]
    part = make_source(f"csv:{tmp_path}/a.csv?examples=7")
    assert len(part) == 14 and len(set(part.pictures())) == 7  # with both captions
    whole = make_source("synthetic:64")
    assert make_source("synthetic:64?examples=64").fingerprint() != whole.fingerprint()
    for wrong in ("0", "many", "65"):
        with pytest.raises(ValueError, match=f"examples={wrong}"):
            make_source(f"synthetic:64?examples={wrong}")


def test_groups_of_captions_are_chosen_with_their_pictures(tmp_path):
    captions = {"caption_0": "x y", "caption_1": "y x"}
    lines = [{"id": n, "image_0": f"a{n}", "image_1": f"b{n % 3}", **captions} for n in range(12)]
    (tmp_path / "w.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = make_source(f"winoground:{tmp_path}/w.jsonl")
    part = make_source(f"winoground:{tmp_path}/w.jsonl?examples=5")
    more = make_source(f"winoground:{tmp_path}/w.jsonl?examples=7")
    assert part.subset == {"examples": 5, "of": 12} and len(part.groups) == 5
    keys, names = list(part.keys()), list(whole.keys())
    of_whole = {group.key: [names[i] for i in group.images] for group in whole.groups}
    assert all([keys[i] for i in g.images] == of_whole[g.key] for g in part.groups)
    assert len(keys) == len({name for g in part.groups for name in of_whole[g.key]})
    assert {g.key for g in part.groups} < {g.key for g in more.groups}
    assert len({s.fingerprint() for s in (whole, part, more)}) == 3
    with pytest.raises(ValueError, match="the source has 12"):
        make_source(f"winoground:{tmp_path}/w.jsonl?examples=13")
