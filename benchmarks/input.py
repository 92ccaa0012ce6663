"""The input pipeline beside its peers: JPEG to training crop, and tar shards to device batches.

    python benchmarks/input.py --part decode     images a second and core
    python benchmarks/input.py --part loader     tar shards to device batches, two workers
    python benchmarks/input.py --part workers    the same by worker threads and by processes
    python benchmarks/input.py --part copy       what decoding into the batch itself could save
    python benchmarks/input.py --part jitter     colour jitter on the host and on a device

Peers and photographs live in an environment of their own, which the last two do not need:

    pip install -e '.[fast]' open_clip_torch torch torchvision tensorflow-cpu webdataset
    pip install scikit-image scikit-learn

The photographs are four that scikit-image and scikit-learn bring, encoded anew.
"""

import argparse
import functools
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import load_average, setting_lines
from benchmarks.pictures import SIZES, waves, write_shards

SCALE = (0.9, 1.0)
TARGET, REPEATS, SEED = 224, 5, 0
SHARDS, IMAGES_PER_SHARD, BATCH, WORKERS = 4, 512, 128, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=list(TABLES), required=True)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, folder = options.worker
        print(json.dumps((LOADERS | WORKERS_OF)[name](folder)))
        return
    packages = ["numpy", "pillow", "simplejpeg", "opencv-python-headless", "jax"]
    if options.part in ("decode", "loader"):
        packages += ["torch", "torchvision", "open_clip_torch", "tensorflow_cpu", "webdataset"]
    print("\n".join(setting_lines(*packages)))
    TABLES[options.part]()


