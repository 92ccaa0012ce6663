"""Damaged archives: no crash, no hang, no silent change of what a shard holds."""

import collections
import io
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from archives import pairs, tar_bytes
from counting import counted_calls

from clipjax.data import SampleError, make_source
from clipjax.data.inspect.checking_tar import check_tar
from clipjax.data.sources.tar_members import TarMembers
from clipjax.data.storage.files import stat
from clipjax.data.storage.paths import data_path
from clipjax.data.tar import index as tar_index
from clipjax.data.tar import reader as tar_reader
from clipjax.data.tar.index import TarIndex, make_index
from clipjax.data.tar.reader import Member

COUNT = 12  # records of an archive
MOST_CALLS = 100_000  # of functions, for an archive
pytestmark = pytest.mark.usefixtures("cache")


class Original:
    """A whole archive: its bytes, the blocks of its members, and what it holds."""

    def __init__(self, folder, fmt, prefix=""):
        members = [(prefix + name, content) for name, content in pairs(COUNT)]
        self.path = folder / f"{fmt}.tar"
        self.content = tar_bytes(members, fmt)
        self.path.write_bytes(self.content)
        source = make_source(f"tar:{self.path}")
        self.examples = [source[i] for i in range(COUNT)]
        self.index = Path(f"{self.path}.index").read_bytes()
        with tarfile.open(self.path) as archive:
            self.blocks = [  # with the extended headers that belong to a member
                (m.offset, m.offset_data + -(-m.size // 512) * 512) for m in archive.getmembers()
            ]
        self.end = self.blocks[-1][1]
        self.headers = sorted({m for m, _ in self.blocks} | {self.end, self.end + 512})


def truncated(original, rng):
    return "truncated", original.content[: int(rng.integers(original.end + 1024))]


def flipped(original, rng):
    content = bytearray(original.content)
    place = original.headers[int(rng.integers(len(original.headers)))] + int(rng.integers(512))
    content[place] ^= 1 << int(rng.integers(8))
    return "flipped", bytes(content)


def restructured(original, rng):
    """Whole blocks that are lost, doubled, moved, forged or strange."""
    content, blocks = original.content, original.blocks
    i, j = sorted(int(n) for n in rng.choice(len(blocks), 2, replace=False))
    (a, b), (c, d) = blocks[i], blocks[j]
    kinds = (
        lambda: content[:a] + content[b:],  # a member is lost
        lambda: content[:b] + content[a:b] + content[b:],  # or comes twice
        lambda: content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:],
        lambda: content[:a] + bytes(1024) + content[a:],  # an end marker in the middle
        lambda: content[:a] + bytes(512) + content[a + 512 :],
        lambda: content[:a] + rng.bytes(512) + content[a + 512 :],
        lambda: content[:a] + one_of(STRANGE, rng) + content[a:],
        lambda: content[:a] + content[a + int(rng.integers(1, 512)) :],  # the grid is shifted
        lambda: content[:a] + rng.bytes(int(rng.integers(1, 512))) + content[a:],
        lambda: content + content,
        lambda: content[: original.end],
        lambda: content + rng.bytes(512),
        lambda: forged(content, a, 124, b"%011o\0" % int(rng.integers(1 << 33))),
        lambda: forged(content, a, 0, b"%05d.png\0" % int(rng.integers(COUNT))),
    )
    kind = int(rng.integers(len(kinds) + 2))
    if kind >= len(kinds):
        return "forbidden", content[:a] + one_of(FORBIDDEN, rng) + content[a:]
    return "restructured", kinds[kind]()


def one_of(members, rng):
    """The blocks of a member, without an end marker."""
    content = tar_bytes([members[int(rng.integers(len(members)))]])
    return content[: -(-len(content.rstrip(b"\0")) // 512) * 512]


def forged(content, header, place, value):
    """Writes a field of a header and mends the checksum."""
    block = bytearray(content[header : header + 512])
    block[place : place + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return content[:header] + bytes(block) + content[header + 512 :]


# What nothing but a strict reader sees: links, devices, and names that point outside.
FORBIDDEN = [
    ("9.png", (tarfile.SYMTYPE, "/etc/passwd")),
    ("9.png", (tarfile.LNKTYPE, "00001.png")),
    ("9.png", (tarfile.CHRTYPE, "")),
    ("9.png", (tarfile.BLKTYPE, "")),
    ("9.png", (tarfile.FIFOTYPE, "")),
    ("/9.png", b"absolute"),
    ("../9.png", b"outside"),
    ("a/../../9.png", b"outside"),
]
STRANGE = [
    ("9.v2.png", b"an unknown extension"),
    ("9.png", b"a caption is missing"),
    ("x" * 300 + ".png", b"a long name"),
]


def outcome_by_itself(original, shard):
    """What a strict reading says of a shard that has no index."""
    try:
        index = TarIndex(shard.path, content=make_index(shard))
    except ValueError as error:
        assert str(shard.path) in str(error)
        return "refused"
    before = TarIndex(shard.path, content=original.index)
    same = [r.key for r in index] == [r.key for r in before]
    return "the same records" if same else "other records"


def outcome_with_index(original, shard):
    """What the source gives that was indexed when the shard was whole."""
    try:
        source = make_source(f"tar:{shard.path}")
    except ValueError as error:
        assert str(shard.path) in str(error)
        return "refused"
    if len(source) != COUNT:
        return "silent: the count"
    refused = 0
    for number in range(COUNT):
        try:
            if source[number] != original.examples[number]:
                return "silent: an example"
        except SampleError as error:
            assert error.key
            refused += 1
        except OSError as error:  # the shard ends before its index does
            assert str(shard.path) in str(error)
            refused += 1
    return "examples refused" if refused else "the same examples"


def campaign(folder, monkeypatch, truncations, flips, structures):
    """Damages archives; gives what became of them, and the most calls that one took."""
    monkeypatch.setattr(tar_index, "EDGE", 1024)  # most of a small archive is its middle
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    # The prefix makes names longer than a header's field: extended headers.
    originals = [Original(folder, f, "d" * 110 + "/" if f else "") for f in formats]
    rng = np.random.Generator(np.random.Philox(key=5))
    counts, most = collections.Counter(), 0
    for damage, number in ((truncated, truncations), (flipped, flips), (restructured, structures)):
        for turn in range(number):
            original = originals[turn % len(originals)]
            kind, content = damage(original, rng)
            original.path.write_bytes(content)
            shard = stat(data_path(str(original.path)))
            with counted_calls() as calls:
                alone = outcome_by_itself(original, shard)
                indexed = outcome_with_index(original, shard)
            most = max(most, calls.number)
            # Where the archive is another one, `data check` says so.
            found = (
                content == original.content
                or check_tar(shard, members=TarMembers(), decode=False, packed=None).findings
            )
            counts[kind, "alone", alone] += 1
            counts[kind, "indexed", indexed] += 1
            counts[kind, "check", "found" if found else "silent"] += 1
    return counts, most


def silent(counts):
    """The outcomes that may not be: damage of which nothing is said, and forbidden members."""
    return {
        (kind, how, outcome): number
        for (kind, how, outcome), number in counts.items()
        if "silent" in outcome
        or (outcome == "other records" and kind != "restructured")
        or (kind == "forbidden" and how == "alone" and outcome != "refused")
    }


def test_few_damaged_archives(tmp_path, monkeypatch):
    counts, most = campaign(tmp_path, monkeypatch, 60, 60, 120)
    assert silent(counts) == {} and most < MOST_CALLS
    assert counts["truncated", "alone", "refused"] == 60
    assert counts["flipped", "alone", "refused"] >= 55
    assert counts["restructured", "alone", "refused"] >= 50
    assert counts["forbidden", "alone", "refused"] >= 8


@pytest.mark.nightly
def test_ten_thousand_damaged_archives(tmp_path, monkeypatch):
    counts, most = campaign(tmp_path, monkeypatch, 4000, 4000, 2000)
    assert silent(counts) == {} and most < MOST_CALLS
    assert counts["truncated", "alone", "refused"] == 4000
    assert counts["flipped", "alone", "refused"] >= 3900
    assert counts["forbidden", "alone", "refused"] >= 200


def test_a_lenient_reader_is_caught(tmp_path, monkeypatch):
    """Negative control: the standard library's reader in place of the strict one."""

    def lenient(file, where):
        content = file.read(1 << 30)
        try:
            with tarfile.open(fileobj=io.BytesIO(content)) as archive:
                for m in archive.getmembers():
                    crc = zlib.crc32(content[m.offset_data : m.offset_data + m.size])
                    yield Member(m.name, m.offset_data, m.size, crc)
        except tarfile.TarError as error:
            raise ValueError(f"{where}: {error}") from error

    monkeypatch.setattr(tar_index, "read_members", lenient)
    counts, _ = campaign(tmp_path, monkeypatch, 30, 30, 60)
    found = collections.Counter()
    for (kind, _, _), number in silent(counts).items():
        found[kind] += number
    assert found["truncated"] + found["flipped"] > 20 and found["forbidden"] >= 4


ALL_TYPES = tuple(bytes([number]) for number in range(256))


@pytest.mark.parametrize(
    "fault",
    [
        ("REGULAR", ALL_TYPES),
        ("checked_name", lambda raw, where, start: raw.decode("utf-8", "replace")),
    ],
    ids=["types", "names"],
)
def test_a_reader_that_lets_forbidden_members_pass_is_caught(tmp_path, monkeypatch, fault):
    """Negative control: all but one of the checks."""
    monkeypatch.setattr(tar_reader, *fault)
    counts, _ = campaign(tmp_path, monkeypatch, 0, 0, 60)
    assert sum(n for (kind, *_), n in silent(counts).items() if kind == "forbidden") > 0
