"""torch's archives without torch; nothing that a file asks for is ever done."""

import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from counting import counted_calls

from clipjax.interop.files import open_tensors
from clipjax.interop.files.pickle_data import PickleData
from clipjax.interop.tensors import WeightFileError

GOLDEN = Path(__file__).parent.parent / "golden" / "interop"
NAMES = ("state_dict", "training", "torchscript")


def expected(name):
    with np.load(GOLDEN / "expected.npz") as file:
        return {k.split("/", 1)[1]: file[k] for k in file.files if k.startswith(f"{name}/")}


def read_all(path):
    return {name: tensor.read() for name, tensor in open_tensors(path).tensors.items()}


@pytest.mark.parametrize("name", NAMES)
def test_files_that_torch_wrote(name):
    file, wanted = open_tensors(GOLDEN / f"{name}.pt"), expected(name)
    assert file.kind == "torch"
    # What stands before all names is the file's, and taken off where formats are told apart.
    tensors = {key.removeprefix("module."): x for key, x in file.tensors.items()}
    assert tensors.keys() == wanted.keys()
    assert (tensors.keys() != file.tensors.keys()) == (name == "training")
    for key, tensor in tensors.items():
        found = tensor.read()
        assert found.flags.c_contiguous and (found.shape, found.dtype) == (
            tensor.shape,
            tensor.dtype,
        )
        as_golden = found.astype(np.float32) if key == "bf16" else found
        assert as_golden.dtype == wanted[key].dtype, key
        assert as_golden.shape == wanted[key].shape, key
        assert as_golden.tobytes() == wanted[key].tobytes(), key
        if tensor.shape and tensor.shape[0] > 1:
            assert tensor.rows(1, 2).tobytes() == found[1:2].tobytes()


def test_what_stands_beside_the_state_dict():
    assert open_tensors(GOLDEN / "training.pt").metadata == {"epoch": 3, "name": "run"}
    script = open_tensors(GOLDEN / "torchscript.pt")
    assert script.metadata == {"torchscript": True}
    assert script.tensors["conv1.weight"].dtype == np.float16
    assert not [name for name in script.tensors if "attn_mask" in name]  # a tensor, but no state


def test_the_mask_is_left_because_the_code_does_not_declare_it(tmp_path):
    """Without the code in the archive, which says what is state, the mask comes along."""
    path = rewrite(GOLDEN / "torchscript.pt", tmp_path, lambda n, d: None if ".py" in n else d)
    assert "resblocks.0.attn_mask" in open_tensors(path).tensors


def rewrite(source, tmp_path, change, **options):
    """Copies an archive, `change(name, data)` giving the new bytes, or None to leave it out."""
    path = tmp_path / "changed.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", **options) as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return path


# Damage


@pytest.mark.parametrize("name", ["state_dict", "torchscript"])
def test_cut_off_anywhere_is_an_error(tmp_path, name):
    data, path = (GOLDEN / f"{name}.pt").read_bytes(), tmp_path / "x.pt"
    for size in np.linspace(0, len(data) - 1, 50).astype(int):
        path.write_bytes(data[:size])
        with pytest.raises(WeightFileError):
            read_all(path)


def test_a_flipped_bit_changes_no_tensor(tmp_path):
    data, path = (GOLDEN / "state_dict.pt").read_bytes(), tmp_path / "x.pt"
    wanted = {name: x.tobytes() for name, x in read_all(GOLDEN / "state_dict.pt").items()}
    random, caught = np.random.default_rng(0), 0
    for position in random.integers(0, len(data), 400):
        changed = bytearray(data)
        changed[position] ^= 1 << random.integers(8)
        path.write_bytes(changed)
        try:
            found = read_all(path)
        except WeightFileError:
            caught += 1
            continue
        assert {name: x.tobytes() for name, x in found.items()} == wanted
    assert caught > 100


def test_another_byte_order_is_refused(tmp_path):
    path = rewrite(
        GOLDEN / "state_dict.pt", tmp_path, lambda n, d: b"big" if n.endswith("byteorder") else d
    )
    with pytest.raises(WeightFileError, match="byte order b'big'"):
        open_tensors(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, d: None if n.endswith("data/0") else d, "no storage '0'"),
        (lambda n, d: d[:-4] if n.endswith("data/0") else d, "it should be"),
        (lambda n, d: d + d if n.endswith("data/0") else d, "it should be"),
        (lambda n, d: d[:-1] if n.endswith("data.pkl") else d, "pickle is damaged"),
        (lambda n, d: d + d if n.endswith("data.pkl") else d, None),
        (lambda n, d: b"" if n.endswith("data.pkl") else d, "pickle is damaged"),
        (lambda n, d: None if n.endswith("data.pkl") else d, "without tensors"),
    ],
)
def test_members_that_are_missing_or_of_another_size(tmp_path, change, message):
    path = rewrite(GOLDEN / "state_dict.pt", tmp_path, change)
    if message is None:  # behind its end a pickle is not read
        assert read_all(path)
        return
    with pytest.raises(WeightFileError, match=message):
        read_all(path)