def photographs() -> list[Image.Image]:
    """Two landscapes and two close-ups, from about 600 x 400 to 741 x 500 pixels."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    folder = Path(skimage.data.__file__).parent
    own = [Image.open(folder / name) for name in ("coffee.png", "motorcycle_left.png")]
    arrays = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    return [image.convert("RGB") for image in own] + [Image.fromarray(a) for a in arrays]


def jpegs(size: tuple[int, int]) -> list[bytes]:
    """The photographs at a size; for the largest all four side by side, not one magnified."""
    images = photographs()
    if size[0] > 700:
        whole = Image.new("RGB", size)
        half = size[0] // 2, size[1] // 2
        for i, image in enumerate(images):
            whole.paste(image.resize(half), ((i % 2) * half[0], (i // 2) * half[1]))
        images = [whole]
    found = []
    for image in images:
        file = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=SIZES[size])
        found.append(file.getvalue())
    return found


# --- decode and random-resized-crop ---------------------------------------------------------------


def decode_tables() -> None:
    print(
        f"- decode + random-resized-crop {SCALE} to {TARGET}; images a CPU second of all threads,"
    )
    print(
        f"  best of {REPEATS} interleaved runs after a warm-up; ratios over open_clip and tf.data"
    )
    makers = {
        "open_clip train transform (Pillow, torchvision)": open_clip_run,
        "tf.data, fused decode and crop, antialiased": tensorflow_run,
        "clipjax reference (Pillow, antialiased bicubic)": lambda: clipjax_run("reference"),
        "clipjax fast (simplejpeg, OpenCV)": lambda: clipjax_run("fast"),
    }
    runs = {name: make() for name, make in makers.items()}
    for size in SIZES:
        data = jpegs(size)
        repeats = max(1, 160 // len(data) // (1 + 3 * (size[0] > 700)))
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(REPEATS + 1):
            for name, run in runs.items():
                begin = time.process_time()
                run(data * repeats)
                seconds[name].append((time.process_time() - begin) / (len(data) * repeats))
        best = {name: min(times[1:]) for name, times in seconds.items()}
        peers = list(best.values())[:2]
        bytes_each = sum(map(len, data)) // len(data) // 1000
        print(f"\n### {size[0]} x {size[1]}, quality {SIZES[size]}, {bytes_each} kB\n")
        print("| | images/s a core | over open_clip | over tf.data | mean abs difference |")
        print("|---|---|---|---|---|")
        for name, value in best.items():
            ratios = " | ".join(f"{peer / value:.2f}x" for peer in peers)
            mean = f"{difference(data):.2f}" if "fast" in name else "-"
            print(f"| {name} | {1 / value:.0f} | {ratios} | {mean} |")
    print(
        "\nThe mean absolute difference is that of 8-bit values to clipjax's reference, same crops."
        f"\nLoad average {load_average()} at the end."
    )


def difference(data: list[bytes]) -> float:
    crops = [
        np.stack([transform(d, np.random.default_rng(i)) for i in range(20) for d in data])
        for transform in (clipjax_crop("reference"), clipjax_crop("fast"))
    ]
    return float(np.abs(crops[0].astype(int) - crops[1].astype(int)).mean())


def open_clip_transform():
    import torch

    torch.set_num_threads(1)
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "golden" / "models"))
    import torchvision_operators  # noqa: F401  # isort: skip  before what imports torchvision
    from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2

    return image_transform_v2(
        PreprocessCfg(size=TARGET), is_train=True, aug_cfg=AugmentationCfg(scale=SCALE)
    )


def open_clip_run():
    transform = open_clip_transform()

    def run(data: list[bytes]) -> None:
        for item in data:
            transform(Image.open(io.BytesIO(item)))

    return run


def tensorflow_run():
    import tensorflow as tf

    def crop(data):
        shape = tf.io.extract_jpeg_shape(data)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros((1, 0, 4)),
            area_range=SCALE,
            aspect_ratio_range=(3 / 4, 4 / 3),
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], size[:2]], axis=0)
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, (TARGET, TARGET), "bilinear", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    def run(data: list[bytes]) -> None:
        for _ in tf.data.Dataset.from_tensor_slices(data).map(crop, num_parallel_calls=1):
            pass

    return run


def clipjax_crop(decode: str):
    from clipjax.data.transforms import RandomResizedCrop

    crop = RandomResizedCrop(TARGET, scale=SCALE, decode=decode)
    return lambda data, rng: crop({"image": data, "text": "", "key": ""}, rng)["image"]


def clipjax_run(decode: str):
    crop, rng = clipjax_crop(decode), np.random.default_rng(SEED)

    def run(data: list[bytes]) -> None:
        for item in data:
            crop(item, rng)

    return run


# --- tar shards to device batches -----------------------------------------------------------------


def loader_table() -> None:
    total = SHARDS * IMAGES_PER_SHARD
    print(
        f"- {SHARDS} tar shards of {IMAGES_PER_SHARD} JPEGs, 500 x 375, quality 95; batch {BATCH};"
    )
    print(f"  {WORKERS} workers; wall time from the first batch on the device to the last of")
    print(f"  {total} images; best of 3 interleaved runs, each in a process of its own")
    rates = rates_of(LOADERS)
    peer = max(rates["webdataset"])
    print("\n| | images/s | over webdataset | all runs |")
    print("|---|---|---|---|")
    for name, values in rates.items():
        everything = " ".join(f"{value:.0f}" for value in values)
        print(f"| {name} | {max(values):.0f} | {max(values) / peer:.2f}x | {everything} |")
    print(f"\nLoad average {load_average()} at the end.")


def rates_of(loaders) -> dict[str, list[Any]]:
    """Runs each three times, in turns, in processes of their own."""
    rates: dict[str, list[Any]] = {name: [] for name in loaders}
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder), jpegs((500, 375)), shards=SHARDS, images=IMAGES_PER_SHARD)
        for _ in range(3):
            for name in loaders:
                command = [sys.executable, __file__, "--part", "loader", "--worker", name, folder]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                rates[name].append(json.loads(done.stdout.splitlines()[-1]))
    return rates


def rate_of(batches) -> float:
    """Images a second of an iterator of device batches, after the first one."""
    next(batches)
    begin, count = time.monotonic(), 0
    for images in batches:
        images.block_until_ready()
        count += len(images)
    return count / (time.monotonic() - begin)


def webdataset_rate(folder: str) -> float:
    """The pipeline of open_clip's training, its tokenizer included."""
    import jax
    import webdataset

    transform = open_clip_transform()
    tokenizer = sys.modules["open_clip"].get_tokenizer("ViT-B-32")
    shards = [str(path) for path in sorted(Path(folder).glob("*.tar"))]
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(shards * 2),
        webdataset.split_by_worker,
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(500),
        webdataset.decode("pilrgb"),
        webdataset.rename(image="jpg", text="txt"),
        webdataset.map_dict(image=transform, text=lambda text: tokenizer(text)[0]),
        webdataset.to_tuple("image", "text"),
        webdataset.batched(BATCH, partial=False),
    )
    loader = webdataset.WebLoader(pipeline, batch_size=None, shuffle=False, num_workers=WORKERS)
    return rate_of(jax.device_put(images.numpy()) for images, _ in loader)


