"""A bucket in memory that fails as told."""

import contextlib

from fsspec.implementations.memory import MemoryFileSystem

from clipjax.data.storage import files as storage
from clipjax.data.storage import retrying


class Bucket(MemoryFileSystem):
    """Fails the next requests with the errors of `failures`; counts requests and bytes."""

    cachable = False
    store = {}  # noqa: RUF012  fsspec's class attribute; of the tests alone
    pseudo_dirs = [""]  # noqa: RUF012

    def __init__(self, **options):
        super().__init__(**options)
        self.failures, self.short, self.requests = [], 0, []

    def _request(self, what, *details):
        self.requests.append((what, *details))
        if self.failures:
            raise self.failures.pop(0)

    def info(self, path, **kwargs):
        self._request("info", path)
        return super().info(path, **kwargs)

    def ls(self, path, detail=True, **kwargs):
        self._request("ls", path)
        return super().ls(path, detail, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._request("cat", path, start, end)
        content = super().cat_file(path, start, end, **kwargs)
        if self.short:
            self.short -= 1
            return content[: len(content) // 2]
        return content

    def bytes_read(self, name):
        """Bytes of the ranges that were asked for, of files whose name ends so."""
        return sum(r[3] - r[2] for r in self.requests if r[0] == "cat" and r[1].endswith(name))


@contextlib.contextmanager
def bucket(monkeypatch, files=()):
    """Puts a bucket of these files in place of memory://; gives it and the delays of retries."""
    system, delays = Bucket(), []
    system.store.clear()
    for name, content in dict(files).items():
        system.pipe_file(f"memory://{name}", content)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "filesystem", lambda scheme: system)
        patch.setattr(retrying.time, "sleep", delays.append)
        yield system, delays
    system.store.clear()
