"""Reading a tar shard to find what is damaged in it."""

import collections

from clipjax.data.images.preprocess import decode_image
from clipjax.data.inspect.findings import Checked, check_text, checked_file, message_of
from clipjax.data.packed.folder import PackedFolder
from clipjax.data.source import SampleError
from clipjax.data.sources.tar_members import TarMembers
from clipjax.data.storage.files import StoredFile, read
from clipjax.data.storage.retrying import StorageError
from clipjax.data.tar.index import TarIndex, make_index
from clipjax.data.tar.indexing import find_index
from clipjax.data.tar.reader import PIECE


def check_tar(
    shard: StoredFile, *, members: TarMembers, decode: bool, packed: PackedFolder | None
) -> Checked:
    """Reads a tar shard strictly and compares it with its index and manifest, if it has them."""
    where = str(shard.path)
    together = len(members.texts) > 1  # one of several texts may be missing
    faults: dict[tuple[str, str], SampleError] = {}

    def look(key: str, extension: str, content: bytes) -> None:
        is_image = extension in ("image", *members.images)
        if extension in members.ignored:
            return
        try:
            if extension == "cls" or (extension in members.text_extensions and not together):
                found = members.text_and_label({extension: content}, key)
                check_text(found, key)
                if extension != "cls":
                    members.finish(found, key)
            elif decode and is_image:
                decode_image(content)
        except SampleError as error:
            faults[key, "image" if is_image else extension] = error

    try:
        fresh = TarIndex(shard.path, content=make_index(shard, look, key_ends=members.key_ends))
        problems = _compare(shard, fresh, members, packed)
    except StorageError:  # of the storage, and not of the shard
        raise
    except (ValueError, OSError) as error:
        return checked_file(0, where, [message_of(where, error)])
    unusable: dict[str, list[str]] = collections.defaultdict(list)
    for record in fresh:
        try:
            parts = members.wanted(record, record.key)
            if parts["image"].size == 0:
                raise SampleError("image_empty", "the image has 0 bytes")
            if parts.keys().isdisjoint(members.text_extensions):
                names = members.class_names
                members.finish({"text": names[0] if names else ""}, record.key)
            if together:
                texts = {n: p for n, p in parts.items() if n in members.text_extensions}
                files = {n: read(shard.path, p.offset, p.size) for n, p in texts.items()}
                members.finish(members.text_and_label(files, record.key), record.key)
            for name, part in parts.items():
                if part.size > PIECE and (decode or name != "image"):  # `look` was not shown it
                    look(record.key, name, read(shard.path, part.offset, part.size))
                if (record.key, name) in faults:
                    raise faults[record.key, name]
        except SampleError as error:
            unusable[error.reason].append(f"{record.key} ({error.message})")
    return checked_file(len(fresh), where, problems, unusable)


def _compare(
    shard: StoredFile, fresh: TarIndex, members: TarMembers, packed: PackedFolder | None
) -> list[str]:
    """Says how a shard differs from its manifest and index, and what it holds besides."""
    problems = list(packed.compare(shard, fresh.shard["sha256"])) if packed else []
    if not len(fresh) and not (packed and packed.is_empty(shard)):
        problems.append("it is empty: it holds no image-text pair")
    held = fresh.header["extensions"]
    counts = {name: n for name, n in held.items() if name not in members.known}
    problems += [f"{n} members have the unknown extension {name!r}" for name, n in counts.items()]
    if counts:
        problems[-1] += f": {members.advice(list(counts))}"
    try:
        index = find_index(shard, key_ends=members.key_ends)
        if index is not None and index.content() != fresh.content():
            problems.append(_difference(index, fresh))
    except StorageError:
        raise
    except (ValueError, OSError) as error:
        problems.append(str(error))
    return problems


def _difference(old: TarIndex, new: TarIndex) -> str:
    """Says how a shard differs from the one that was indexed."""
    if old.shard["bytes"] != new.shard["bytes"] or len(old) != len(new):
        return (
            f"{len(new)} records in {new.shard['bytes']} bytes; its index {old.path} says "
            f"{len(old)} in {old.shard['bytes']}"
        )
    names = []
    for before, now in zip(old, new, strict=True):
        for extension in before.parts.keys() | now.parts.keys():
            if before.key != now.key or before.parts.get(extension) != now.parts.get(extension):
                names.append(f"{before.key}.{extension}")
    if names:
        return f"{len(names)} members are others than in its index {old.path}: {_some(names)}"
    return f"its SHA-256 is another than in its index {old.path}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more
