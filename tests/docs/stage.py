"""A folder in which a reader could stand: a checkout, data, weights, and programs to call."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from blocks import ROOT, Block
from counting import HANGS_S
from PIL import Image
from xla_flags import COUNT, PATIENT

HERE = Path(__file__).parent
COPIED = (
    *("configs", "docs", "launch", "benchmarks", "setup.py", "pyproject.toml"),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"),
)
LINKED = ("clipjax", "tests")
COLORS = {"cat": (250, 140, 40), "dog": (120, 80, 40)}
# What a document names and this machine has smaller, or elsewhere.
REPLACED = {
    "{00000..41455}": "{00000..00001}",
    "{00000..00331}": "{00000..00001}",
    "{00000..00041}": "{00000..00001}",
    "gs://bucket/": "file://{root}/bucket/",
    "/mnt/bucket/": "{root}/mnt/bucket/",
    "/data/": "{root}/data/",
    "/path/to/spiece.model": "{root}/c4_en.model",
    "--vocab_size 8000": "--vocab_size 2000",  # of 160 drawings' names
    "--config.mesh.fsdp=16": "--config.mesh.fsdp=2",
    "--config.mesh.tensor=4": "--config.mesh.tensor=2",
    "--config.mesh.fsdp=4": "--config.mesh.fsdp=2",
    "parity.py --family": "parity.py --help --family",
    "loss.py --part": "loss.py --help --part",
    "benchmarks/plan.py": "benchmarks/plan.py --help",
    "benchmarks/accelerator.py --": "benchmarks/accelerator.py --list --",
    "benchmarks.run --": "benchmarks.run --help --",
    "benchmarks/check.py": "benchmarks/check.py --help",
    "benchmarks/finetune.py": "benchmarks/finetune.py --help",
    "tpu_pod.sh delete": "tpu_pod.sh delete <<<my-pod",  # it asks
}
GCLOUD = """#!/bin/bash
# The pod is this folder: what is to run on all workers runs here, once.
echo "gcloud $*" >>"$STAGE/gcloud.log"
[[ "$*" != *"format=value(state"* ]] || echo ACTIVE
case "${@: -1}" in
*"bash clipjax-pod/code/launch/tpu_worker.sh"* | "cd clipjax-pod/code && PATH="*)
  cd "$STAGE/worker" && exec bash -c "${@: -1}"
  ;;
