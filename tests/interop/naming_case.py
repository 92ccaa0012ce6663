"""One small CLIP under the names that people's files have, and `clipjax convert` run on many."""

import io
import pickle
import sys
import types
import zipfile

import numpy as np
from commands import in_this_process
from small_weights import CLIP, noise

from clipjax.interop import export
from clipjax.interop.files import save_safetensors
from clipjax.interop.open_clip import names
from clipjax.interop.tensors import of_array


def open_clip_tensors(seed=0):
    """The model's tensors by OpenCLIP's names."""
    ours = {name: of_array(x) for name, x in noise(CLIP, seed).items()}
    return {name: x.read() for name, x in export(names.leaves(CLIP), ours).items()}


def save(path, tensors):
    save_safetensors(path, {name: of_array(x) for name, x in tensors.items()}, {})
    return path


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
    """Runs `clipjax convert` with each command's flags, in this process; (code, stdout, stderr)."""
    (folder / "out").mkdir()
    with in_this_process() as run:
        return {k: tuple(run("convert", f"--to={folder}/out/{k}", *v)) for k, v in commands.items()}
