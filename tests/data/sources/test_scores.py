import hashlib
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import pairs, png, tar

from clipjax.data import make_source
from clipjax.data.source import keys_of
from clipjax.data.sources import score_filter

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        tar(tmp_path / f"{shard}.tar", pairs(10, 10 * shard))
    return f"tar:{tmp_path}/*.tar"


def write(path, keys, scores, **options):
    scores = pa.array(scores, pa.float32())
    pq.write_table(pa.table({"key": list(keys), "score": scores}), path, **options)
    return path


def texts(source):
    return [int(source[i]["text"].split()[1]) for i in range(len(source))]


def test_the_best_part(tmp_path, shards):
    source = make_source(shards)
    scores = np.random.Generator(np.random.Philox(key=0)).permutation(30) / 100
    order = np.random.Generator(np.random.Philox(key=1)).permutation(30)
    keys = list(keys_of(source))
    path = write(tmp_path / "s.parquet", [keys[i] for i in order], scores[order], row_group_size=7)
    best = make_source(f"{shards}?filter={path}:top=0.3")
    assert len(best) == 9 and texts(best) == sorted(np.argsort(scores)[-9:].tolist())
    assert best.counts == {"kept": 9, "filtered_score": 21, "without_score": 0}
    assert list(keys_of(best)) == [best[i]["key"] for i in range(9)]
    high = make_source(f"{shards}?filter={path}:min=0.2")
    assert texts(high) == [i for i in range(30) if scores[i] >= 0.2]
    assert len(make_source(f"{shards}?filter={path}:top=1")) == 30
    # The same examples by another rule are the same data.
    again = make_source(f"{shards}?filter={path}:min={np.sort(scores)[-9] - 0.001}")
    assert again.fingerprint() == best.fingerprint() != source.fingerprint()
    with pytest.raises(IndexError):
        best[9]


def test_what_has_no_score_is_counted(tmp_path, shards, caplog):
    keys = list(keys_of(make_source(shards)))
    scores = [1.0] * 18 + [float("nan"), None]
    path = write(tmp_path / "s.parquet", [*keys[:20], "other"], [*scores, 5.0])
    source = make_source(f"{shards}?filter={path}:top=0.5")
    assert source.counts == {"kept": 9, "filtered_score": 9, "without_score": 12}
    assert texts(source) == list(range(9))  # ties go to the first


def test_sources_without_keys_of_their_own(tmp_path):
    keys = [f"synthetic-{i}" for i in range(50)]
    path = write(tmp_path / "s.parquet", keys, np.arange(50) / 50)
    source = make_source(f"synthetic:50?filter={path}:top=0.1&side=32")
    assert [source[i]["key"] for i in range(5)] == keys[45:]
    assert source[0]["image"].shape == (32, 32, 3) and source.class_names is not None


