"""JPEGs of photographs' spectrum and size, and tar shards of them, where no photographs are."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = {(500, 375): 95, (341, 256): 95, (1280, 854): 90}  # pixels: JPEG quality


def waves(size: tuple[int, int], seed: int = 0) -> bytes:
    """A JPEG of a photograph's spectrum and number of bytes."""
    width, height = size
    fall = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    fall[0, 0] = 1
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(3, height, width)))
    pixels = np.moveaxis(np.real(np.fft.ifft2(noise / fall**1.35)), 0, -1)
    pixels = np.clip(pixels / pixels.std() * 40 + 128, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=SIZES[size])
    return file.getvalue()


def write_shards(folder: Path, jpegs: Sequence[bytes], *, shards: int, images: int) -> None:
    """Writes tar shards of `images` pairs each; the pictures take turns."""
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as archive:
            for i in range(images):
                key = f"{shard:04d}{i:06d}"
                picture = jpegs[i % len(jpegs)]
                for suffix, content in (("jpg", picture), ("txt", f"photo {i}".encode())):
                    entry = tarfile.TarInfo(f"{key}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
