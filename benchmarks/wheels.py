"""What a bare machine has to be brought: wheels of the packages that its image lacks."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import MissingError

# Needed by clipjax or its peer, and not in an image with PyTorch, JAX, Flax, Optax, Orbax,
# transformers and timm; each without what it asks for, which the image has.
BROUGHT = (
    "array_record",
    "ftfy",
    "ml-collections",
    "open_clip_torch",
    "simplejpeg",
    "tensorboardX",
    "wcwidth",
)
PLATFORMS = tuple(
    f"manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "_2_24", "_2_17", "2014", "2010", "1")
)


def pack(folder: Path, *, python: str = "3.12", packages: Sequence[str] = BROUGHT) -> list[Path]:
    """Downloads the wheels for Linux on x86-64.

    Args:
        folder: to put them in; what is there is kept.
        python: of the machine that they go to.
        packages: names, with a version where it matters.

    Raises:
        MissingError: one of them was not found.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python]
    options += ["--implementation", "cp", "--dest", str(folder)]
    for platform in PLATFORMS:
        options += ["--platform", platform]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options, *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise MissingError(f"pip did not find the wheels: {done.stderr.strip()[-500:]}")
    return sorted(folder.glob("*.whl"))


def install(folder: Path, site: Path) -> None:
    """Installs the wheels of a folder into another, without a network.

    Raises:
        MissingError: there are no wheels, or pip refuses one.
    """
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        raise MissingError(f"{folder} holds no wheels; make it with --pack {folder}")
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), *wheels]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise MissingError(f"pip refused the wheels: {done.stderr.strip()[-500:]}")
