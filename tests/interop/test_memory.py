"""A conversion holds one tensor at a time: peak memory against the largest tensor."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clipjax.config import merge
from clipjax.interop.formats import FORMATS
from clipjax.interop.shapes import expected_shapes
from clipjax.interop.tensors import LazyTensor
from clipjax.interop.weights import Weights
from clipjax.models.zoo import MODELS

ROOT = Path(__file__).parent.parent.parent
# Prints the bytes that a conversion takes above what was there before it; and, as the control of
# the gauge, what 64 MiB seem to take.
PROGRAM = """
import json, sys
import numpy as np
from clipjax.interop.converting import convert_weights
from clipjax.interop.shapes import expected_shapes
from clipjax.models.zoo import MODELS

def kilobytes(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))

def gauge(function):
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = kilobytes("VmRSS")
    function()
    return 1024 * (kilobytes("VmHWM") - before)

from clipjax.tokenizers import make_tokenizer
expected_shapes(MODELS["ViT-B-32"])  # what is the same for every size is not counted
make_tokenizer({"name": "clip_bpe"}, context_length=77)
peak = gauge(lambda: convert_weights(*sys.argv[1:]))
print(json.dumps({"peak": peak, "control": gauge(lambda: np.ones(64 * 2**20, np.uint8))}))
"""
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the gauge is Linux's"
)


def noise(shape, seed):
    """Random numbers at the speed of the disk: a block of them, over and over."""
    block = np.random.default_rng(seed).standard_normal(2**16, np.float32) / 32
    return np.resize(block, shape)


def random_weights(spec):
    """A model's leaves as random numbers, made when they are read; and the largest one's bytes."""
    found = {
        name: LazyTensor(shape, np.dtype(np.float32), lambda s=shape, i=i: noise(s, i))
        for i, (name, shape) in enumerate(expected_shapes(spec).items())
    }
    return Weights(spec, found, source="noise"), max(x.nbytes for x in found.values())


def measure(*arguments):
    """Bytes that a conversion takes at its peak, above what the package takes by itself."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert 0.8 * 2**26 < found["control"] < 1.5 * 2**26
    return found["peak"]


def check(folder, spec, formats):
    """Converts from each format to the next and holds each peak against the largest tensor."""
    weights, largest = random_weights(spec)
    source = folder / "0"
    FORMATS[formats[0]].write(source, weights)
    for number, name in enumerate(formats[1:], 1):
        target = folder / str(number)
        extra = measure(source, target, name)
        output = sum(x.stat().st_size for x in target.rglob("*") if x.is_file())
        mib = {k: round(v / 2**20) for k, v in (("extra", extra), ("largest", largest))}
        logging.getLogger(__name__).info("%s -> %s: %s MiB", formats[number - 1], name, mib)
        # Far below what was asked for, which is this and the size of the output.
        assert extra <= 1.5 * largest, mib
        assert output > 3 * 1.5 * largest  # the control: the bar is far below the whole
        shutil.rmtree(source)
        source = target


@pytest.mark.slow
def test_one_tensor_at_a_time(tmp_path):
    """150 MB in tensors of 25 MB at most."""
    text = {"width": 128, "mlp_dim": 512, "num_heads": 2, "depth": 2}
    spec = merge(MODELS["ViT-B-32"], {"image": {"depth": 4}, "text": text})
    check(tmp_path, spec, ["clipjax", "open_clip", "clipjax"])


@pytest.mark.nightly
def test_the_whole_of_big_g(tmp_path):
    """10 GB in and 10 GB out."""
    check(tmp_path, MODELS["ViT-bigG-14"], ["clipjax", "open_clip", "clipjax", "hf", "clipjax"])
