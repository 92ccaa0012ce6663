import errno
import os

import pytest
from buckets import bucket

from clipjax.data import SampleError
from clipjax.data.sources.folder import read_bytes
from clipjax.data.storage import files as storage
from clipjax.data.storage import retrying
from clipjax.data.storage.file_reader import FileReader
from clipjax.data.storage.files import find_files
from clipjax.data.storage.paths import DataPath, data_path, expand_braces
from clipjax.data.storage.retrying import ShortReadError, StorageError

CONTENT = bytes(range(256)) * 100


class RequestFailed(Exception):
    def __init__(self, code):
        super().__init__(f"status {code}")
        self.code = code


TRANSIENT = [
    ConnectionResetError("reset"),
    TimeoutError("slow"),
    OSError(errno.EIO, "input/output error"),
    OSError(errno.ESTALE, "stale"),
    RequestFailed(503),
    RequestFailed("429"),
]
PERMANENT = [
    FileNotFoundError("gone"),
    PermissionError("forbidden"),
    RequestFailed(403),
    ValueError("a bug"),
    OSError(errno.ENOSPC, "full"),
]


@pytest.fixture
def fake_sleep(monkeypatch):
    delays = []
    monkeypatch.setattr(retrying.time, "sleep", delays.append)
    return delays


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_transient_errors_are_tried_again(monkeypatch, error):
    with bucket(monkeypatch, {"b/x": CONTENT}) as (system, delays):
        system.failures = [error] * (retrying.ATTEMPTS - 1)
        assert storage.read(data_path("memory://b/x"), 10, 20) == CONTENT[10:30]
        assert len(system.requests) == retrying.ATTEMPTS
        for number, delay in enumerate(delays):
            whole = retrying.FIRST_DELAY_S * 2**number
            assert whole / 2 <= delay <= whole
        assert len({round(d / 2**n, 6) for n, d in enumerate(delays)}) > 1  # jitter


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_the_attempts_have_a_limit(monkeypatch, error):
    with bucket(monkeypatch, {"b/x": CONTENT}) as (system, _):
        system.failures = [error] * 100
        with pytest.raises(StorageError) as caught:
            storage.read(data_path("memory://b/x"), 10, 20)
        assert "memory://b/x" in str(caught.value) and "6 times" in str(caught.value)
        assert str(error) in str(caught.value)
        assert len(system.requests) == retrying.ATTEMPTS


def test_the_time_has_a_limit(monkeypatch):
    """Libraries try again themselves, for half a minute each time."""
    with bucket(monkeypatch, {"b/x": CONTENT}) as (system, _):
        system.failures = [TimeoutError("slow")] * 100
        monkeypatch.setattr(retrying.time, "monotonic", lambda: 34.0 * len(system.requests))
        with pytest.raises(StorageError, match="failed 2 times in 68 s"):
            storage.read(data_path("memory://b/x"), 10, 20)


@pytest.mark.parametrize("error", PERMANENT, ids=repr)
def test_permanent_errors_are_raised_at_once(monkeypatch, error):
    with bucket(monkeypatch, {"b/x": CONTENT}) as (system, delays):
        system.failures = [error]
        with pytest.raises(type(error)):
            storage.read(data_path("memory://b/x"), 10, 20)
        assert len(system.requests) == 1 and not delays


def test_a_short_read_is_never_given_out(monkeypatch):
    with bucket(monkeypatch, {"b/x": CONTENT}) as (system, _):
        system.short = 2
        assert storage.read_all(data_path("memory://b/x")) == CONTENT
        system.short = 100
        with pytest.raises(StorageError, match="bytes came of"):
            storage.read_all(data_path("memory://b/x"))
        # Negative control: the file system itself says nothing.
        assert len(system.cat_file("/b/x")) < len(CONTENT)
        assert retrying.is_transient(ShortReadError("short"))


def test_a_local_file_that_became_shorter(tmp_path, fake_sleep):
    path = tmp_path / "x"
    path.write_bytes(CONTENT)
    assert storage.read(data_path(str(path)), 5, 9) == CONTENT[5:14]
    with pytest.raises(StorageError, match="became shorter"):
        storage.read(data_path(str(path)), len(CONTENT) - 5, 9)
    assert not fake_sleep


def test_flaky_local_disks_are_tried_again(tmp_path, monkeypatch, fake_sleep):
    path, failures, plain = tmp_path / "x", [OSError(errno.ESTALE, "stale")] * 2, os.pread
    path.write_bytes(CONTENT)
    monkeypatch.setattr(
        storage.os, "pread", lambda *a: plain(*a) if not failures else throw(failures.pop())
    )
    assert storage.read(data_path(str(path)), 5, 9) == CONTENT[5:14]
    assert len(fake_sleep) == 2


