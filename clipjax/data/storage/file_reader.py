"""Reading a stored file in order, a block a request."""

import io

from clipjax.data.storage.files import StoredFile, read

BLOCK = 8 << 20  # bytes of one request where a file is read from end to end


class FileReader:
    """Reads a file in order, or at any place, a block a request; has `read`, `seek` and `tell`."""

    def __init__(self, file: StoredFile, *, block: int = BLOCK):
        self.file, self._block_size = file, block
        self._start, self._block, self._position = 0, b"", 0

    def read(self, size: int = -1) -> bytes:
        """Reads so many bytes, fewer only at the end of the file."""
        end = self.file.size if size < 0 else min(self._position + size, self.file.size)
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

    def seek(self, position: int) -> None:
        """Goes to a byte, counted from the start."""
        self._position = position

    def tell(self) -> int:
        """Gives the place of the next byte."""
        return self._position

    def as_file(self) -> io.RawIOBase:
        """Gives a binary file of it, for libraries that want one."""
        return _RawFile(self)


class _RawFile(io.RawIOBase):
    def __init__(self, reader: FileReader):
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._reader.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        starts = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._reader.file.size}
        self._reader.seek(starts[whence] + offset)
        return self.tell()

    def read(self, size: int | None = -1) -> bytes:
        return self._reader.read(-1 if size is None else size)
