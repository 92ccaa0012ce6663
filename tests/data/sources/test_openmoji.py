import hashlib
import io
import json
import multiprocessing
import pickle
import sys

import numpy as np
import pytest
from counting import HANGS_S
from PIL import Image

from clipjax.data import Preprocess, make_source
from clipjax.data.images.areas import areas_of
from clipjax.data.sources import emoji_drawings
from clipjax.data.sources.emoji_drawings import MARGIN, SIDE, open_records
from clipjax.data.sources.emoji_names import LANGUAGES, is_unseen, splits_of
from clipjax.data.sources.openmoji import OpenMoji

LIMIT = 16


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPJAX_CACHE", str(tmp_path))
    return tmp_path


def source(where="all", **options):
    return make_source({"spec": f"openmoji:{where}", "limit": LIMIT, **options})


def test_it_goes_to_worker_processes():
    given = source("all", aliases=True)
    given[3]
    again = pickle.loads(pickle.dumps(given))
    assert (again[3]["image"] == given[3]["image"]).all() and again[3]["text"] == given[3]["text"]
    assert again.fingerprint() == given.fingerprint()


def record_file(cache):
    (path,) = cache.glob("openmoji-*/*.array_record")
    return path


def test_3944_pairs_and_their_split():
    pairs = OpenMoji.pairs()
    assert len(pairs) == 3_944
    unseen = [p for p in pairs if is_unseen(p.codepoints)]
    assert len(unseen) == 392
    expected = [
        p.codepoints
        for p in pairs
        if hashlib.sha256(p.codepoints.encode()).digest() < bytes.fromhex("19" + "99" * 31)
    ]
    assert [p.codepoints for p in unseen] == expected
    splits = [splits_of(p.codepoints) for p in pairs]
    assert sum("validation" in found for found in splits) == 382
    assert all(("train" in found) == ("fit" in found or "validation" in found) for found in splits)
    assert all(("unseen" in found) != ("train" in found) for found in splits)
    assert all(set(p.names) == set(LANGUAGES) and all(p.names.values()) for p in pairs)
    by_code = {p.codepoints: p for p in pairs}
    assert by_code["1F600"].names["en"] == "grinning face"
    assert by_code["1F600"].names["de"] == "grinsendes gesicht"
    # Every English name is another one: the question of the zero-shot evaluation has an answer.
    assert len({p.names["en"] for p in pairs}) == 3_944


def test_examples(cache):
    everything, train, unseen = source(), source("train"), source("unseen")
    assert len(everything) == LIMIT == len(train) + len(unseen) and len(unseen) > 0
    assert not {train[i]["key"] for i in range(len(train))} & {
        unseen[i]["key"] for i in range(len(unseen))
    }
    for i in range(len(unseen)):
        example = unseen[i]
        assert is_unseen(example["key"]) and example["label"] == i
        assert example["text"] == unseen.class_names[i]
        assert example["image"].shape == (SIDE, SIDE, 4)
        pixels = Preprocess(32)(example["image"])
        assert (pixels[0, 0] == 255).all() and pixels.std() > 10
    assert len(list(cache.glob("openmoji-*/*.array_record"))) == 1