def failing(name, error, times=1):
    """An operating system whose calls of that name fail for one file, so many times."""
    plain, left = getattr(os, name), [error] * times

    def call(path, *arguments, **options):
        if os.fspath(path).endswith("7.png") and left:
            raise left.pop()
        return plain(path, *arguments, **options)

    return call


@pytest.mark.parametrize("name", ["stat", "open"])
@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO])
def test_looking_up_a_local_file_is_tried_again(tmp_path, monkeypatch, fake_sleep, name, number):
    path = tmp_path / "7.png"
    path.write_bytes(CONTENT)
    error = OSError(number, os.strerror(number), str(path))
    monkeypatch.setattr(storage.os, name, failing(name, error))
    assert read_bytes(data_path(str(path)), "k") == CONTENT and len(fake_sleep) == 1
    monkeypatch.setattr(storage.os, name, failing(name, error, 1000))
    with pytest.raises(StorageError, match=r"7\.png failed 6 times"):
        read_bytes(data_path(str(path)), "k")


@pytest.mark.parametrize("name", ["stat", "open"])
def test_a_fault_of_the_machine_is_none_of_an_example(tmp_path, monkeypatch, fake_sleep, name):
    """It would be replaced, and the batch be another."""
    path = tmp_path / "7.png"
    path.write_bytes(CONTENT)
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        error = OSError(number, os.strerror(number), str(path))
        with monkeypatch.context() as patch:
            patch.setattr(storage.os, name, failing(name, error, 1000))
            with pytest.raises(StorageError, match="failed 6 times") as caught:
                read_bytes(data_path(str(path)), "k")
        assert caught.value.__cause__ is error


def test_a_wrong_path_is_the_fault_of_an_example(tmp_path, monkeypatch):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").write_bytes(b"1")
    for name, reason in (
        ("none", "missing_image"),
        ("", "unreadable"),
        ("circle", "unreadable"),
        ("file/x", "unreadable"),
        ("x" * 300, "unreadable"),
    ):
        with pytest.raises(SampleError) as caught:
            read_bytes(data_path(f"{tmp_path}/{name}"), "k")
        assert caught.value.reason == reason, name
    large = tmp_path / "large"
    large.touch()
    os.truncate(large, 2**40)
    for what in ("image", "text"):
        with pytest.raises(SampleError, match=f"no {what} has") as caught:
            read_bytes(data_path(str(large)), "k", what)
        assert caught.value.reason == "unreadable"
    (tmp_path / "7.png").write_bytes(b"1")
    monkeypatch.setattr(storage.os, "open", failing("open", PermissionError(errno.EACCES, "no")))
    with pytest.raises(SampleError, match="unreadable"):
        read_bytes(data_path(f"{tmp_path}/7.png"), "k")


def test_a_link_to_nothing_is_named(tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "0.tar").write_bytes(b"1")
    (folder / "1.tar").symlink_to("/none/1.tar")
    (folder / ".#lock").symlink_to("me@here:1")  # an editor's
    with pytest.raises(ValueError, match=r"/1\.tar is a link to /none/1\.tar, where nothing is"):
        find_files(f"{folder}/*.tar")
    with pytest.raises(ValueError, match=r"/1\.tar is a link"):
        storage.list_files(data_path(str(tmp_path)), recursive=True)
    assert storage.list_files(data_path(str(tmp_path))) == []  # what is not listed is not judged
    (folder / "1.tar").unlink()
    (folder / "1.tar").symlink_to("0.tar")
    (folder / "e").symlink_to("..")
    assert len(find_files(f"{folder}/*.tar")) == 2


def throw(error):
    raise error


@pytest.mark.parametrize("block", [1, 100, 7000, 1 << 20])
def test_a_reader_gives_what_the_file_holds(monkeypatch, block):
    with bucket(monkeypatch, {"b/x": CONTENT}) as (system, _):
        reader = FileReader(storage.stat(data_path("memory://b/x")), block=block)
        assert reader.read(10) + reader.read(3000) == CONTENT[:3010]
        reader.seek(25_000)
        assert reader.read() == CONTENT[25_000:] and reader.read(5) == b""
        reader.seek(7)
        assert reader.read(2) == CONTENT[7:9] and reader.tell() == 9
        assert all(r[3] - r[2] >= min(block, 600) for r in system.requests if r[0] == "cat")