def test_packed_storages_are_refused(tmp_path):
    path = rewrite(
        GOLDEN / "state_dict.pt", tmp_path, lambda n, d: d, compression=zipfile.ZIP_DEFLATED
    )
    with pytest.raises(WeightFileError, match="compressed"):
        open_tensors(path)


# Archives that are no archives of torch


def member(name, mode=0o644, kind=stat.S_IFREG):
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | mode) << 16
    return info


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a/data.pkl", b"."), ("a/data/0", b"1"), ("a/data/0", b"2")], "two members are called"),
        ([("a/data.pkl", b"."), (member("a/data/0", kind=stat.S_IFLNK), b"/etc/passwd")], "a link"),
        (
            [("a/data.pkl", b"."), (member("a/data/0", kind=stat.S_IFCHR), b"")],
            "a link or a device",
        ),
        ([("a/data.pkl", b"."), ("../x", b"1")], "outside the archive"),
        ([("a/data.pkl", b"."), ("/etc/x", b"1")], "outside the archive"),
        ([("a/data.pkl", b"."), ("a\\..\\x", b"1")], "outside the archive"),
        ([("a/data.pkl", b"."), ("b/data.pkl", b".")], "2 members called data.pkl"),
        ([("a/data.pkl", b"N" * (17 * 2**20))], "more than"),
    ],
)
def test_archives_that_are_refused(zip_of, members, message):
    with pytest.raises(WeightFileError, match=message):
        open_tensors(zip_of(members))


# Pickles


def torch_archive(zip_of, data, storages=None, more=()):
    storages = {"0": bytes(96)} if storages is None else storages
    members = [("a/data.pkl", data), ("a/byteorder", b"little")]
    members += [(f"a/data/{key}", value) for key, value in storages.items()]
    return zip_of([*members, *more])


def tensor_pickle(shape=(4, 6), strides=(6, 1), offset=0, size=24, key=b"0", kind=b"FloatStorage"):
    """{"w": tensor}, as torch.save writes it, of any numbers."""

    def number(x):
        return b"\x8a\x0a" + int(x).to_bytes(10, "little", signed=True)

    def sizes(values):
        return b"(" + b"".join(number(x) for x in values) + b"t"

    def text(x):
        return b"X" + struct.pack("<I", len(x)) + x

    storage = b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(key)
    storage += text(b"cpu") + number(size) + b"tQ"
    arguments = b"(" + storage + number(offset) + sizes(shape) + sizes(strides) + b"\x89"
    arguments += b"ccollections\nOrderedDict\n)Rt"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"
    return b"\x80\x02}" + text(b"w") + tensor + b"s."


def test_a_pickle_by_hand_is_read(zip_of):
    data = np.arange(24, dtype=np.float32)
    path = torch_archive(zip_of, tensor_pickle(), {"0": data.tobytes()})
    assert (read_all(path)["w"] == data.reshape(4, 6)).all()
    path = torch_archive(
        zip_of, tensor_pickle(shape=(3, 2), strides=(1, 12), offset=5), {"0": data.tobytes()}
    )
    assert (read_all(path)["w"] == [[5, 17], [6, 18], [7, 19]]).all()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"shape": (4, 7)}, "leaves its storage"),
        ({"offset": 1}, "leaves its storage"),
        ({"offset": -1}, "no sizes"),
        ({"strides": (7, 1)}, "leaves its storage"),
        ({"strides": (-6, 1)}, "no sizes"),
        ({"shape": (10**9, 10**9), "strides": (0, 0)}, "leaves its storage"),
        ({"shape": (2**62, 2)}, "no sizes"),
        ({"shape": (4,)}, "no sizes"),
        ({"shape": (1,) * 40, "strides": (1,) * 40}, "no sizes"),
        ({"size": 25}, "it should be"),
        ({"size": -1}, "it should be"),
        ({"size": 12}, "it should be"),
        ({"kind": b"DoubleStorage"}, "it should be"),
        ({"kind": b"HalfStorage"}, "it should be"),
        ({"kind": b"QInt8Storage"}, "QInt8Storage, which is refused"),
        ({"key": b"../data.pkl"}, "no storage"),
        ({"key": b"1"}, "no storage"),
    ],
)
def test_numbers_that_lie(zip_of, numbers, message):
    with pytest.raises(WeightFileError, match=message):
        open_tensors(torch_archive(zip_of, tensor_pickle(**numbers)))


