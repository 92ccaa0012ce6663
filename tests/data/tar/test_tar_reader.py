import io
import tarfile

import numpy as np
import pytest
from archives import pairs, png, tar_bytes

from clipjax.data.tar import reader as tar_reader
from clipjax.data.tar.reader import read_members


def members_of(content):
    return list(read_members(io.BytesIO(content), "a.tar"))


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_tarfile_s(fmt):
    names = ["a.txt", "d/" * 20 + "b.txt", "x" * 90 + ".txt", "u\u00e9.txt", "empty.txt"]
    if fmt != tarfile.USTAR_FORMAT:
        names.append("y" * 150 + ".txt")
    sizes = [0 if n == "empty.txt" else 40 * len(n) for n in names]
    content = tar_bytes([(n, b"z" * s) for n, s in zip(names, sizes, strict=True)], fmt)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        expected = [(m.name, m.offset_data, m.size) for m in archive.getmembers()]
    assert [m[:3] for m in members_of(content)] == expected


def test_folders_are_passed_over():
    content = tar_bytes([("d", (tarfile.DIRTYPE, "")), ("d/a.txt", b"x")])
    assert [m.name for m in members_of(content)] == ["d/a.txt"]


@pytest.mark.parametrize(
    "members, message",
    [
        ([("../0.png", png(0))], "outside"),
        ([("a/../../0.png", png(0))], "outside"),
        ([("/0.png", png(0))], "outside"),
        ([("0.png", (tarfile.SYMTYPE, "/etc/passwd"))], "type"),
        ([("0.png", (tarfile.LNKTYPE, "1.png"))], "type"),
        ([("0.png", (tarfile.CHRTYPE, ""))], "type"),
        ([("0.png", (tarfile.BLKTYPE, ""))], "type"),
        ([("0.png", (tarfile.FIFOTYPE, ""))], "type"),
        ([("x" * 300, b"1")], "longer"),
    ],
)
def test_refused_members(members, message):
    with pytest.raises(ValueError, match=message):
        members_of(tar_bytes(members))


def test_limits(monkeypatch):
    content = tar_bytes(pairs(3))
    monkeypatch.setattr(tar_reader, "MAX_MEMBERS", 5)
    with pytest.raises(ValueError, match="more than 5"):
        members_of(content)
    monkeypatch.setattr(tar_reader, "MAX_MEMBER_BYTES", 10)
    with pytest.raises(ValueError, match="allowed are 10"):
        members_of(content)


def test_damage_by_name():
    content = tar_bytes(pairs(3))
    end = content.index(bytes(1024))  # inside the last file's padding, or behind it
    end = -(-end // 512) * 512
    for damaged, message in (
        (b"", "cut short at byte 0"),
        (content[: end + 512], "one block of zeros"),
        (content[:end], "end marker is missing"),
        (content[:700], "cut short at byte 700, inside a file"),
        (content + content, "goes on after its end"),
        (b"\x1f\x8b" + content[2:], "gunzip"),
        (content[:124] + b"-0000000010\0" + content[136:], "checksum"),
    ):
        with pytest.raises(ValueError, match=message):
            members_of(damaged)
    assert len(members_of(content[: end + 1024])) == 6  # the zeros that follow may be missing


def with_header(content, **fields):
    """Overwrites fields of the first header and mends its checksum."""
    header = bytearray(content[:512])
    for place, value in fields.values():
        header[place : place + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content[512:]


def test_headers_that_lie_with_a_right_checksum():
    content = tar_bytes([("a.txt", b"1"), ("b.txt", b"2")])
    assert len(members_of(with_header(content))) == 2
    for size in (b"-0000000010\0", b"0000000_010\0", b"+0000000010\0", b"0x000000010\0", b"8" * 12):
        with pytest.raises(ValueError, match="no size"):
            members_of(with_header(content, size=(124, size)))
    with pytest.raises(ValueError, match="allowed are"):
        members_of(with_header(content, size=(124, b"\x80" + b"\xff" * 11)))
    with pytest.raises(ValueError, match="UTF-8"):
        members_of(with_header(content, name=(0, b"\xff.txt")))
    with pytest.raises(ValueError, match="empty"):
        members_of(with_header(content, name=(0, bytes(100))))


def test_long_names_that_lie():
    content = tar_bytes([("y" * 150 + ".txt", b"1")], tarfile.PAX_FORMAT)
    start = content.index(b" path=")
    for damaged in (b"9" * 4, b"0   ", b"-165"):
        with pytest.raises(ValueError, match="extended header"):
            members_of(content[: start - 3] + damaged[:3] + content[start:])
    with pytest.raises(ValueError, match="belongs to no file"):
        members_of(content[:1024] + bytes(1024))


def test_every_truncation_and_every_flipped_header_is_refused():
    content = tar_bytes(pairs(20))
    members = members_of(content)
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
            found = members_of(bytes(damaged))
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
