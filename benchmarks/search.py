"""Exact search beside NumPy's matmul and argpartition: time, and memory above the embeddings.

    python benchmarks/search.py --rows 1000000 --width 512 --queries 1 1000

Both search the same rows in the memory of one process and take turns. NumPy takes 100 queries at a
time: the scores and places of 1,000 would be 12 GB. What both find is compared.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import forget_peak_memory, load_average, setting_lines, status_bytes
from clipjax.embeddings.index import Block, aligned
from clipjax.embeddings.search import block_rows, search

REPEATS, TOP, SEED, AT_ONCE = 5, 10, 0, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 1000])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    print("\n".join(setting_lines("jax", "numpy")))
    print(f"- {options.rows:,} x {options.width} float32, top {TOP}; minimum of {options.repeats}")
    print("  turns after a first one; memory: growth of the resident set at its highest\n")
    rng = np.random.default_rng(SEED)
    rows = aligned((options.rows, options.width), "float32")  # as files that are mapped are
    rng.standard_normal(out=rows, dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    print("| queries | run | seconds | CPU seconds | extra MB | time | CPU time |")
    print("|---|---|---|---|---|---|---|")
    for count in options.queries:
        queries = rng.standard_normal((count, options.width), np.float32)
        queries /= np.linalg.norm(queries, axis=1, keepdims=True)
        table(queries, rows, options.repeats)
    print(f"\nLoad average {load_average()}")


def table(queries: np.ndarray, rows: np.ndarray, repeats: int) -> None:
    runs = {"NumPy": by_numpy, "clipjax": by_clipjax}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    memory, found = {}, {}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            forget_peak_memory()
            before = status_bytes("VmRSS")
            start, spent = time.perf_counter(), time.process_time()
            found[name] = run(queries, rows)
            times[name].append((time.perf_counter() - start, time.process_time() - spent))
            memory[name] = max(memory.get(name, 0), status_bytes("VmHWM") - before)
    same = float(np.mean(found["NumPy"] == found["clipjax"]))
    assert same > 0.999, f"of the places only {same:.4f} are the same"
    best = {name: np.min(of_run[1:], axis=0) for name, of_run in times.items()}
    for name, (wall, spent) in best.items():
        ratios = best["NumPy"] / best[name]
        print(
            f"| {len(queries):,} | {name} | {wall:.3f} | {spent:.3f} | {memory[name] / 1e6:.0f} "
            f"| {ratios[0]:.2f}x | {ratios[1]:.2f}x |",
            flush=True,
        )


def by_numpy(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The places of the nearest, `[queries, TOP]`."""
    found = []
    for first in range(0, len(queries), AT_ONCE):
        scores = queries[first : first + AT_ONCE] @ rows.T
        places = np.argpartition(scores, -TOP, axis=1)[:, -TOP:]
        order = np.argsort(-np.take_along_axis(scores, places, 1), axis=1)
        found.append(np.take_along_axis(places, order, 1))
    return np.concatenate(found)


def by_clipjax(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return search(queries, blocks_of(rows, block_rows(len(queries), TOP)), TOP)[1]


def blocks_of(rows: np.ndarray, size: int) -> Iterator[Block]:
    """The rows themselves, without a copy."""
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        yield Block(first, len(part), part)


if __name__ == "__main__":
    main()
