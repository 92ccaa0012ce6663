"""`clipjax search`: what is nearest, exactly, and one clear error for what cannot be asked."""

import json
import shutil
import sys
import types

import numpy as np
import pyarrow.parquet as pq
import pytest
from checkpoints import write_checkpoint
from tiny import tiny_spec

import clipjax
from clipjax.embeddings.index import Block, Index
from clipjax.embeddings.search import block_rows, recall, search, search_faiss


def blocks_of(embeds, rows):
    for first in range(0, len(embeds), rows):
        part = embeds[first : first + rows]
        padding = np.zeros((rows - len(part), embeds.shape[1]), embeds.dtype)
        yield Block(first, len(part), np.concatenate([part, padding]))


def unit(rng, *shape):
    rows = rng.standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.mark.parametrize("rows", [3, 64])
def test_it_is_exact_and_of_equal_ones_the_first_comes_first(rows):
    rng = np.random.default_rng(0)
    embeds, queries = unit(rng, 50, 8), unit(rng, 3, 8)
    embeds[40] = embeds[11] = embeds[30]
    queries[0] = embeds[30]
    queries[1] = -embeds.mean(0) / np.linalg.norm(embeds.mean(0))  # cosines below 0, as padding's 0
    scores, places = search(queries, blocks_of(embeds, rows), 50)
    exact = queries.astype(np.float64) @ embeds.T.astype(np.float64)
    assert places[0][:3].tolist() == [11, 30, 40]
    assert (np.sort(places) == np.arange(50)).all()
    np.testing.assert_allclose(scores, np.take_along_axis(exact, places, 1), atol=1e-6)
    assert (np.diff(scores) <= 0).all()


def test_the_scores_held_at_once_are_bounded():
    for queries in (1, 1000, 10**6):
        assert block_rows(queries, 10) * queries <= 1 << 24
    assert block_rows(1, 10) == 1 << 16 and block_rows(1, 10**6) == 10**6


@pytest.fixture
def find(command, index):
    def run(*flags, index=index):
        return command("search", f"--index={index}", *flags)

    return run


def exact(index, query):
    embeds = np.concatenate([block.embeds[: block.filled] for block in Index.open(index).blocks(5)])
    cosines = embeds @ (query / np.linalg.norm(query))
    return np.argsort(-cosines, kind="stable"), cosines


def test_texts_are_added_and_taken_away(find, index, checkpoint, tmp_path):
    model = clipjax.load(checkpoint)
    a, b, c = model.encode_text(["a red bicycle", "snow", "a car"])
    order, cosines = exact(index, a + b - c)
    flags = ("--query=a red bicycle", "--query=snow", "--minus=a car", "--top=4")
    done = find(*flags, f"--json={tmp_path}/found.json", f"--html={tmp_path}/page.html")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "found.json").read_text())
    keys = [f"{number:02d}.png" for number in range(23) if number != 5]
    assert [one["key"] for one in found["results"]] == [keys[place] for place in order[:4]]
    assert [one["cosine"] for one in found["results"]] == pytest.approx(
        cosines[order[:4]].tolist(), abs=1e-5
    )
    assert found["searched"] == 22 and found["query"]["minus"] == ["a car"]
    assert [line.split()[1] for line in done.out.splitlines()[-4:]] == [
        one["key"] for one in found["results"]
    ]
    page = (tmp_path / "page.html").read_text()
    assert page.count('<img src="data:image/jpeg') == 4 and "a red bicycle + snow - a car" in page


def test_a_picture_finds_itself(find, pictures):
    done = find(f"--image={pictures}/07.png", "--top=1")
    assert done.code == 0 and done.out.startswith("1.0000  07.png  picture 7"), done.err


def test_what_cannot_be_asked_is_one_clear_error(find, index, pictures, tmp_path):
    def told(*flags, **options):
        done = find(*flags, **options)
        assert done.code == 1 and "Traceback" not in done.err
        return done.err

    query = "--query=a cat"
    assert "--top=23: " in told(query, "--top=23") and "holds 22 pictures" in told(
        query, "--top=23"
    )
    assert len(find(query).out.splitlines()) == 20  # by default
    for flags in (["--query= "], [query, "--minus="]):
        assert "the query is empty" in told(*flags)
    assert "give --query TEXT or --image FILE" in told("--minus=a cat")
    assert "nothing is left to look for" in told(query, "--minus=a cat")
    assert "05.png cannot be used" in told(f"--image={pictures}/05.png")
    other = tmp_path / "other"
    params = tiny_spec(image={"patch_size": 8, "depth": 1}, text={"vocab_size": 49408})
    write_checkpoint(other, params)
    assert "embeddings of another model, tiny" in told(query, f"--checkpoint={other}")
    for name, change in {
        "truncated": lambda p: (p / "00001.parquet").write_bytes(b"PAR1"),
        "lost": lambda p: (p / "00001.parquet").unlink(),
        "unfinished": lambda p: (p / "index.json").write_text(
            (p / "index.json").read_text().replace('"complete": true', '"complete": false')
        ),
        "moved": lambda p: (p / "index.json").write_text(
            (p / "index.json").read_text().replace('"checkpoint": "', '"checkpoint": "/nowhere')
        ),
        "one bit": lambda p: change_in_the_middle(p / "00001.parquet"),
        "none": lambda p: (p / "index.json").unlink(),
        "damaged": lambda p: (p / "index.json").write_text("{}"),
    }.items():
        shutil.copytree(index, tmp_path / name)
        change(tmp_path / name)
        words = {"truncated": "00001.parquet has 4 bytes", "lost": "00001.parquet is missing"}
        words |= {"moved": "say where it is by --checkpoint", "one bit": "00001.parquet is damaged"}
        words |= {"unfinished": "is not finished", "none": "has no index.json"}
        message = told(query, index=tmp_path / name)
        assert words.get(name, "is no index of the format") in message


