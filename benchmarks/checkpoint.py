"""How long a save keeps the training loop waiting, beside torch.save of the same arrays.

    python benchmarks/checkpoint.py                  ViT-B/32 with AdamW: 1.8 GB, 5 turns
    python benchmarks/checkpoint.py --tiny --turns 2            does it run?

Both sides are processes that take turns on one disk. clipjax's figure is the time inside of
`CheckpointManager.save`, after which the loop goes on: the step donates the state, so until then it
is copied. What a thread does after that is beside it. `copy` is a plain numpy copy of the same
bytes into fresh memory, `copy again` one into memory that was written before: no save that leaves
the state to the next step can wait less than it. It needs torch beside clipjax.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import load_average, paired_ratio, setting_lines, timed
from benchmarks.sizes import SEED, Size
from benchmarks.workers import Worker, serve

SIDES = ("clipjax", "torch")
METADATA: dict[str, Any] = {
    "config": {},
    "contract": {},
    "dataset_fingerprint": "none",
    "global_batch_size": 1,
    "seed": SEED,
}


def size_of(tiny: bool) -> Size:
    return Size("ViT-B-32", 4, "float32", tiny=tiny)


def make_clipjax(folder: Path, tiny: bool) -> Callable[[str], Any]:
    import jax
    import numpy as np

    from benchmarks.ours import resolve_config
    from clipjax.checkpoint import CheckpointManager
    from clipjax.experiment import build_program

    program = build_program(resolve_config(size_of(tiny), {}))
    with program.scope():
        state = jax.block_until_ready(program.create_state(SEED))
    manager = CheckpointManager(folder / "checkpoints", keep=1, metadata=METADATA)
    arrays = [np.asarray(leaf.addressable_shards[0].data) for leaf in jax.tree.leaves(state)]
    kept = [np.array(array) for array in arrays]
    count = 0

    def answer(word: str) -> Any:
        nonlocal count
        if word == "bytes":
            return sum(array.nbytes for array in arrays)
        if word == "copy":
            return timed(lambda: [np.array(array) for array in arrays])
        if word == "copy again":
            return timed(lambda: [np.copyto(a, b) for a, b in zip(kept, arrays, strict=True)])
        count += 1
        blocked = timed(lambda: manager.save(count, state))
        finished = timed(manager.wait_until_finished)
        return {**blocked, "behind_s": finished["wall_s"], "behind_cpu_s": finished["cpu_s"]}

    return answer


def make_torch(folder: Path, tiny: bool) -> Callable[[str], Any]:
    import jax
    import torch

    from benchmarks.ours import resolve_config
    from clipjax.experiment import build_program

    shapes = build_program(resolve_config(size_of(tiny), {})).abstract_state
    arrays = [torch.rand(leaf.shape) for leaf in jax.tree.leaves(shapes)]

    def answer(_: str) -> Any:
        path = folder / "state.pt"
        return timed(lambda: torch.save(arrays, path))

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a stand-in, to see whether it runs")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to write to; it is emptied again")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.pop("XLA_FLAGS", None)
    if options.side:
        make = make_clipjax if options.side == "clipjax" else make_torch
        serve(lambda: make(options.folder, options.tiny))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        print("\n".join(measure(Path(folder), options.tiny, options.turns)))


def measure(folder: Path, tiny: bool, turns: int) -> list[str]:
    """Takes the turns; the lines of a table."""
    lines = setting_lines("jax", "orbax-checkpoint", "torch", "numpy")
    flags = ["--tiny"] if tiny else []
    words = {"save": "clipjax", "torch": "torch", "copy": "clipjax", "copy again": "clipjax"}
    answers: dict[str, list[dict[str, float]]] = {word: [] for word in words}
    module = ["-m", "benchmarks.checkpoint", *flags, "--folder", str(folder), "--side"]
    with Worker([*module, "clipjax"]) as ours, Worker([*module, "torch"]) as theirs:
        workers = {"clipjax": ours, "torch": theirs}
        bytes_ = ours.ask("bytes")
        for turn in range(turns + 1):
            for word in list(words)[:: 1 if turn % 2 else -1]:
                answer = workers[words[word]].ask(word)
                os.sync()  # what one side left to write is not the next one's
                if turn:  # the first compiles, opens and fills caches
                    answers[word].append(answer)
        lines.append(
            f"- {bytes_ / 1e9:.2f} GB in {folder}, {turns} turns; load average at the end "
            f"{load_average()}"
        )
    shutil.rmtree(folder, ignore_errors=True)
    lines += [
        "",
        "| | wall s | CPU s | of torch.save, wall | of torch.save, CPU |",
        "|---|---|---|---|---|",
    ]
    for word, rows in answers.items():
        ratios = []
        for clock in ("wall_s", "cpu_s"):
            ratio = paired_ratio([r[clock] for r in rows], [r[clock] for r in answers["torch"]])
            ratios.append(f"{ratio.value:.1%} +- {ratio.noise:.1%}")
        wall, cpu = (statistics.median(r[c] for r in rows) for c in ("wall_s", "cpu_s"))
        lines.append(f"| {word} | {wall:.3f} | {cpu:.3f} | {ratios[0]} | {ratios[1]} |")
    behind = answers["save"]
    lines.append("")
    lines.append(
        "behind the loop, after each save: "
        + ", ".join(f"{r['behind_s']:.1f} s ({r['behind_cpu_s']:.1f} s CPU)" for r in behind)
    )
    for word, rows in answers.items():
        lines.append(f"{word}, wall s: " + " ".join(f"{r['wall_s']:.3f}" for r in rows))
    return lines


if __name__ == "__main__":
    main()