esac
"""
SBATCH = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
exec bash "$@"
"""
SRUN = """#!/bin/bash
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
PIP = """#!/bin/bash
# Installs nothing; what is asked for has to exist.
exec "{python}" "{here}/stand_in_pip.py" "$@"
"""


class Stage:
    """A folder with everything that the documents name, and a shell that stands in it."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root = root
        self.bin = root / ".venv" / "bin"
        self.env = {
            **os.environ,
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "STAGE": str(root),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{COUNT}=2 {PATIENT}",  # of Python blocks
            # What compiles runs a few times only.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "CLIPJAX_CACHE": str(cache / "clipjax"),
            "JAX_COMPILATION_CACHE_DIR": str(cache / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            # Tests are listed, one file for each mark, and not run; a mark that selects none fails.
            "PYTEST_ADDOPTS": f"--collect-only -q {' '.join(a_file_of_each_mark())}",
            "CLIPJAX_TEST_WORKERS": "0",
            "CLIPJAX_VENV": str(root / ".venv"),
            # A document exports them once.
            "NAME": "my-pod",
            "ZONE": "z",
            "TYPE": "v4-32",
            "VERSION": "v",
            "POLL_S": "0.1",
        }
        self._checkout()
        self._programs()
        make_data(root)

    def _checkout(self) -> None:
        for name in COPIED:
            source = ROOT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, self.root / name)
        for name in LINKED:
            (self.root / name).symlink_to(ROOT / name)
        (self.root / "worker" / "clipjax-pod").mkdir(parents=True)
        (self.root / "worker" / "clipjax-pod" / "code").symlink_to(self.root)
        # The pod's launcher ships what is committed.
        git = ["git", "-C", self.root, "-c", "user.name=x", "-c", "user.email=x@example.org"]
        for command in (["init", "-q"], ["add", "setup.py"], ["commit", "-qm", "x"]):
            subprocess.run([*git, *command], check=True)

    def _programs(self) -> None:
        self.bin.mkdir(parents=True)
        (self.bin / "activate").write_text("")
        stamp = subprocess.run(["cksum", "setup.py"], cwd=ROOT, capture_output=True, text=True)
        for extra in ("demo", "test", "tpu"):
            (self.bin.parent / f".clipjax-{extra}").write_text(stamp.stdout)
        python = f'#!/bin/bash\nexec "{sys.executable}" "$@"\n'
        programs = {
            "clipjax": f'#!/bin/bash\nexec "{sys.executable}" "{HERE}/small_clipjax.py" "$@"\n',
            "python": python,
            "python3": python,
            "pytest": f'#!/bin/bash\nexec "{sys.executable}" -m pytest "$@"\n',
            "ruff": f'#!/bin/bash\nexec "{sys.executable}" -m ruff "$@"\n',
            "mypy": "#!/bin/bash\n",  # its minutes are those of the default run
            "pip": PIP.format(python=sys.executable, here=HERE),
            "gcloud": GCLOUD,
            "kubectl": "#!/bin/bash\n",
            "sbatch": SBATCH,
            "srun": SRUN,
        }
        for name, text in programs.items():
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def run(self, block: Block, before: str = "", after: str = "") -> str:
        """Runs a block as it stands, but for REPLACED; returns what it printed.

        Args:
            block: what is run.
            before, after: lines around a Python block.

        Raises:
            AssertionError: it failed; the message names document and line.
        """
        text = block.text
        for found, small in REPLACED.items():
            text = text.replace(found, small.replace("{root}", str(self.root)))
        # Blank lines in front make the numbers of lines those of the document.
        if block.language == "bash":
            first = (
                "set -eEuo pipefail; trap 'echo \"failed at line $LINENO: $BASH_COMMAND\" >&2' ERR"
            )
            text = first + "\n" * (block.line - 1) + text
            command = ["/bin/bash", "-c", text]
        elif block.file:
            script = self.root / block.file
            script.parent.mkdir(exist_ok=True)
            script.write_text(text, encoding="utf-8")
            command = [self.bin / "python", "-m", block.file.removesuffix(".py").replace("/", ".")]
        else:
            script = self.root / "block.py"
            text = before.replace("\n", "; ") + "\n" * (block.line - 1) + text + after
            script.write_text(text, encoding="utf-8")
            command = [self.bin / "python", script]
        done = subprocess.run(
            command,
            cwd=self.root,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=3 * HANGS_S,
        )
        (self.root / "block.py").unlink(missing_ok=True)  # commands meet the checkout alone
        assert done.returncode == 0, (
            f"{block.where}: exit {done.returncode}\n{block.text}\n"
            f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout


def a_file_of_each_mark():
    """Paths of test files that have tests with the marks of pyproject.toml, one for each."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]
    marks = [line.partition(":")[0] for line in options["ini_options"]["markers"]]
    files = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    found = [
        next(path for path in sorted(files) if f"pytest.mark.{mark}\n" in files[path])
        for mark in marks
    ]
    return sorted({str(path.relative_to(ROOT)) for path in found})


def picture(name, number, size=40):
    """A noisy picture of one colour."""
    random = np.random.default_rng([number, *name.encode()])
    noise = random.integers(0, 60, (size, size + 6, 3)) - 30
    color = np.array(COLORS.get(name, (40, 90, 200)))
    return Image.fromarray((color + noise).clip(0, 255).astype(np.uint8))


def jpeg(name, number):
    buffer = io.BytesIO()
    picture(name, number).save(buffer, "JPEG")
    return buffer.getvalue()


def make_data(root: Path, count: int = 16) -> None:
    """Pictures, tables, shards and Parquet files where the documents have theirs."""
    for name in ("a.jpg", "b.jpg", "picture.jpg", "photo.jpg"):
        (root / name).write_bytes(jpeg("cat", 1))
    rows = []
    for folder, classes in (("pictures", ("cat", "dog")), ("data/pets", ("tabby_cat", "dog"))):
        for name in classes:
            (root / folder / name).mkdir(parents=True)
            for i in range(count):
                file = root / folder / name / f"{i}.jpg"
                file.write_bytes(jpeg(name, i))
                if folder == "pictures":
                    rows.append((str(file.relative_to(root)), f"a {name}, number {i}"))
    with open(root / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "text"), *rows])
    for folder in ("held_out", "unseen"):
        shutil.copytree(root / "pictures", root / folder)
    flowers = root / "data" / "flowers"
    flowers.mkdir()
    for i in range(4):
        (flowers / f"{i}.jpg").write_bytes(jpeg("rose", i))
        (flowers / f"{i}.txt").write_text(f"a rose, number {i}\n")
    for folder in ("data", "data/cc3m", "mnt/bucket", "bucket/cc3m", "shards"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for shard in range(2):
            members = {}
            for i in range(count):
                key = f"{shard:05d}{i:04d}"
                members |= {
                    f"{key}.jpg": jpeg("dog", shard * count + i),
                    f"{key}.txt": f"dog {i} of shard {shard}".encode(),
                    f"{key}.json": json.dumps({"caption": "", "key": key}).encode(),
                }
                if folder == "data/cc3m":
                    members[f"{key}.npy"] = b"0"
            write_tar(root / folder / f"{shard:05d}.tar", members)
    for name in ("n02099601", "n02123045"):
        (root / "imagenet/val" / name).mkdir(parents=True)
        (root / "imagenet/val" / name / "0.jpg").write_bytes(jpeg("cat", 0))
    german = [[207, 281], ["Golden Retriever", "Tigerkatze"]]
    (root / "babel_imagenet-298.json").write_text(json.dumps({"DE": german}))
    (root / "nllb_dist13b_prompts.json").write_text(json.dumps({"DE": ["ein Foto von {}."]}))
    members = {}
    for i in range(count):
        members |= {f"{i:04d}.jpg": jpeg("cat", i), f"{i:04d}.cls": str(60 * i).encode()}
    write_tar(root / "imagenet" / "0000.tar", members)
    jpegs = [jpeg("dog", i) if i % 2 else None for i in range(2 * count)]  # failed downloads
    captions = [f"dog number {i}" for i in range(2 * count)]
    status = ["success" if data else "failed_to_download" for data in jpegs]
    keys = [f"{i:09d}" for i in range(2 * count)]
    columns = {"key": keys, "status": status, "jpg": jpegs, "caption": captions}
    pq.write_table(pa.table(columns), root / "data/cc3m/00000.parquet")


def write_tar(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
