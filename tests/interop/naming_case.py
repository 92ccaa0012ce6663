"""One small CLIP under the names that people's files have, and `clipjax convert` run on many."""

import contextlib
import io
import json
import pickle
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np

from clipjax.config import merge, to_plain
from clipjax.interop import Hints, expected_shapes, export
from clipjax.interop.files import save_safetensors
from clipjax.interop.formats import FORMATS
from clipjax.interop.open_clip import names
from clipjax.interop.tensors import of_array
from clipjax.models.zoo import MODELS

CLIP = merge(
    to_plain(MODELS["ViT-B-32-quickgelu"]),
    {
        "name": "custom",
        "source": "",
        "embed_dim": 24,
        "image_size": 32,
        "image": {"patch_size": 16, "width": 16, "depth": 2, "num_heads": 1, "mlp_dim": 64},
        "text": {"width": 16, "depth": 1, "num_heads": 1, "mlp_dim": 40, "context_length": 24},
    },
)


def noise(shapes, seed=0):
    random = np.random.default_rng(seed)
    return {k: random.standard_normal(shape).astype(np.float32) for k, shape in shapes.items()}


def open_clip_tensors(seed=0):
    """The model's tensors by OpenCLIP's names."""
    ours = {name: of_array(x) for name, x in noise(expected_shapes(CLIP), seed).items()}
    return {name: x.read() for name, x in export(names.leaves(CLIP), ours).items()}


def save(path, tensors):
    save_safetensors(path, {name: of_array(x) for name, x in tensors.items()}, {})
    return path


def leaves_of(path):
    """Leaves of a checkpoint of ours."""
    found = FORMATS["clipjax"].read(Path(path), Hints())
    return {name: x.read() for name, x in found.leaves.items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, x in wanted.items():
        assert found[name].tobytes() == x.tobytes(), name


def save_torch(path, value, monkeypatch):
    """Writes what torch.save would of nested dicts of arrays, without torch."""

    def rebuild(*args):
        raise AssertionError("never called")

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    storage = type("FloatStorage", (), {"__module__": "torch"})
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch._utils, torch.FloatStorage, utils._rebuild_tensor_v2 = utils, storage, rebuild
    arrays = []

    class Storage:
        def __init__(self, array):
            self.array = array

    class Tensor:
        def __init__(self, array):
            self.array = array

        def __reduce__(self):
            strides = tuple(s // 4 for s in self.array.strides)
            return rebuild, (Storage(self.array), 0, self.array.shape, strides, False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, x):
            if not isinstance(x, Storage):
                return None
            arrays.append(np.ascontiguousarray(x.array))
            return "storage", storage, str(len(arrays) - 1), "cpu", x.array.size

    def wrapped(node):
        if isinstance(node, dict):
            return {key: wrapped(x) for key, x in node.items()}
        return Tensor(node) if isinstance(node, np.ndarray) else node

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        buffer = io.BytesIO()
        Pickler(buffer, 2).dump(wrapped(value))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", buffer.getvalue())
        for i, array in enumerate(arrays):
            archive.writestr(f"x/data/{i}", array.tobytes())
    return path


def run_all(folder, commands):
    """Runs `clipjax convert` with each command's flags in one process; (code, stdout, stderr)."""
    listed = {k: [f"--to={folder / 'out' / k}", *map(str, v)] for k, v in commands.items()}
    (folder / "out").mkdir()
    (folder / "commands.json").write_text(json.dumps(listed))
    command = [sys.executable, __file__, str(folder / "commands.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {k: tuple(v) for k, v in json.loads(done.stdout.splitlines()[-1]).items()}


def _main(file):
    from absl import flags

    from clipjax.cli import convert
    from clipjax.cli.main import run

    def one(argv):
        for flag in flags.FLAGS.get_key_flags_for_module(convert.__name__):
            flag.unparse()
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                run(["clipjax", "convert", *argv])
            except SystemExit as end:
                return end.code, out.getvalue(), err.getvalue()
        return None, out.getvalue(), err.getvalue()

    commands = json.loads(Path(file).read_text())
    sys.stdout.write(json.dumps({name: one(argv) for name, argv in commands.items()}))


if __name__ == "__main__":
    _main(sys.argv[1])
