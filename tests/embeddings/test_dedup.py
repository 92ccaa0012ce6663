"""`clipjax dedup` and `clipjax cluster`, and the filter that a SPEC takes."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding import embed
from PIL import Image

from clipjax.data.classes.named_lists import load_class_names
from clipjax.data.sources import make_source
from clipjax.embeddings.clustering import k_means
from clipjax.embeddings.duplicates import Duplicates, find_duplicates, largest
from clipjax.embeddings.index import Block


class InMemory:
    """An index of rows in memory."""

    def __init__(self, embeds):
        embeds = np.asarray(embeds, np.float32)
        self.embeds = embeds / np.linalg.norm(embeds, axis=1, keepdims=True)
        self.embed_dim = embeds.shape[1]

    def __len__(self):
        return len(self.embeds)

    def embeddings(self, places):
        return self.embeds[places]

    def blocks(self, rows, *, start=0):
        for first in range(start, len(self), rows):
            part = self.embeds[first : first + rows]
            padding = np.zeros((rows - len(part), self.embed_dim), np.float32)
            yield Block(first, len(part), np.concatenate([part, padding]))


@pytest.mark.parametrize("rows", [8, 64])
def test_every_pair_is_compared_once(rows):
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((50, 16))
    embeds[[7, 31, 49]] = embeds[[3, 3, 3]] + 1e-3 * rng.standard_normal((3, 16))
    index = InMemory(embeds)
    found = find_duplicates(index, 0.8, rows=rows)
    cosines = (index.embeds @ index.embeds.T)[np.triu_indices(50, 1)]
    assert found.pairs == (cosines >= 0.8).sum() and found.counts[-4:].sum() == found.pairs
    # The last bin holds 1, which rounding puts above.
    expected = np.histogram(np.minimum(cosines, 1), found.edges)[0]
    assert found.counts.tolist() == expected.tolist()
    assert found.groups()[0].tolist() == [3, 7, 31, 49]
    apart = find_duplicates(index, 0.8, rows=50).labels
    assert len(set(zip(found.labels, apart, strict=True))) == len(set(apart))


def test_groups_are_what_chains_of_pairs_connect():
    chain = [[np.cos(a), np.sin(a)] for a in (0, 0.1, 0.2, 2.0, 2.1, 4.0)]
    found = find_duplicates(InMemory(chain), float(np.cos(0.11)), rows=2)
    assert [group.tolist() for group in found.groups()] == [[0, 1, 2], [3, 4]]
    assert found.pairs == 3
    areas = np.array([4, 9, 9, 2, 1, 100])
    assert [largest(group, areas) for group in found.groups()] == [1, 3]
    assert Duplicates(np.arange(3), 0, found.edges, found.counts).groups() == []


def test_clusters_are_those_that_were_planted():
    rng = np.random.default_rng(0)
    planted = np.repeat([0, 1, 2], [5, 20, 10])
    centres = np.eye(4)[:3]
    embeds = centres[planted] + 0.05 * rng.standard_normal((35, 4))
    for seed in range(4):
        found = k_means(InMemory(embeds), 3, seed=seed, rows=16)
        if found.mean_cosines[-1] > 0.99:
            break
    sizes = [len(found.members(number)) for number in range(3)]
    assert sizes == [20, 10, 5] and len(set(zip(planted, found.labels, strict=True))) == 3
    assert found.mean_cosines == sorted(found.mean_cosines)
    near = found.cosines[found.members(0)]
    assert (np.diff(near) <= 0).all() and near[0] > 0.99
    np.testing.assert_allclose(np.linalg.norm(found.centres, axis=1), 1, atol=1e-6)


def test_equal_pictures_fill_fewer_clusters_than_are_asked_for():
    found = k_means(InMemory(np.ones((6, 2))), 3)
    assert sorted(np.bincount(found.labels, minlength=3).tolist()) == [0, 0, 6]


@pytest.fixture(scope="module")
def twins(checkpoint, tmp_path_factory):
    """A folder with a picture in three sizes, and its index."""
    from commands import in_this_process

    folder = tmp_path_factory.mktemp("twins")
    colours = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255), "d": (255, 255, 255)}
    for name, colour in colours.items():
        for size in (16, 64, 32) if name == "b" else (16,):
            picture = Image.new("RGB", (size, size), colour)
            picture.save(folder / f"{name}{size}.png")
            (folder / f"{name}{size}.txt").write_text(f"picture {name}")
    out = tmp_path_factory.mktemp("twins_index")
    with in_this_process() as command:
        assert embed(command, checkpoint, f"folder:{folder}", out).code == 0
    return folder, out


def test_the_largest_of_each_group_is_kept_and_a_spec_takes_the_filter(twins, command, tmp_path):
    folder, index = twins
    keep, page = tmp_path / "keep.parquet", tmp_path / "page.html"
    flags = (f"--index={index}", "--threshold=0.999999")
    more = (f"--out={keep}", f"--html={page}", f"--json={tmp_path}/found.json")
    done = command("dedup", *flags, *more)
    assert done.code == 0, done.err
    assert "1 groups of 3 pictures" in done.out and "kept: 4 of 6; left out: 2" in done.out
    assert "pairs at a cosine of 0.999999 or above" in done.out
    assert "0.99999900 to 0.99999925 same " in done.out  # no two bins are shown as one
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["groups"] == [{"kept": "b64.png", "left_out": ["b16.png", "b32.png"]}]
    assert sum(one["pairs"] for one in found["histogram"] if one["from"] >= 0.999999) == 3
    text = page.read_text()
    assert text.count('<img src="data:image/jpeg') == 3 and "64 x 64" in text
    kept = make_source(f"folder:{folder}?filter={keep}:min=1")
    assert list(kept.keys()) == ["a16.png", "b64.png", "c16.png", "d16.png"]
    scores = pa.table({"key": list(kept.keys()), "score": [0.1, 0.2, 0.3, 0.4]})
    pq.write_table(scores, tmp_path / "scores.parquet")
    both = make_source(f"folder:{folder}?filter={keep}:min=1,{tmp_path}/scores.parquet:top=0.5")
    assert list(both.keys()) == ["c16.png", "d16.png"]
    again = command("dedup", *flags, *more)
    assert again.code == 1 and "keep.parquet exists" in again.err
    done = command("dedup", f"--index={folder}")
    assert done.code == 1 and "has no index.json" in done.err


def test_clusters_have_words_and_a_sheet(twins, command, tmp_path):
    (tmp_path / "words.txt").write_text("cat\ndog\nhorse\n")
    flags = (f"--index={twins[1]}", f"--words={tmp_path}/words.txt", "--clusters=4")
    more = (f"--{name}={tmp_path}/found.{name}" for name in ("html", "json"))
    done = command("cluster", *flags, *more, f"--out={tmp_path}/clusters.parquet")
    assert done.code == 0, done.err
    assert "3 pictures" in done.out.splitlines()[0]
    found = json.loads((tmp_path / "found.json").read_text())
    first = found["clusters"][0]
    assert sorted(first["nearest"]) == ["b16.png", "b32.png", "b64.png"]
    assert sorted(first["words"]) == ["cat", "dog", "horse"] and first["mean_cosine"] > 0.999
    assert (tmp_path / "found.html").read_text().count('<img src="data:image/jpeg') == 6
    table = pq.read_table(tmp_path / "clusters.parquet").to_pydict()
    assert {k for k, c in zip(table["key"], table["cluster"], strict=True) if c == 0} == {
        *("b16.png", "b32.png", "b64.png")
    }
    done = command("cluster", flags[0], "--clusters=1", f"--json={tmp_path}/shipped.json")
    assert done.code == 0, done.err
    shipped = json.loads((tmp_path / "shipped.json").read_text())["clusters"][0]["words"]
    assert len(shipped) == 5 and set(shipped) <= set(load_class_names("imagenet"))
    done = command("cluster", *flags, f"--out={tmp_path}/clusters.parquet")
    assert done.code == 1 and "clusters.parquet exists; give another name" in done.err
    done = command("cluster", *flags[:2], "--clusters=7")
    assert done.code == 1 and "holds 6 pictures" in done.err