def clipjax_rate(folder: str, decode: str, workers: str = "threads") -> float:
    crop = {"name": "random_resized_crop", "scale": SCALE, "decode": decode}
    return clipjax_rate_of(f"tar:{folder}/*.tar", (crop,), TARGET, workers)


def clipjax_rate_of(spec: str, transforms, size: int, workers: str) -> float:
    import jax

    from clipjax.data import Loader, Preprocess, make_source, make_transforms
    from clipjax.tokenizers import make_tokenizer

    steps = 2 * SHARDS * IMAGES_PER_SHARD // BATCH
    with Loader(
        make_source(spec),
        make_transforms(transforms, image_size=size),
        make_tokenizer({"name": "clip_bpe"}, context_length=77),
        batch_size=BATCH,
        seed=SEED,
        preprocess=Preprocess(size),
        num_workers=WORKERS,
        workers=workers,
    ) as loader:
        batches = loader.iterate()
        return rate_of(jax.device_put(next(batches)[1]["image"]) for _ in range(steps))


LOADERS = {
    "webdataset": webdataset_rate,
    "clipjax reference": lambda folder: clipjax_rate(folder, "reference"),
    "clipjax fast": lambda folder: clipjax_rate(folder, "fast"),
}

# --- threads or processes -------------------------------------------------------------------------

SMALL = ({"name": "warp"}, {"name": "color_jitter"}, {"name": "cutout"}, {"name": "drop_word"})


def workers_rate(folder: str, work: str, workers: str) -> tuple[float, float]:
    """Images a second, and CPU milliseconds an image of this process and of its children."""
    before = sum(os.times()[:2])
    if work == "small pictures":
        total = f"synthetic:{SHARDS * IMAGES_PER_SHARD}"
        rate = clipjax_rate_of(total, SMALL, 64, workers)
    else:
        rate = clipjax_rate(folder, work, workers)
    return rate, (sum(os.times()[:4]) - before) / (2 * SHARDS * IMAGES_PER_SHARD) * 1000


WORKS, KINDS = ("reference", "fast", "small pictures"), ("threads", "processes")
WORKERS_OF = {
    f"{work}, {kind}": functools.partial(workers_rate, work=work, workers=kind)
    for work in WORKS
    for kind in KINDS
}


def workers_table() -> None:
    print(f"- {SHARDS * IMAGES_PER_SHARD} JPEGs in tar shards, 500 x 375, quality 95, to crops of")
    print("  224 pixels by both decoders; and drawings of 64 pixels through four transforms of")
    print(
        f"  many small steps. Batch {BATCH}, {WORKERS} workers, wall time from the first batch on"
    )
    print(
        "  the device; best of 3 interleaved runs, each in a process of its own. CPU time is that"
    )
    print("  of all processes, their start included")
    rates = rates_of(WORKERS_OF)
    print("\n| | images/s | over threads | CPU ms an image | all runs |\n|---|---|---|---|---|")
    for work in WORKS:
        for kind in KINDS:
            runs = rates[f"{work}, {kind}"]
            best = [max(rate for rate, _ in rates[f"{work}, {k}"]) for k in ("threads", kind)]
            cpu = min(cpu for _, cpu in runs)
            everything = " ".join(f"{rate:.0f}" for rate, _ in runs)
            print(
                f"| {work}, {kind} | {best[1]:.0f} | {best[1] / best[0]:.2f}x | {cpu:.2f} | "
                f"{everything} |"
            )
    print(f"\nLoad average {load_average()} at the end.")


# --- copies, colour jitter ------------------------------------------------------------------------


