"""`clipjax embed` beside the bare encoder on the same pictures: pictures a second of both.

    python benchmarks/embed.py --model ViT-B-32 --pictures 256 --turns 3

The encoder is `encode_image` of a loaded model, which reads, decodes and embeds files; the job does
the same and writes shards with keys, captions and an index. Both take turns in one process, the
first turn compiles. On a machine that others use, too, CPU seconds are what compares.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import load_average, setting_lines, timed
from benchmarks.ours import make_model
from benchmarks.pictures import waves
from benchmarks.sizes import Size
from clipjax.data.sources import make_source
from clipjax.embeddings.writing import Storing, embed
from clipjax.inference.opened import Opened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--shard_size", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    print("\n".join(setting_lines("jax", "numpy", "pillow")))
    with tempfile.TemporaryDirectory() as work:
        times = measure(Path(work), options)
    print(f"- {options.model}, float32, {options.pictures} JPEGs of 500 x 375 in batches of")
    print(f"  {options.batch_size}, shards of {options.shard_size}; after a first turn\n")
    print(
        "| turn | encoder, wall s | job, wall s | rate | encoder, CPU s | job, CPU s | CPU rate |"
    )
    print("|---|---|---|---|---|---|---|")
    for turn, (bare, job) in enumerate(times, start=1):
        print(f"| {turn} | {_cells(bare, job, 'wall_s')} | {_cells(bare, job, 'cpu_s')} |")
    for name in ("wall_s", "cpu_s"):
        rates = [bare[name] / job[name] for bare, job in times]
        print(f"\nMedian rate of the job by the encoder's, {name}: {np.median(rates):.3f}")
    print(f"\nLoad average {load_average()}")


def _cells(bare: dict[str, float], job: dict[str, float], name: str) -> str:
    return f"{bare[name]:.2f} | {job[name]:.2f} | {bare[name] / job[name]:.3f}"


def measure(
    work: Path, options: argparse.Namespace
) -> list[tuple[dict[str, float], dict[str, float]]]:
    """Times both in turns; asserts that they give the same."""
    pictures = work / "pictures"
    pictures.mkdir()
    jpegs = [waves((500, 375), seed) for seed in range(8)]
    paths = [pictures / f"{number:05d}.jpg" for number in range(options.pictures)]
    for number, path in enumerate(paths):
        path.write_bytes(jpegs[number % len(jpegs)])
        path.with_suffix(".txt").write_text(f"picture {number}")
    spec = f"folder:{pictures}"
    model = make_model(Size(options.model, options.batch_size, "float32"))
    opened = Opened(model=model, step=0, config={}, contract={}, sha256="0" * 64)
    source, how, out = make_source(spec), Storing(shard_size=options.shard_size), work / "index"

    def job() -> np.ndarray:
        shutil.rmtree(out, ignore_errors=True)
        index = embed(opened, source, out, how, spec=spec, checkpoint="drawn from a seed")
        return index.embeddings(np.arange(len(index)))

    np.testing.assert_allclose(job(), model.encode_image(paths), atol=1e-5)
    times = []
    for turn in range(options.turns):
        sides = [lambda: model.encode_image(paths), job]
        order = sides if turn % 2 == 0 else sides[::-1]
        found = [timed(side) for side in order]
        times.append((found[0], found[1]) if turn % 2 == 0 else (found[1], found[0]))
    return times


if __name__ == "__main__":
    main()
