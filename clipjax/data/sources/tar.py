"""Tar shards in the layout of webdataset and img2dataset, read by offset."""

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from clipjax.data.paths import expand
from clipjax.data.source import Example, SampleError
from clipjax.data.tar_index import Member, read_members

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
TEXT_EXTENSIONS = ("txt", "json", "cls")


class _Entry(NamedTuple):
    shard: int
    key: str
    image: Member | None
    parts: dict[str, Member]


class TarShards:
    """Image-text pairs in tar archives: `000.jpg`, `000.txt`, `000.json`, `000.cls`.

    A key is a member's name up to the first dot of its last part. The text is that of `.txt`,
    else `caption` of `.json`, else the class's name.

    Args:
        where: a file, or a pattern such as `DIR/{00000..00099}.tar` or `DIR/*.tar`.
        ignore: extensions of members that are not used; another unknown one is an error.
        class_names: names of the numbers in `.cls`.

    Raises:
        ValueError: if a shard is missing or damaged, holds a key twice, or an unknown member.
    """

    def __init__(
        self, where: str, *, ignore: Sequence[str] = (), class_names: Sequence[str] | None = None
    ):
        self._shards = expand(where)
        self._files = [_ShardFile(path) for path in self._shards]
        self.class_names = None if class_names is None else tuple(class_names)
        self._entries = [
            entry
            for number, file in enumerate(self._files)
            for entry in _index(number, file, {e.lstrip(".") for e in ignore})
        ]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Example:
        entry = self._entries[index]
        key = f"{self._shards[entry.shard].name}/{entry.key}"
        if entry.image is None:
            raise SampleError("missing_image", "the shard has no picture of this key", key)
        file = self._files[entry.shard]
        example: Example = {"image": file.read(entry.image), "text": "", "key": key}
        if self.class_names is not None and "cls" in entry.parts:
            example["label"] = self._label(file.read(entry.parts["cls"]), key)
            example["text"] = self.class_names[example["label"]]
        if "txt" in entry.parts:
            example["text"] = _decode(file.read(entry.parts["txt"]), key)
        elif "json" in entry.parts:
            example["text"] = _caption_of(file.read(entry.parts["json"]), key)
        elif "label" not in example:
            raise SampleError("missing_text", "the shard has no caption of this key", key)
        return example

    def fingerprint(self) -> str:
        """SHA-256 of the shards' names and sizes, and of the place of every member."""
        digest = hashlib.sha256(json.dumps(["tar/1", self.class_names]).encode())
        for path, file in zip(self._shards, self._files, strict=True):
            digest.update(f"{path.name}\0{file.size}\n".encode())
        for entry in self._entries:
            parts = sorted(entry.parts.items())
            digest.update(json.dumps([entry.shard, entry.key, entry.image, parts]).encode())
        return digest.hexdigest()

    def _label(self, content: bytes, key: str) -> int:
        text = content.strip().decode("ascii", errors="replace")
        if not text.isdecimal() or int(text) >= len(self.class_names):
            raise SampleError("label", f"the class is {text!r} of {len(self.class_names)}", key)
        return int(text)


class _ShardFile:
    """Reads by offset, from any number of threads."""

    def __init__(self, path: epath.Path):
        self.path, self.size = path, path.stat().length

    def members(self) -> list[Member]:
        with self.path.open("rb") as file:
            return list(read_members(file, str(self.path)))

    def read(self, member: Member) -> bytes:
        # Opened for every read: thousands of shards would exceed the limit of open files.
        with self.path.open("rb") as file:
            file.seek(member.offset)
            content = file.read(member.size)
        if len(content) != member.size:
            raise SampleError("shard_cut", f"{self.path} became shorter", member.name)
        return content


def _index(number: int, file: _ShardFile, ignore: set[str]) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
    for member in file.members():
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, extension = folder + slash + stem, extension.lower()
        if extension in ignore:
            continue
        if extension not in IMAGE_EXTENSIONS + TEXT_EXTENSIONS:
            raise ValueError(
                f"{file.path} holds {member.name!r}: the extension {extension!r} is unknown. A "
                "key ends at the first dot; extensions that are not needed go into "
                "data.source.ignore"
            )
        entry = entries.get(key) or _Entry(number, key, None, {})
        twice = entry.image if extension in IMAGE_EXTENSIONS else entry.parts.get(extension)
        if twice is not None:
            raise ValueError(f"{file.path} holds {twice.name!r} and {member.name!r}: a key twice")
        if extension in IMAGE_EXTENSIONS:
            entry = entry._replace(image=member)
        else:
            entry.parts[extension] = member
        entries[key] = entry
    return list(entries.values())


def _decode(content: bytes, key: str) -> str:
    try:
        return content.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise SampleError("text_encoding", f"the caption is not UTF-8: {error}", key) from error


def _caption_of(content: bytes, key: str) -> str:
    try:
        caption = json.loads(content).get("caption")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, RecursionError) as error:
        raise SampleError("json", f"the .json is unreadable: {error}", key) from error
    if not isinstance(caption, str):
        raise SampleError("missing_text", f"caption in the .json is {caption!r}", key)
    return caption
