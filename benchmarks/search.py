"""Exact search beside NumPy's matmul and argpartition: time, and memory above the embeddings.

    python benchmarks/search.py --rows 1000000 --width 512 --queries 1 1000

All search the same rows in one process and take turns: NumPy those in memory and those of the files
of an index, clipjax those in memory and an index on disk, of each form. NumPy takes 100 queries at
a time: the scores and places of 1,000 would be 12 GB. What they find is compared.
"""

import argparse
import functools
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import load_average, setting_lines, status_bytes
from clipjax.embeddings.index import FORMAT, INDEX, Block, Index, aligned, shard_names
from clipjax.embeddings.search import block_rows, search
from clipjax.embeddings.shards import FORMS, write_shard
from clipjax.encoding.reading import Embedded

REPEATS, TOP, SEED, AT_ONCE = 5, 10, 0, 100
Run = Callable[[np.ndarray], np.ndarray]  # queries -> the places of the nearest, [queries, TOP]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--shard_size", type=int, default=10_000)
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    print("\n".join(setting_lines("jax", "numpy")))
    print(f"- {options.rows:,} x {options.width} float32, top {TOP}; minimum of {options.repeats}")
    print(f"  turns after a first one; shards of {options.shard_size:,}; memory: growth at its")
    print("  highest, without mapped files; ratios to NumPy in memory\n")
    rng = np.random.default_rng(SEED)
    rows = aligned((options.rows, options.width), "float32")  # as files that are mapped are
    rng.standard_normal(out=rows, dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as work:
        runs: dict[str, Run] = {
            "NumPy, in memory": functools.partial(by_numpy, rows),
            "clipjax, in memory": functools.partial(by_clipjax, rows),
        }
        for form in options.forms:
            index = write_index(Path(work) / form, rows, form, options.shard_size)
            runs[f"NumPy, {form}"] = functools.partial(by_numpy_of_files, index)
            runs[f"clipjax, {form}"] = functools.partial(by_clipjax_of_index, index)
        print("| queries | run | seconds | CPU seconds | extra MB | time | CPU time |")
        print("|---|---|---|---|---|---|---|")
        for count in options.queries:
            queries = rng.standard_normal((count, options.width), np.float32)
            queries /= np.linalg.norm(queries, axis=1, keepdims=True)
            table(queries, runs, options.repeats)
    print(f"\nLoad average {load_average()}")


def table(queries: np.ndarray, runs: dict[str, Run], repeats: int) -> None:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    memory, found = dict.fromkeys(runs, 0), {}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            with Watch() as watch:
                start, spent = time.perf_counter(), time.process_time()
                found[name] = run(queries)
                times[name].append((time.perf_counter() - start, time.process_time() - spent))
            memory[name] = max(memory[name], watch.most - watch.before)
    first, *others = found.values()
    for places in others:
        same = float(np.mean(first == places))
        assert same > 0.999, f"of the places only {same:.4f} are the same"
    best = {name: np.min(of_run[1:], axis=0) for name, of_run in times.items()}
    for name, (wall, spent) in best.items():
        ratios = best[name] / best["NumPy, in memory"]
        print(
            f"| {len(queries):,} | {name} | {wall:.3f} | {spent:.3f} | {memory[name] / 1e6:.0f} "
            f"| {ratios[0]:.2f} | {ratios[1]:.2f} |",
            flush=True,
        )


class Watch:
    """Sees how much memory is held at most; files that are mapped are the system's, and no part."""

    def __enter__(self) -> "Watch":
        self.before = self.most = status_bytes("RssAnon")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, status_bytes("RssAnon"))


def write_index(folder: Path, rows: np.ndarray, form: str, shard_size: int) -> Index:
    """Writes rows as `clipjax embed` does, and opens them."""
    folder.mkdir()
    blank, shards = np.zeros((1, 1, 3), np.uint8), []
    for number, name in enumerate(shard_names(len(rows), shard_size)):
        places = np.arange(number * shard_size, min((number + 1) * shard_size, len(rows)))
        examples = [{"image": blank, "text": "", "key": f"{place:08d}.jpg"} for place in places]
        of_shard = range(places[0], places[-1] + 1)
        part = Embedded(of_shard, rows[places], examples, places, Counter())
        options = {"form": form, "dtype": "float32", "embed_dim": rows.shape[1], "job": "benchmark"}
        shards.append(write_shard(folder / name, [part], **options)._asdict())
    model = {"name": "drawn", "step": 0, "embed_dim": rows.shape[1], "dtype": "float32"}
    about = {
        "format": FORMAT,
        "model": {**model, "checkpoint": "drawn from a seed"},
        "preprocess": {"pixels": "clipjax"},
        "data": {"spec": "", "fingerprint": "", "examples": len(rows)},
        "stored": {"form": form, "dtype": "float32", "shard_size": shard_size},
        "complete": True,
        "shards": shards,
    }
    (folder / INDEX).write_text(json.dumps(about))
    return Index.open(folder)


def by_numpy_of_files(index: Index, queries: np.ndarray) -> np.ndarray:
    """As `by_numpy`, file by file of an index."""
    best = (np.zeros((len(queries), 0)), np.zeros((len(queries), 0), np.int64))
    first = 0
    for shard in index.about["shards"]:
        path = index.directory / shard["name"]
        if index.about["stored"]["form"] == "npy":
            rows = np.load(path.with_suffix(".npy"), mmap_mode="r")
        else:
            column = pq.read_table(path.with_suffix(".parquet"), columns=["embedding"])[0]
            rows = column.combine_chunks().flatten().to_numpy().reshape(-1, index.embed_dim)
        places = by_numpy(rows, queries)
        scores = np.stack([rows[own] @ query for own, query in zip(places, queries, strict=True)])
        both = [
            np.concatenate(pair, 1) for pair in zip(best, (scores, places + first), strict=True)
        ]
        order = np.argsort(-both[0], axis=1, kind="stable")[:, :TOP]
        best = np.take_along_axis(both[0], order, 1), np.take_along_axis(both[1], order, 1)
        first += len(rows)
    return best[1]


def by_clipjax_of_index(index: Index, queries: np.ndarray) -> np.ndarray:
    return search(queries, index.blocks(index.whole_rows(block_rows(len(queries), TOP))), TOP)[1]


def by_numpy(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The places of the nearest, `[queries, TOP]`."""
    found = []
    for first in range(0, len(queries), AT_ONCE):
        scores = queries[first : first + AT_ONCE] @ rows.T
        places = np.argpartition(scores, -TOP, axis=1)[:, -TOP:]
        order = np.argsort(-np.take_along_axis(scores, places, 1), axis=1)
        found.append(np.take_along_axis(places, order, 1))
    return np.concatenate(found)


def by_clipjax(rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
    return search(queries, blocks_of(rows, block_rows(len(queries), TOP)), TOP)[1]


def blocks_of(rows: np.ndarray, size: int) -> Iterator[Block]:
    """The rows themselves, without a copy."""
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        yield Block(first, len(part), part)


if __name__ == "__main__":
    main()