def test_files_are_found_in_buckets(monkeypatch):
    files = {f"b/d/x-{i:03d}.tar": b"x" * i for i in range(20)} | {"b/d/e/y.tar": b"y"}
    with bucket(monkeypatch, files) as (system, _):
        found = find_files("memory://b/d/x-{008..011}.tar")
        assert [(f.path.name, f.size) for f in found] == [
            (f"x-{i:03d}.tar", i) for i in range(8, 12)
        ]
        assert len(system.requests) == 1  # a listing, whatever the number of files
        assert len(find_files("memory://b/d/*.tar")) == 20
        everything = storage.list_files(data_path("memory://b/d"), recursive=True)
        assert str(everything[0].path) == "memory://b/d/e/y.tar"
        assert storage.is_folder(data_path("memory://b/d/e"))
        with pytest.raises(ValueError, match="x-020"):
            find_files("memory://b/d/x-{018..021}.tar")
        with pytest.raises(ValueError, match="there is no file"):
            find_files("memory://b/none/*.tar")


def test_no_file_is_found_twice(tmp_path):
    for number in range(1, 13):
        (tmp_path / f"x-{number}.tar").write_bytes(b"1")
    found = find_files(f"{tmp_path}/x-{{1..2}}.tar")
    assert [file.path.name for file in found] == ["x-1.tar", "x-2.tar"]
    with pytest.raises(ValueError, match=r"finds 3 of 12 files more than once, e\.g\. .*x-10\.tar"):
        find_files(f"{tmp_path}/x-{{1..12}}*.tar")


def test_folders_and_other_files_are_told_from_shards(tmp_path, monkeypatch):
    for name in ("0.tar", "0.tar.index", "0.parquet", "0_stats.json"):
        (tmp_path / name).write_bytes(b"1")
    with pytest.raises(ValueError, match=rf"{tmp_path} is a folder: write {tmp_path}/\*\.tar, or"):
        find_files(f"{tmp_path}", suffix=".tar")
    message = rf"finds 3 files that are no \.tar, e\.g\. .*: write {tmp_path}/\*\.tar$"
    with pytest.raises(ValueError, match=message):
        find_files(f"{tmp_path}/*", suffix=".tar")
    assert len(find_files(f"{tmp_path}/*")) == 4
    assert len(find_files(f"{tmp_path}/0.{{tar,parquet}}", suffix=".tar")) == 2  # they are named
    with bucket(monkeypatch, {"b/d/x.tar": b"x"}), pytest.raises(ValueError, match="d is a folder"):
        find_files("memory://b/d")


