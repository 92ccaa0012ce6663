"""Reading a tar shard to find what is damaged in it."""

import collections
from collections.abc import Collection, Sequence

from clipjax.data.findings import (
    Checked,
    check_text,
    checked_file,
    counted_left_out,
    message_of,
    told,
)
from clipjax.data.packed_folder import PackedFolder
from clipjax.data.preprocess import decode_image
from clipjax.data.retrying import StorageError
from clipjax.data.source import SampleError
from clipjax.data.sources.fields import text_of
from clipjax.data.sources.tar import text_and_label, wanted_parts
from clipjax.data.storage import StoredFile, read
from clipjax.data.tar_index import (
    IMAGE_EXTENSIONS,
    TEXT_EXTENSIONS,
    TarIndex,
    extensions_of,
    make_index,
)
from clipjax.data.tar_indexing import find_index
from clipjax.data.tar_reader import PIECE


def check_tar(
    shard: StoredFile,
    *,
    ignore: str | Sequence[str] = (),
    class_names: Sequence[str] | None = None,
    language: str | None = None,
    decode: bool = False,
    packed: PackedFolder | None = None,
) -> Checked:
    """Reads a tar shard strictly and compares it with its index and manifest, if it has them.

    Args:
        shard: the file.
        ignore: extensions that are not used, as of the source.
        class_names: of the source.
        language: of the source.
        decode: whether pictures are decoded, too.
        packed: the folder that it was packed to.
    """
    where, ignored = str(shard.path), extensions_of(ignore)
    faults: dict[tuple[str, str], SampleError] = {}

    def look(key: str, extension: str, content: bytes) -> None:
        is_image = extension in ("image", *IMAGE_EXTENSIONS)
        try:
            if extension in TEXT_EXTENSIONS:
                found = text_and_label({extension: content}, key, class_names)
                check_text(found, key)
                if language is not None and extension != "cls":
                    text_of(found["text"], key, language)
            elif decode and is_image:
                decode_image(content)
        except SampleError as error:
            faults[key, "image" if is_image else extension] = error

    try:
        fresh = TarIndex(shard.path, content=make_index(shard, look))
        problems = _compare(shard, fresh, ignored, packed)
    except StorageError:  # of the storage, and not of the shard
        raise
    except (ValueError, OSError) as error:
        return checked_file(0, where, [message_of(where, error)])
    unusable: dict[str, list[str]] = collections.defaultdict(list)
    for record in fresh:
        try:
            parts = wanted_parts(record, record.key, ignored, class_names)
            if parts["image"].size == 0:
                raise SampleError("image_empty", "the image has 0 bytes")
            if language is not None and parts.keys().isdisjoint(("txt", "json")):
                text_of(class_names and class_names[0], record.key, language)
            for name, part in parts.items():
                if part.size > PIECE and (decode or name != "image"):  # `look` was not shown it
                    look(record.key, name, read(shard.path, part.offset, part.size))
                if (record.key, name) in faults:
                    raise faults[record.key, name]
        except SampleError as error:
            unusable[error.reason].append(f"{record.key} ({error.message})")
    problems += told(unusable, len(fresh))
    return checked_file(len(fresh), where, problems, counted_left_out(unusable))


def _compare(
    shard: StoredFile, fresh: TarIndex, ignored: Collection[str], packed: PackedFolder | None
) -> list[str]:
    """Says how a shard differs from its manifest and index, and what it holds besides."""
    problems = list(packed.compare(shard, fresh.shard["sha256"])) if packed else []
    if not len(fresh) and not (packed and packed.is_empty(shard)):
        problems.append("it is empty: it holds no image-text pair")
    known = {*IMAGE_EXTENSIONS, *TEXT_EXTENSIONS, *ignored}
    counts = {name: n for name, n in fresh.header["extensions"].items() if name not in known}
    problems += [f"{n} members have the unknown extension {name!r}" for name, n in counts.items()]
    if counts:
        problems[-1] += (
            ": a key ends at the first dot; what is not needed is declared: "
            f"?ignore={','.join(counts)}"
        )
    try:
        index = find_index(shard)
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