def scored(path, source, scores):
    """Writes scores with the fingerprint of their source, as `clipjax data score` does."""
    table = pa.table({"key": list(keys_of(source)), "score": pa.array(scores, pa.float32())})
    about = {"fingerprint": source.fingerprint()}
    pq.write_table(table.replace_schema_metadata(about), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_scores_of_other_rows_are_refused(tmp_path, kind):
    names = ["best", "mid", "worst"]
    rows = {
        "csv": [f"{name}.png,{name}" for name in names],
        "jsonl": [f'{{"image": "{name}.png", "text": "{name}"}}' for name in names],
    }[kind]
    head = ["image,text"] if kind == "csv" else []
    for number, name in enumerate(names):
        (tmp_path / f"{name}.png").write_bytes(png(number))
    file = tmp_path / f"t.{kind}"
    file.write_text("\n".join([*head, *rows]))
    path = scored(tmp_path / "s.parquet", make_source(f"{kind}:{file}"), [0.9, 0.5, 0.1])
    spec = f"{kind}:{file}?filter={path}:top=0.34"
    assert make_source(spec)[0]["text"] == "best"
    file.write_text("\n".join([*head, *reversed(rows)]))
    unsaid = write(tmp_path / "u.parquet", keys_of(make_source(f"{kind}:{file}")), [1, 1, 1])
    for rules in (f"{path}:top=0.34", f"{unsaid}:min=1,{path}:top=0.34"):
        with pytest.raises(ValueError, match=r"scores of other data.*numbers of rows"):
            make_source(f"{kind}:{file}?filter={rules}")


def test_each_filter_takes_what_those_before_it_leave(tmp_path, shards, caplog):
    source = make_source(shards)
    first = scored(tmp_path / "first.parquet", source, np.arange(30) < 10)
    rising = scored(tmp_path / "rising.parquet", source, np.arange(30))
    both = make_source(f"{shards}?filter={first}:min=1,{rising}:top=0.5")
    assert texts(both) == [5, 6, 7, 8, 9] and "other data" not in caplog.text
    assert texts(make_source({"spec": shards, "filter": [f"{first}:min=1"]})) == list(range(10))
    with pytest.raises(ValueError, match="keeps none"):
        make_source(f"{shards}?filter={rising}:top=0.5,{first}:min=1")


def test_scores_of_data_that_changed_are_a_warning_where_keys_are_names(tmp_path, shards, caplog):
    path = scored(tmp_path / "s.parquet", make_source(shards), np.arange(30) / 30)
    spec = f"{shards}?filter={path}:top=0.1"
    assert texts(make_source(spec)) == [27, 28, 29] and "other data" not in caplog.text
    tar(tmp_path / "3.tar", pairs(10, 30))
    assert texts(make_source(spec)) == [27, 28, 29] and "other data" in caplog.text


@pytest.mark.parametrize(
    "rule, message",
    [
        ("{}", "is none of"),
        ("{}:best=0.3", "is none of"),
        ("{}:top=0", "a part of 1"),
        ("{}:top=1.5", "a part of 1"),
        ("{}:min=e", "no number"),
        ("/no/such.parquet:top=0.3", "no file"),
        ("/tmp:top=0.3", "no file /tmp to read"),
        ("{}:min=7", "is empty"),
    ],
)
def test_wrong_rules(tmp_path, shards, rule, message):
    path = write(tmp_path / "s.parquet", keys_of(make_source(shards)), np.ones(30))
    with pytest.raises(ValueError, match=message):
        make_source(f"{shards}?filter={rule.format(path)}")


def test_wrong_files(tmp_path, shards):
    keys = list(keys_of(make_source(shards)))
    path = write(tmp_path / "s.parquet", [*keys, keys[3]], np.ones(31))
    with pytest.raises(ValueError, match="a key twice"):
        make_source(f"{shards}?filter={path}:top=0.3")
    write(path, ["a", "b"], np.ones(2))
    with pytest.raises(ValueError, match=r"no score for any example.*'0.tar/00000'"):
        make_source(f"{shards}?filter={path}:top=0.3")
    write(path, [], [])
    with pytest.raises(ValueError, match="no score for any"):
        make_source(f"{shards}?filter={path}:top=0.3")
    pq.write_table(pa.table({"uid": ["a"], "similarity": [1.0]}), path)
    with pytest.raises(ValueError, match="uid, similarity"):
        make_source(f"{shards}?filter={path}:top=0.3")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="no whole Parquet"):
        make_source(f"{shards}?filter={path}:top=0.3")


def test_scores_by_hash_are_scores_by_key(tmp_path):
    keys = [f"k{i}" for i in range(2000)]
    path = write(tmp_path / "s.parquet", keys, np.arange(2000))
    hashes, values, fingerprint = score_filter.read_scores(str(path))
    assert fingerprint is None
    assert (np.diff(hashes.astype(object)) > 0).all()
    expected = dict(zip(score_filter.hashes_of(keys, 2000).tolist(), range(2000), strict=True))
    assert dict(zip(hashes.tolist(), values.tolist(), strict=True)) == expected


def test_hashing_takes_eight_bytes_a_key():
    count = 50_000
    tracemalloc.start()
    hashes = score_filter.hashes_of((f"k{i}" for i in range(count)), count)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 9 * count and len(set(hashes.tolist())) == count
    digest = hashlib.blake2b(b"k7", digest_size=8).digest()
    assert hashes[7] == int.from_bytes(digest, "little")