def test_what_cannot_be_written_is_seen_before(tmp_path, monkeypatch):
    storage.check_writable(data_path(f"{tmp_path}/new/a.json"))
    assert list((tmp_path / "new").iterdir()) == []
    storage.check_writable(data_path("gs://b/a.json"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a folder: name the file to write"):
        storage.check_writable(data_path(str(tmp_path)))
    with pytest.raises(ValueError, match=r"a\.json cannot be written"):
        storage.check_writable(data_path(f"{tmp_path}/file/a.json"))

    def refuse(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage.tempfile, "TemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"does not allow it \(Permission denied\)"):
        storage.check_writable(data_path(f"{tmp_path}/a.json"))


def test_a_file_that_vanishes_while_it_is_listed_hides_no_other(tmp_path, monkeypatch):
    """Another process's temporary file is renamed at any moment."""
    for name in ("a.tar", "b.tar", ".a.tar.index.x1", "c.tar", "d.tar"):
        (tmp_path / name).write_bytes(b"1")
    scandir = os.scandir

    class Vanishing:
        def __init__(self, where):
            entries = sorted(scandir(where), key=lambda e: (not e.name.startswith("."), e.name))
            self.entries = iter(entries)  # the one that goes comes first
            (tmp_path / ".a.tar.index.x1").unlink()

        def __enter__(self):
            return self.entries

        def __exit__(self, *error):
            pass

        def __iter__(self):
            return self.entries

    monkeypatch.setattr(storage.os, "scandir", Vanishing)
    found = find_files(f"{tmp_path}/*.tar")
    assert [file.path.name for file in found] == ["a.tar", "b.tar", "c.tar", "d.tar"]
    monkeypatch.undo()
    assert storage.list_files(data_path(str(tmp_path / "none"))) == []
    assert storage.list_files(data_path(str(tmp_path / "a.tar"))) == []


def test_a_version_follows_the_content(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"1")
    before = storage.stat(data_path(str(path)))
    os.utime(path, ns=(1, 1))
    assert storage.stat(data_path(str(path))).version != before.version
    with bucket(monkeypatch, {"b/x": b"1"}) as (system, _):
        before = storage.stat(data_path("memory://b/x"))
        assert storage.list_files(data_path("memory://b")) == [before]
        system.pipe_file("/b/x", b"2")
        assert storage.stat(data_path("memory://b/x")) != before


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "d" / "x"
    storage.write(data_path(str(path)), b"1")
    monkeypatch.setattr(storage.os, "fsync", lambda _: throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        storage.write(data_path(str(path)), b"22")
    assert path.read_bytes() == b"1" and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize(
    "where, message",
    [
        ("http://example.com/a.tar", "http://"),
        ("https://example.com/a.tar", "https://"),
        ("ftp://x/y", "ftp://"),
        ("pipe:curl x", None),
        ("file://host/x", "names a host"),
        ("file://../x", "names a host"),
        ("gs://b/../c", "'..'"),
        ("a\0b", "NUL"),
        ("", "empty"),
    ],
)
def test_what_may_be_opened(where, message):
    if message is None:  # a name like any other: nothing is run
        assert data_path(where).is_local
        return
    with pytest.raises(ValueError, match=message):
        data_path(where)


def test_paths():
    path = data_path("gs://bucket/d/x.tar")
    assert (path.scheme, path.name, path.suffix) == ("gs", "x.tar", ".tar")
    assert str(path.parent / "y") == "gs://bucket/d/y" and not path.is_local
    assert str(data_path("file:///d/x")) == "/d/x" and data_path("~/x").url.startswith("/")
    assert expand_braces("a{8..10}-{0..1}")[1:4] == ["a8-1", "a9-0", "a9-1"]
    assert expand_braces("{a,b}-{08..09}{,x}")[:3] == ["a-08", "a-08x", "a-09"]
    assert expand_braces("a{b}{}") == ["a{b}{}"]
    with pytest.raises(ValueError, match="counts down"):
        expand_braces("a{3..1}")
    for scheme, message in (("ftp", "gs, s3 and file$"), ("https", "download it first.*img2data")):
        with pytest.raises(ValueError, match=message):
            data_path(f"{scheme}://x/y.csv")


@pytest.mark.parametrize(
    "root, name, expected",
    [
        ("/d", "a/b.jpg", "/d/a/b.jpg"),
        ("/d", "a/../b.jpg", "/d/a/../b.jpg"),
        ("/d", "/d/x.jpg", "/d/x.jpg"),
        ("/", "/e/x.jpg", "/e/x.jpg"),
        ("gs://b/d", "x.jpg", "gs://b/d/x.jpg"),
        ("gs://b/d", "gs://b/d/x.jpg", "gs://b/d/x.jpg"),
        ("/d", "../x.jpg", None),
        ("/d", "a/../../x.jpg", None),
        ("/d", "/etc/passwd", None),
        ("/d", "/dx/y.jpg", None),
        ("/d", "gs://b/x.jpg", None),
        ("gs://b/d", "gs://c/d/x.jpg", None),
        ("gs://b/d", "/etc/passwd", None),
        ("gs://b/d", "../../c/x", None),
        ("/d", "http://x/y.jpg", None),
        ("/d", "file:///etc/passwd", None),
    ],
)
def test_data_may_not_choose_files_elsewhere(root, name, expected):
    if expected is not None:
        assert str(data_path(root).below(name)) == expected
        return
    with pytest.raises(ValueError, match=r"points outside|http://|no meaning in a bucket"):
        data_path(root).below(name)


def test_a_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setattr(storage.fsspec, "filesystem", lambda _: throw(ImportError("no gcsfs")))
    with pytest.raises(ValueError, match=r"clipjax\[cloud\]"):
        storage.stat(data_path("gs://b/x"))


def test_links_that_multiply_a_folder(tmp_path):
    """Each of 40 folders holds two links to the next: 2 ** 40 ways lead to the last."""
    for number in range(40):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for name in "ab":
            (folder / name).symlink_to(tmp_path / f"{number + 1}")
    (tmp_path / "40").mkdir()
    with pytest.raises(ValueError, match="by more than 64 ways, over links"):
        storage.list_files(DataPath(str(tmp_path / "0")), recursive=True)
    (tmp_path / "40" / "x").touch()
    found = storage.list_files(DataPath(str(tmp_path / "36")), recursive=True)
    assert len(found) == 16