def change_in_the_middle(path):
    data = bytearray(path.read_bytes())
    rows = pq.ParquetFile(path).metadata.row_group(0)
    column = next(
        found
        for number in range(rows.num_columns)
        if (found := rows.column(number)).path_in_schema.startswith("embedding")
    )
    data[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other/1"},
        {"model": {}},
        {"data": None},
        {"shards": []},
        {"shards": "many"},
        {"shards": [{"name": "../00000", "pictures": 7, "bytes": {}}]},
        {"shards": [{"name": "00000", "pictures": -7, "bytes": {}}]},
        {"shards": [{"name": "00000", "pictures": 7, "bytes": {"/../x": 1}}]},
        {"shards": [{"name": "00000", "pictures": 7, "bytes": {".parquet": "x"}}]},
        {"shards": [{"name": "00000", "pictures": 10**12, "bytes": {}}]},
        {"stored": {"form": "pickle", "dtype": "float32", "shard_size": 8}},
        {"stored": {"form": "npy", "dtype": "float32", "shard_size": 8}},
        {"stored": {"form": "parquet", "dtype": "object", "shard_size": 8}},
        {"stored": {"form": "parquet", "dtype": "float16", "shard_size": 8}},
    ],
    ids=str,
)
def test_an_index_that_says_anything_else_is_refused(index, tmp_path, change):
    copy = tmp_path / "index"
    shutil.copytree(index, copy)
    about = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**about, **change}))
    with pytest.raises(ValueError, match=r"index\.json|00000"):
        list(Index.open(copy).blocks(8))
    width = {"model": {**about["model"], "embed_dim": 10**9}}
    (copy / "index.json").write_text(json.dumps({**about, **width}))
    with pytest.raises(ValueError, match=r"expected float32\[7, 1000000000\]"):
        list(Index.open(copy).blocks(1 << 20))


def test_a_page_needs_the_pictures_that_were_embedded(find, tmp_path):
    done = find("--query=a cat", "--top=1", f"--html={tmp_path}/p.html", "--data=synthetic:20")
    assert done.code == 1 and "is not the data that was embedded" in done.err


def test_faiss_tells_its_recall_or_that_it_is_missing(find, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    done = find("--query=a cat", "--faiss=HNSW32")
    assert done.code == 1 and "--faiss needs `pip install faiss-cpu`" in done.err

    class Blind:
        """Sees the first half of what it is given."""

        is_trained = True

        def add(self, data):
            self.data = data[: len(data) // 2]

        def search(self, queries, k):
            order = np.argsort(-(queries @ self.data.T), axis=1)[:, :k]
            missing = k - order.shape[1]
            return np.zeros((1, k)), np.pad(order, [(0, 0), (0, missing)], constant_values=-1)

    stand_in = types.SimpleNamespace(
        METRIC_INNER_PRODUCT=0, index_factory=lambda width, factory, metric: Blind()
    )
    monkeypatch.setitem(sys.modules, "faiss", stand_in)
    done = find("--query=a cat", "--faiss=Flat", "--top=22")
    assert done.code == 0 and "recall@22 0.5000 of the exact search" in done.out, done.err
    assert len(done.out.splitlines()) == 12
    assert recall(np.array([[0, 1, -1]]), np.array([[2, 1, 0]])) == pytest.approx(2 / 3)


def test_faiss_itself_finds_the_same_where_it_is_installed():
    pytest.importorskip("faiss", reason="faiss-cpu is a user's own choice, in no extra")
    rng = np.random.default_rng(0)
    embeds, queries = unit(rng, 500, 16), unit(rng, 4, 16)
    scores, places = search(queries, blocks_of(embeds, 64), 5)
    found = search_faiss(queries, blocks_of(embeds, 64), 5, "Flat")
    assert (found[1] == places).all()
    np.testing.assert_allclose(found[0], scores, atol=1e-5)
    assert recall(search_faiss(queries, blocks_of(embeds, 64), 5, "HNSW32")[1], places) > 0.8
    with pytest.raises(ValueError, match="--faiss=Nonsense"):
        search_faiss(queries, blocks_of(embeds, 64), 5, "Nonsense")