NESTED = b"\x80\x02" + b")" + b"q\x00h\x00\x86" * 100 + b"."
BUILD_A_TUPLE = b"\x80\x02)}b."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02c__torch__.os\nsystem\nX\x02\x00\x00\x00id\x85R.", "which is refused"),
        (b"\x80\x02c__torch__.os\nsystem\nX\x02\x00\x00\x00id\x85\x81.", "which is refused"),
        (b"\x80\x02ctorch.hub\nload\n)R.", "torch.hub.load, which is refused"),
        (b"\x80\x02ctorch\nload\n)R.", "torch.load, which is refused"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n)R.", "which is refused"),
        (b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81.", "state_dict"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x04)}\x92.", "NEWOBJ_EX"),
        (BUILD_A_TUPLE, "sets the state of a tuple"),
        (b"\x80\x02c__torch__\nM\n)\x81K\x01b.", "attributes"),
        (b"\x80\x02]K\x01K\x01s.", "no dict"),
        (b"\x80\x02}K\x01K\x01a.", "no list"),
        (b"\x80\x02}))s.", "a key that is a tuple"),
        (b"\x80\x02}(K\x01K\x01K\x01K\x02u.", "names 1 twice"),
        (b"\x80\x02}(K\x01u.", "no dict"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02.", "one value"),
        (b"\x80\x02K\x01K\x02.", "one value"),
        (b"\x80\x02(.", "damaged|one value|no state dict|holds a"),
        (b"\x80\x02(q\x00.", "a mark"),
        (b"\x80\x02}r\xff\xff\xff\xff.", "holds no state dict"),  # a memo of 4 billion places
        (b"\x80\x05\x96" + b"\xff" * 7 + b"\x7f.", "damaged|BYTEARRAY8"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "damaged"),  # bytes without end
        (b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".", "holds a list"),
        (NESTED, "holds a tuple"),
        (NESTED[:-1] + b"}\x86\x85R.", "calls a|pickle"),
        (b"\x80\x02K\x01Q.", "no storage"),
        (b"\x80\x02X\x01\x00\x00\x00aQ.", "no storage"),
        (b"\x80\x02}.", "holds no state dict"),
        (b"\x80\x02}X\x01\x00\x00\x00aK\x01s.", "its keys are a"),
        (b"no pickle at all", "damaged|instruction"),
    ],
)
def test_pickles_that_are_refused(zip_of, data, message):
    archive = torch_archive(zip_of, data)
    with counted_calls() as calls, pytest.raises(WeightFileError, match=message):
        open_tensors(archive)
    assert calls.number < 1_000 + 100 * len(data)


def test_module_trees_that_do_not_end(zip_of):
    module = b"c__torch__\nM\n)\x81"
    key = b"X\x01\x00\x00\x00a"
    itself = b"\x80\x02" + module + b"q\x00}" + key + b"h\x00sb."
    with pytest.raises(WeightFileError, match="does not end"):
        open_tensors(torch_archive(zip_of, itself))
    data = b"\x80\x02" + module + b"q\x00"  # each holds the one before it twice
    for i in range(60):
        before, after = bytes([i]), bytes([i + 1])
        twice = b"(" + key + b"h" + before + b"X\x01\x00\x00\x00bh" + before + b"u"
        data += b"0" + module + b"q" + after + b"}" + twice + b"b"
    with pytest.raises(WeightFileError, match="does not end"):
        open_tensors(torch_archive(zip_of, data + b"."))


def test_a_pickle_of_too_many_instructions(zip_of, monkeypatch):
    data = b"\x80\x02" + b"N0" * 6_000 + b"N."
    with pytest.raises(WeightFileError, match="holds a NoneType"):
        open_tensors(torch_archive(zip_of, data))
    monkeypatch.setattr("clipjax.interop.files.pickle_data.MAX_OPERATIONS", 10_000)
    with pytest.raises(WeightFileError, match="does not end"):
        open_tensors(torch_archive(zip_of, data))


def test_random_changes_of_a_pickle_raise_one_kind_of_error(tmp_path):
    with zipfile.ZipFile(GOLDEN / "training.pt") as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        data = archive.read(name)
    random, refused = np.random.default_rng(0), 0
    for _ in range(1500):
        changed = bytearray(data)
        for position in random.integers(0, len(data), random.integers(1, 4)):
            changed[position] = random.integers(256)
        try:
            PickleData({}, lambda name: True, lambda identity: identity).load(bytes(changed))
        except WeightFileError:
            refused += 1
    assert refused > 500
