"""Reading a stored file in order, a block a request."""

import hashlib
import io

from clipjax.data.storage.files import StoredFile, read

BLOCK = 8 << 20  # bytes of one request where a file is read from end to end


class FileReader(io.RawIOBase):
    """A binary file that is read in order, or at any place, a block a request."""

    def __init__(self, file: StoredFile, *, block: int = BLOCK):
        self.file, self._block_size = file, block
        self._start, self._block, self._position = 0, b"", 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def read(self, size: int | None = -1) -> bytes:
        """Reads so many bytes, fewer only at the end of the file."""
        whole = size is None or size < 0
        end = self.file.size if whole else min(self._position + (size or 0), self.file.size)
        parts = []
        while self._position < end:
            inside = self._position - self._start
            if not 0 <= inside < len(self._block):
                self._start, inside = self._position, 0
                wanted = min(max(self._block_size, end - self._start), self.file.size - self._start)
                self._block = read(self.file.path, self._start, wanted)
            part = self._block[inside : inside + end - self._position]
            parts.append(part)
            self._position += len(part)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a byte."""
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.file.size}
        self._position = starts[whence] + offset
        return self._position

    def tell(self) -> int:
        """Gives the place of the next byte."""
        return self._position


class HashingReader(FileReader):
    """A file that is read once from its start to its end, and hashed on the way."""

    def __init__(self, file: StoredFile, *, block: int = BLOCK):
        super().__init__(file, block=block)
        self._digest = hashlib.sha256()

    def read(self, size: int | None = -1) -> bytes:
        """Reads so many bytes, fewer only at the end of the file."""
        content = super().read(size)
        self._digest.update(content)
        return content

    def sha256(self) -> str:
        """SHA-256 of what was read."""
        return self._digest.hexdigest()


def file_sha256(file: StoredFile) -> str:
    """SHA-256 of a file's bytes."""
    reader = HashingReader(file, block=1 << 20)
    while reader.read(1 << 20):
        pass
    return reader.sha256()