def test_options(cache):
    name = source()[0]["text"]
    german, layers = source(language="de"), source(layers=True)
    assert german[0]["text"] != name and german.fingerprint() != source().fingerprint()
    everything = source(language="all", aliases=True)
    assert everything[0]["text"]["de"] == german[0]["text"] and len(everything[0]["text"]) == 14
    assert everything[0]["text"]["en"] == source(aliases=True)[0]["text"]
    assert everything.class_names == source().class_names
    sheet = layers[0]["image"]
    assert sheet.shape == (2 * SIDE, SIDE, 4)
    fill, lines = (Image.fromarray(part) for part in np.split(sheet, 2))
    together = np.asarray(Image.alpha_composite(fill, lines)).astype(int)
    whole = source()[0]["image"]
    assert np.abs(together - whole).mean() < 1.0
    assert np.abs(np.asarray(fill).astype(int) - whole).mean() > 1.0
    assert source(layers=True, side=24)[0]["image"].shape == (48, 24, 4)
    for part, expected in (("fill", fill), ("lines", lines)):
        np.testing.assert_array_equal(source(part=part)[0]["image"], expected)
        assert source(part=part).fingerprint() != source().fingerprint()
    with_areas = source(layers=True, areas=True)[0]["image"]
    np.testing.assert_array_equal(with_areas[: 2 * SIDE], sheet)
    bald = np.zeros_like(np.asarray(fill))  # the first drawings are signs
    areas = areas_of(np.asarray(fill), np.asarray(lines), bald)
    np.testing.assert_array_equal(with_areas[2 * SIDE :], areas)
    assert areas[..., 1].any()
    for options, told in (
        ({"areas": True}, "layers=true only"),
        ({"part": "hair"}, "no part 'hair'"),
        ({"part": "fill", "layers": True}, "in layers"),
    ):
        with pytest.raises(ValueError, match=told):
            source(**options)
    twice = source(repeat_plain=2)
    assert len(twice) == 2 * LIMIT and twice.class_names == source().class_names
    assert [twice[i]["label"] for i in range(2 * LIMIT)] == [i // 2 for i in range(2 * LIMIT)]
    texts = [source(aliases=True)[i]["text"] for i in range(LIMIT)]
    assert any(len(text) > 1 for text in texts)


def test_hair_is_rendered_alone():
    box = (0, 0, OpenMoji.canvas)
    woman = OpenMoji.render_hair("1F469-1F3FC", box, 36)
    assert (woman[woman[..., 3] == 255][:, :3] == (0xFC, 0xEA, 0x2B)).all()
    assert 50 < (woman[..., 3] == 255).sum() < 600
    assert not OpenMoji.render_hair("1F4F7", box, 36).any()  # a camera


def test_second_opening_renders_nothing(monkeypatch):
    fingerprint = source().fingerprint()
    monkeypatch.setattr(emoji_drawings, "render_all", None)
    assert source().fingerprint() == fingerprint


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no manifest", "other count"])
def test_a_damaged_cache_is_noticed_and_rebuilt(cache, damage):
    fingerprint = source().fingerprint()
    path = record_file(cache)
    manifest = path.with_name(path.name + ".json")
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "no manifest":
        manifest.unlink()
    else:
        fields = json.loads(manifest.read_text())
        fields["emoji"].popitem()
        manifest.write_text(json.dumps(fields))
    assert source().fingerprint() == fingerprint
    assert len(list(cache.glob("*.damaged-*"))) == 1


def test_a_killed_run_leaves_nothing_that_looks_finished(cache, monkeypatch):
    real = emoji_drawings.render_all

    def killed(artist, pairs):
        yield from list(real(artist, pairs))[:5]
        raise KeyboardInterrupt

    monkeypatch.setattr(emoji_drawings, "render_all", killed)
    with pytest.raises(KeyboardInterrupt):
        source()
    assert not [p for p in cache.iterdir() if p.is_dir()]
    (cache / ".openmoji-x.left").mkdir()  # of another cache: not this one's to delete
    monkeypatch.setattr(emoji_drawings, "render_all", real)
    assert len(source()) == LIMIT and (cache / ".openmoji-x.left").exists()


def open_in_process(results):
    import warnings

    warnings.simplefilter("error")
    results.put((source().fingerprint(), len(source())))


def test_two_first_runs_at_once(cache):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=open_in_process, args=(results,)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=HANGS_S) for _ in processes]
    for process in processes:
        process.join(timeout=HANGS_S)
    assert found[0] == found[1] and found[0][1] == LIMIT
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 1


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ValueError, match=r"resvg_py: pip install clipjax\[demo\]"):
        source()


def test_pictures_fill_their_frame():
    record = open_records(OpenMoji, LIMIT)[0]
    alpha = np.asarray(Image.open(io.BytesIO(record["blobs"]["image"])).convert("RGBA"))[..., 3]
    rows, columns = np.where(alpha > 8)
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    assert abs(longer - SIDE / MARGIN) <= 3
    assert record["meta"]["names"]["fr"]
