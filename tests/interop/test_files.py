"""safetensors, shards and .npz: what is written is read, and nothing else is."""

import json
import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from clipjax.interop import section
from clipjax.interop.files import file_kind, open_tensors, save_safetensors
from clipjax.interop.open_clip.format import config_of
from clipjax.interop.section import read_json
from clipjax.interop.tensors import LazyTensor, WeightFileError, of_array

ARRAYS = {
    "f32": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "f16": np.linspace(-1, 1, 5).astype(np.float16),
    "f64": np.array([[1e300]]),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "i64": np.arange(-3, 3),
    "u8": np.arange(7, dtype=np.uint8),
    "bool": np.array([True, False]),
    "Größe/ ": np.array([1, 2], np.float32),
}
BF16 = {"bf16": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16)}


def lazy(arrays):
    return {name: of_array(x) for name, x in arrays.items()}


def assert_equal(tensors, arrays):
    assert tensors.keys() == arrays.keys()
    for name, x in arrays.items():
        found = tensors[name].read()
        assert tensors[name].shape == found.shape == x.shape, name
        assert tensors[name].dtype == found.dtype == x.dtype, name
        assert found.flags.c_contiguous and found.flags.writeable
        assert found.tobytes() == x.tobytes(), name
        if x.ndim and len(x) > 1:
            assert tensors[name].rows(1, len(x)).tobytes() == x[1:].tobytes()
            assert tensors[name].row(1).read().tobytes() == x[1].tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One small file of each kind."""
    folder = tmp_path_factory.mktemp("files")
    save_safetensors(folder / "a.safetensors", lazy(ARRAYS | BF16), {"format": "pt"})
    np.savez(folder / "a.npz", **ARRAYS)
    np.savez_compressed(folder / "packed.npz", **ARRAYS)
    return folder


def test_safetensors_both_ways_with_the_library(tmp_path, folder):
    assert_equal(safetensors_of(folder / "a.safetensors"), ARRAYS | BF16)
    file = open_tensors(folder / "a.safetensors")
    assert (file.kind, file.metadata) == ("safetensors", {"format": "pt"})
    assert_equal(file.tensors, ARRAYS | BF16)
    safetensors.numpy.save_file(ARRAYS, tmp_path / "b.safetensors")
    assert_equal(open_tensors(tmp_path / "b.safetensors").tensors, ARRAYS)


def safetensors_of(path):
    return lazy(safetensors.numpy.load_file(path))


@pytest.mark.parametrize("name", ["a.npz", "packed.npz"])
def test_npz(folder, name):
    file = open_tensors(folder / name)
    assert file.kind == "npz"
    assert_equal(file.tensors, ARRAYS)


def test_npz_in_the_forms_of_other_writers(tmp_path):
    """bfloat16 as two raw bytes, Fortran order, big-endian."""
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    bf16 = x.astype(ml_dtypes.bfloat16)
    np.savez(
        tmp_path / "x.npz", raw=bf16.view("V2"), fortran=np.asfortranarray(x), big=x.astype(">f4")
    )
    tensors = open_tensors(tmp_path / "x.npz").tensors
    assert_equal(tensors, {"raw": bf16, "fortran": x, "big": x})


def test_shards(tmp_path):
    save_safetensors(tmp_path / "1.safetensors", lazy({"f32": ARRAYS["f32"]}))
    save_safetensors(tmp_path / "2.safetensors", lazy({"f16": ARRAYS["f16"], **BF16}))
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {"f32": "1.safetensors", "f16": "2.safetensors", "bf16": "2.safetensors"}

    def write(weight_map):
        index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    write(weight_map)
    found = open_tensors(index)
    assert found.kind == "safetensors"
    assert_equal(found.tensors, {"f32": ARRAYS["f32"], "f16": ARRAYS["f16"], **BF16})
    for change, message in [
        ({"f32": "../1.safetensors"}, "not a file beside the index"),
        ({"f32": "/etc/passwd"}, "not a file beside the index"),
        ({"f32": "3.safetensors"}, "no such file"),
        ({"f32": "2.safetensors"}, "lacks 'f32'"),
        ({"more": "2.safetensors"}, "lacks 'more'"),
        ({"f32": 1}, "no map of file names"),
    ]:
        write(weight_map | change)
        with pytest.raises(WeightFileError, match=message):
            open_tensors(index)
    write({k: v for k, v in weight_map.items() if k != "f16"})
    with pytest.raises(WeightFileError, match="also holds 'f16'"):
        open_tensors(index)
    twice = json.dumps({"weight_map": weight_map})[:-2] + ', "f32": "2.safetensors"}}'
    index.write_text(twice)
    with pytest.raises(WeightFileError, match="'f32' stands twice"):
        open_tensors(index)
    index.write_text("[" * 100_000)
    with pytest.raises(WeightFileError, match="no index of shards"):
        open_tensors(index)


# Damage


def read_all(path):
    return {name: tensor.read() for name, tensor in open_tensors(path).tensors.items()}


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "packed.npz"])
def test_cut_off_anywhere_is_an_error(folder, tmp_path, name):
    data, path = (folder / name).read_bytes(), tmp_path / name
    path.write_bytes(data)
    read_all(path)
    for size in np.linspace(0, len(data) - 1, 60).astype(int):
        path.write_bytes(data[:size])
        with pytest.raises(WeightFileError):
            read_all(path)


@pytest.mark.parametrize("name", ["a.npz", "packed.npz"])
def test_a_flipped_bit_of_an_npz_changes_no_array(folder, tmp_path, name):
    data, path = (folder / name).read_bytes(), tmp_path / name
    random, caught = np.random.default_rng(0), 0
    for position in random.integers(0, len(data), 250):
        changed = bytearray(data)
        changed[position] ^= 1 << random.integers(8)
        path.write_bytes(changed)
        try:
            found = read_all(path)
        except WeightFileError:
            caught += 1
            continue
        # What is left are fields that say nothing about the content, such as dates; or a name.
        wanted = [x.tobytes() for x in ARRAYS.values()]
        assert [x.tobytes() for x in found.values()] == wanted
    assert caught > 100


def test_a_flipped_bit_of_a_safetensors_header_never_leaves_the_file(folder, tmp_path):
    data, path = (folder / "a.safetensors").read_bytes(), tmp_path / "a.safetensors"
    length = 8 + int.from_bytes(data[:8], "little")
    caught = 0
    for position in range(0, length, 3):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            found = read_all(path)
        except WeightFileError:
            caught += 1
            continue
        assert sum(x.nbytes for x in found.values()) == len(data) - length
    assert caught > length / 6


def write_header(path, header, data=b"\0" * 16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(**changes):
    return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(shape=[2, 3])}, "invalid shape, data type, or offset"),
        ({"a": entry(dtype="F16")}, "invalid shape, data type, or offset"),
        ({"a": entry(dtype="F8_E4M3", shape=[16])}, "known are F64"),
        ({"a": entry(dtype=["F32"])}, "invalid type: sequence"),
        ({"a": entry(shape=[2**40, 2**40])}, "overflow"),
        ({"a": entry(shape=[-2, -2])}, "integer `-2`"),
        ({"a": entry(shape=[2.0, 2])}, "floating point"),
        ({"a": entry(shape=[True, 4])}, "boolean"),
        ({"a": entry(shape=4)}, "integer `4`"),
        ({"a": entry(shape=[2, 2, *[1] * 40])}, "has 42 axes"),
        ({"a": entry(data_offsets=[4, 20])}, "invalid offset for tensor `a`"),
        ({"a": entry(data_offsets=[-16, 0])}, "integer `-16`"),
        ({"a": entry(data_offsets=[16, 0])}, "invalid offset for tensor `a`"),
        ({"a": entry(data_offsets=[0, 16, 16])}, "damaged"),
        ({"a": entry(), "b": entry()}, "invalid offset for tensor"),
        ({"a": entry(data_offsets=[0, 32], shape=[4, 2])}, "file not fully covered"),
        ({"a": entry(shape=[2], data_offsets=[0, 8])}, "file not fully covered"),
        ({"a": {"dtype": "F32"}}, "missing field"),
        ({"a": 3}, "invalid type: integer"),
        ({"__metadata__": {"a": 1}, "a": entry()}, "expected a string"),
        ([1], "no file of weights"),
        (
            f'{{"a":{json.dumps(entry())},"a":{json.dumps(entry())}}}'.encode(),
            "key 'a' stands twice",
        ),
        (
            f'{{"__metadata__":{{"b":"1","b":"2"}},"a":{json.dumps(entry())}}}'.encode(),
            "key 'b' stands twice",
        ),
        (b"{" + b'"a":{' * 50_000, "recursion limit"),
        (b'{"a":' + b"[" * 50_000, "recursion limit"),
        (b'{"\xff":{}}', "UTF-8"),
    ],
)
def test_headers_that_lie(tmp_path, header, message):
    path = tmp_path / "x.safetensors"
    write_header(path, {"a": entry()})
    assert open_tensors(path).tensors["a"].shape == (2, 2)
    write_header(path, header)
    with pytest.raises(WeightFileError, match=message) as refusal:
        open_tensors(path)
    assert str(refusal.value).startswith(str(path)) and "\n" not in str(refusal.value)


def test_a_header_as_long_as_a_disk_takes_no_memory(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}" * 20)
    with pytest.raises(WeightFileError, match="header of"):
        open_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"To whom it may concern,\n", "no file of weights"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "no file of weights"),
        (b"\x80\x02}q\x00.", "a pickle"),
        (b"\x1f\x8b" + bytes(50), "no file of weights"),
        (b"PK\x03\x04" + bytes(50), "damaged zip"),
        (b"PK\x05\x06" + bytes(18), "a pickle or|no file of weights"),
        (b'{"weights": 1}', "no file of weights"),
    ],
)
def test_foreign_files(tmp_path, content, message):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert file_kind(path) is None
    with pytest.raises(WeightFileError, match=message):
        open_tensors(path)


def test_a_key_that_stands_twice_is_refused_in_a_config_too(tmp_path):
    for read, name in ((read_json, "config.json"), (config_of, "open_clip_config.json")):
        path = tmp_path / name
        path.write_text('{"a": {"b": 1}}')
        assert read(path if read is read_json else tmp_path) == {"a": {"b": 1}}
        path.write_text('{"a": {"b": 1, "b": 2}}')
        with pytest.raises(WeightFileError, match=f"{name} .*the key 'b' stands twice"):
            read(path if read is read_json else tmp_path)


def test_a_missing_file_and_a_directory(tmp_path):
    with pytest.raises(WeightFileError, match="no such file"):
        open_tensors(tmp_path / "x")
    with pytest.raises(WeightFileError, match="a directory"):
        open_tensors(tmp_path)


# npz


def npy(shape, dtype="<f4", data=b""):
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy("(3,)", data=bytes(8)), "takes"),
        (npy("(10**15,)"), "no .npy header"),
        (npy("(1000000000000,)"), "takes"),
        (npy("(-1,)"), "has shape"),
        (npy("(" * 4000), "no .npy header"),
        (npy("(2,)", "|O", bytes(16)), "pickled objects never are"),
        (npy("(1,)", "<U4", bytes(16)), "only numbers"),
        (npy("(1,)", [("a", "<f4")], bytes(4)), "only numbers"),
        (npy("(1,)", "__import__('os').system('true')"), "no .npy header"),
        (b"\x93NUMPY\x09\x00" + bytes(100), "no .npy header"),
        (b"\x93NUMPY\x01\x00\xff\xff" + bytes(100), "no .npy header"),
        (b"(" * 200, "no .npy header"),
        (b"", "no .npy header"),
    ],
)
def test_npz_members_that_lie(tmp_path, zip_of, member, message):
    path = zip_of({"a.npy": npy("(2,)", data=bytes(8))})
    assert open_tensors(path).tensors["a"].shape == (2,)
    path = zip_of({"good.npy": npy("(2,)", data=bytes(8)), "a.npy": member})
    with pytest.raises(WeightFileError, match=message):
        open_tensors(path)


def test_npz_of_something_else(zip_of):
    with pytest.raises(WeightFileError, match="no array"):
        open_tensors(zip_of({"a.npy": npy("(2,)", data=bytes(8)), "readme.txt": b"x"}))


def test_zip_bomb(zip_of):
    size = 100 * 2**20
    path = zip_of({"a.npy": npy(f"({size // 4},)", data=bytes(size))}, packed=True)
    assert path.stat().st_size < 2**20
    with pytest.raises(WeightFileError, match="zip bomb"):
        open_tensors(path)


# Writing


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def fail():
        raise OSError("no space left on the device")

    tensors = lazy(ARRAYS) | {"last": LazyTensor((3,), np.dtype(np.uint8), fail)}
    with pytest.raises(OSError, match="no space"):
        save_safetensors(tmp_path / "x.safetensors", tensors)
    assert os.listdir(tmp_path) == []


def test_a_tensor_that_is_not_what_it_says_is_not_written(tmp_path):
    lying = LazyTensor((3,), np.dtype(np.float32), lambda: np.zeros(4, np.float32))
    with pytest.raises(WeightFileError, match="announced"):
        save_safetensors(tmp_path / "x.safetensors", {"x": lying})
    assert os.listdir(tmp_path) == []


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"mine")
    with pytest.raises(WeightFileError, match="exists"):
        save_safetensors(path, lazy(ARRAYS))
    assert path.read_bytes() == b"mine"
    with pytest.raises(WeightFileError, match="no directory"):
        save_safetensors(tmp_path / "a" / "b", lazy(ARRAYS))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a file that does not end")
def test_json_that_does_not_end(tmp_path, monkeypatch):
    """Its size is 0, by its own word."""
    monkeypatch.setattr(section, "MAX_BYTES", 1 << 20)
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(WeightFileError, match="larger than 1048576 bytes"):
        section.read_json(tmp_path / "config.json")
