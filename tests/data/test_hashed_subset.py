"""`?examples=N` takes the same examples, whatever their order."""

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