def cpu_microseconds(runs: dict[str, Any], repeats: int) -> dict[str, float]:
    """CPU time of all threads a call, best of interleaved runs after a warm-up."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(REPEATS + 1):
        for name, run in runs.items():
            begin = time.process_time()
            for _ in range(repeats):
                run()
            spent = (time.process_time() - begin) / repeats * 1e6
            best[name] = min(best[name], spent) if number else best[name]
    return best


def copy_table() -> None:
    print(
        f"- decode + random-resized-crop {SCALE} to {TARGET}, and its copy into a batch of {BATCH};"
    )
    print(f"  CPU time of all threads, best of {REPEATS} interleaved runs after a warm-up")
    print("\n| JPEG, decoder | us an image | us a copy | the copy's share |\n|---|---|---|---|")
    batch = np.zeros((BATCH, TARGET, TARGET, 3), np.uint8)
    for size in SIZES:
        data = waves(size)
        for decode in ("reference", "fast"):
            crop, rng = clipjax_crop(decode), np.random.default_rng(SEED)
            crops = [crop(data, rng) for _ in range(16)]
            slots, numbers = itertools.cycle(range(BATCH)), itertools.cycle(range(16))

            def whole(crop=crop, data=data, rng=rng, slots=slots):
                np.copyto(batch[next(slots)], crop(data, rng))

            def copy(crops=crops, slots=slots, numbers=numbers):
                np.copyto(batch[next(slots)], crops[next(numbers)])

            spent = cpu_microseconds({"whole": whole}, 100) | cpu_microseconds({"copy": copy}, 2000)
            print(
                f"| {size[0]} x {size[1]}, {decode} | {spent['whole']:.0f} | {spent['copy']:.1f} | "
                f"{spent['copy'] / spent['whole']:.1%} |"
            )
    print(f"\nLoad average {load_average()} at the end.")


def jitter_table() -> None:
    import jax
    import jax.numpy as jnp

    from clipjax.data.transforms import ColorJitter
    from clipjax.layers.color_jitter import ColorJitter as DeviceColorJitter
    from clipjax.models.images import normalise_images

    platform = jax.devices()[0].platform
    print(f"- colour jitter of {BATCH} images of {TARGET} pixels on the host, and by XLA on")
    print(f"  {platform}, draws included: to uint8 as on the host, and with the normalising that")
    print("  follows it in a step, to float32; decode + crop of 500 x 375 beside it;")
    print(f"  CPU time of all threads, best of {REPEATS} interleaved runs after a warm-up")
    jitter, rng = ColorJitter(), np.random.default_rng(SEED)
    images = rng.integers(0, 256, (BATCH, TARGET, TARGET, 3), np.uint8)
    key, ids, half = jax.random.key(SEED), jnp.arange(BATCH), (0.5, 0.5, 0.5)
    data, crops = waves((500, 375)), {d: clipjax_crop(d) for d in ("reference", "fast")}

    def normalise(images):
        return normalise_images(images, half, half, jnp.float32)

    # To uint8: of float32 the memory of the result would cost more than the jitter.
    jittered = jax.jit(lambda *args: DeviceColorJitter()(*args).astype(jnp.uint8))
    normalised = jax.jit(normalise)
    both = jax.jit(lambda *args: normalise(DeviceColorJitter()(*args)))
    runs = {
        "colour jitter, host": lambda: [
            jitter({"image": image, "text": "", "key": ""}, rng) for image in images
        ],
        "colour jitter, XLA": lambda: jittered(images, key, ids).block_until_ready(),
        "normalise, XLA": lambda: normalised(images).block_until_ready(),
        "colour jitter and normalise, XLA": lambda: both(images, key, ids).block_until_ready(),
        "decode and crop, reference": lambda: [crops["reference"](data, rng) for _ in images],
        "decode and crop, fast": lambda: [crops["fast"](data, rng) for _ in images],
    }
    print("\n| | us an image |\n|---|---|")
    for name, spent in cpu_microseconds(runs, 1).items():
        print(f"| {name} | {spent / BATCH:.0f} |")
    print(f"\nLoad average {load_average()} at the end.")


TABLES = {
    "decode": decode_tables,
    "loader": loader_table,
    "workers": workers_table,
    "copy": copy_table,
    "jitter": jitter_table,
}


if __name__ == "__main__":
    main()
