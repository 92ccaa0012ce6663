import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from clipjax.data import SampleError, make_source
from clipjax.data.tar_index import read_members


def png(number):
    out = io.BytesIO()
    Image.new("RGB", (3, 3), (number, 0, 0)).save(out, "PNG")
    return out.getvalue()


def tar(path, members, fmt=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=fmt) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                archive.addfile(info)
    return path


def pairs(count, start=0):
    for i in range(start, start + count):
        yield f"{i:05d}.png", png(i)
        yield f"{i:05d}.txt", f"picture {i}".encode()


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_tarfile_s(tmp_path, fmt):
    names = ["a.txt", "d/" * 20 + "b.txt", "x" * 90 + ".txt", "u\u00e9.txt"]
    if fmt != tarfile.USTAR_FORMAT:
        names.append("y" * 150 + ".txt")
    path = tar(tmp_path / "x.tar", [(n, n.encode() * 40) for n in names], fmt)
    with path.open("rb") as file, tarfile.open(path) as archive:
        found = list(read_members(file, "x"))
        expected = [(m.name, m.offset_data, m.size) for m in archive.getmembers()]
    assert [tuple(m) for m in found] == expected


def test_shards(tmp_path):
    for shard in range(2):
        tar(tmp_path / f"{shard:03d}.tar", pairs(5, 5 * shard))
    source = make_source(f"tar:{tmp_path}/{{000..001}}.tar")
    assert len(source) == 10
    for i in range(10):
        assert source[i]["image"] == png(i) and source[i]["text"] == f"picture {i}"
        assert source[i]["key"] == f"{i // 5:03d}.tar/{i:05d}"
    assert source.fingerprint() == make_source(f"tar:{tmp_path}/*.tar").fingerprint()


def test_json_and_classes(tmp_path):
    members = [("0.png", png(0)), ("0.json", json.dumps({"caption": "from json"}).encode())]
    members += [("1.png", png(1)), ("1.cls", b"1")]
    tar(tmp_path / "a.tar", members)
    source = make_source({"spec": f"tar:{tmp_path}/a.tar", "class_names": ("cat", "dog")})
    assert source[0]["text"] == "from json"
    assert source[1]["text"] == "dog" and source[1]["label"] == 1


def test_incomplete_pairs_are_counted_not_dropped(tmp_path):
    members = [("0.png", png(0)), ("1.txt", b"alone"), ("2.png", png(2)), ("2.txt", b"\xff")]
    members += [("3.png", png(3)), ("3.json", b"{")]
    source = make_source(f"tar:{tar(tmp_path / 'a.tar', members)}")
    reasons = []
    for i in range(len(source)):
        with pytest.raises(SampleError) as caught:
            source[i]
        reasons.append(caught.value.reason)
    assert reasons == ["missing_text", "missing_image", "text_encoding", "json"]


@pytest.mark.parametrize(
    "members, message",
    [
        ([("0.v2.png", png(0))], "'v2.png' is unknown"),
        ([("0.png", png(0)), ("0.png", png(1))], "a key twice"),
        ([("0.png", png(0)), ("0.jpg", png(1))], "a key twice"),
        ([("0.txt", b"a"), ("0.txt", b"b")], "a key twice"),
        ([("../0.png", png(0))], "outside"),
        ([("/0.png", png(0))], "outside"),
        ([("0.png", (tarfile.SYMTYPE, "/etc/passwd"))], "type"),
        ([("0.png", (tarfile.LNKTYPE, "1.png"))], "type"),
        ([("0.png", (tarfile.CHRTYPE, ""))], "type"),
    ],
)
def test_refused_members(tmp_path, members, message):
    tar(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=message):
        make_source(f"tar:{tmp_path}/a.tar")


def test_declared_extensions_are_left_out(tmp_path):
    tar(tmp_path / "a.tar", [*pairs(2), ("00000.npy", b"x")])
    assert len(make_source({"spec": f"tar:{tmp_path}/a.tar", "ignore": (".npy",)})) == 2


def test_every_truncation_and_every_flipped_header_is_refused(tmp_path):
    path = tar(tmp_path / "a.tar", pairs(20))
    content = path.read_bytes()
    with path.open("rb") as file:
        members = list(read_members(file, "a"))
    end = members[-1].offset + 512  # of the last file's block; the end marker follows
    rng = np.random.Generator(np.random.Philox(key=1))
    refused = lost_by_tarfile = 0
    for number in range(200):
        if number % 2:
            damaged = content[: int(rng.integers(end + 1024))]
        else:
            damaged = bytearray(content)
            header = members[int(rng.integers(len(members)))].offset - 512
            damaged[header + int(rng.integers(512))] ^= 1 << int(rng.integers(8))
        try:
            found = list(read_members(io.BytesIO(bytes(damaged)), "a"))
        except ValueError:
            refused += 1
        else:  # the padding of the checksum itself: the header says what it said before
            assert number % 2 == 0 and found == members
        lost_by_tarfile += len_by_tarfile(bytes(damaged))
    assert refused > 195
    # Negative control: what the standard library makes of the same bytes, without a word.
    assert lost_by_tarfile > 100


def len_by_tarfile(content):
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            return len(archive.getmembers()) < 40
    except tarfile.TarError:
        return False
