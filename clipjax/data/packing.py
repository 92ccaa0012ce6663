"""Any source into shards: tar archives or packed records, the same bytes for the same input.

DIR/00000.tar, 00001.tar, ... hold `shard_size` examples each, in the order of the source. A shard
is written under another name, synced and renamed; beside it, until the end, stands a small file
that says what it holds. So a job that was stopped goes on where it stood; a shard that is not
what was written is made anew. `manifest.json` is written last.
"""

import collections
import concurrent.futures
import dataclasses
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from absl import logging
from PIL import Image

from clipjax.data.cache import sync
from clipjax.data.paths import DataPath
from clipjax.data.preprocess import as_pil, decode_image, to_rgb
from clipjax.data.records import file_sha256, pack_record, write_records
from clipjax.data.source import DataSource, Example, SampleError
from clipjax.data.sources.mix import Mix
from clipjax.data.storage import local_path, stat, write
from clipjax.data.tar_reader import MAX_MEMBER_BYTES, MAX_MEMBERS

FORMATS = {"tar": ".tar", "arrayrecord": ".array_record"}
MANIFEST, JOB = "manifest.json", "packing.json"
MANIFEST_FORMAT = "clipjax.packing/1"
MAX_TAR_EXAMPLES = MAX_MEMBERS // 4  # picture, .json, .txt and .cls
# How the formats begin that shards may hold: extension, offset, bytes there.
_MAGIC = (
    ("jpg", 0, b"\xff\xd8\xff"),
    ("png", 0, b"\x89PNG\r\n\x1a\n"),
    ("webp", 8, b"WEBP"),
    ("gif", 0, b"GIF8"),
    ("bmp", 0, b"BM"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packing:
    """How examples are packed.

    Attributes:
        format: `tar` (webdataset's layout) or `arrayrecord`.
        shard_size: examples a shard, unusable ones included; of a tar shard, up to 250,000.
        resize: pixels of the shorter side that larger pictures are brought to; None leaves
            encoded pictures as they are, byte for byte.
        quality: of the JPEGs that resized pictures become.
        max_bad_fraction: of unusable examples in all, before the job fails.
    """

    format: str = "tar"
    shard_size: int = 10_000
    resize: int | None = None
    quality: int = 95
    max_bad_fraction: float = 0.01

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"format {self.format!r}: allowed are {', '.join(FORMATS)}")
        largest = MAX_TAR_EXAMPLES if self.format == "tar" else 10**9
        for name, low, high in (
            ("shard_size", 1, largest),
            ("resize", 1, 10**5),
            ("quality", 1, 100),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}: allowed are {low}..{high}")


def pack(
    source: DataSource,
    directory: str | os.PathLike[str],
    how: Packing,
    *,
    workers: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Packs a source, several shards at a time.

    Args:
        source: what is packed; its fingerprint goes into the manifest.
        directory: local; new, or that of the same job, which then goes on. If that was finished,
            shards that are gone or of another size are made anew.
        how: format and sizes.
        workers: shards at a time; by default one a core.

    Yields:
        `(shards done, shards in all)` as each is finished.

    Raises:
        ValueError: if the directory is of another job, or in a bucket, or too many examples are
            unusable.
    """
    directory = local_path(directory)
    identity = _identity(source, how)
    if _is_finished(directory, identity) and not _reopen(directory, identity):
        return
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / JOB, identity)
    bounds = range(0, len(source), how.shard_size)
    suffix = FORMATS[how.format]
    paths = [directory / f"{number:05d}{suffix}" for number in range(len(bounds))]
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        try:
            jobs = [
                pool.submit(_pack_shard, source, start, path, how)
                for start, path in zip(bounds, paths, strict=True)
            ]
            for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
                job.result()
                yield done, len(jobs)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    _finish(directory, paths, identity, how)


def _identity(source: DataSource, how: Packing) -> dict[str, Any]:
    options = dataclasses.asdict(how)
    del options["max_bad_fraction"]  # it decides whether there is a result, not which
    return {
        "format": MANIFEST_FORMAT,
        "fingerprint": source.fingerprint(),
        "examples": len(source),
        "options": options,
        "pillow": PIL.__version__ if how.resize else None,  # its JPEGs change with its version
        "class_names": None if source.class_names is None else list(source.class_names),
    }


def _is_finished(directory: Path, identity: dict[str, Any]) -> bool:
    for name in (MANIFEST, JOB):
        path = directory / name
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            odd = [key for key, value in identity.items() if found.get(key) != value]
            if odd:
                raise ValueError(
                    f"{directory} holds another job: its {odd[0]} is {found.get(odd[0])!r:.80}, "
                    f"here it is {identity[odd[0]]!r:.80}; give another directory"
                )
            if name == MANIFEST:
                return True
    if directory.exists() and any(directory.iterdir()) and not (directory / JOB).exists():
        raise ValueError(f"{directory} is not empty, and no packing job's; give another directory")
    return False


def _reopen(directory: Path, identity: dict[str, Any]) -> bool:
    """Makes a finished job of which shards are lost one that goes on; says whether there are."""
    shards = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["shards"]
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    lost = [shard["name"] for shard in shards if sizes.get(shard["name"]) != shard["bytes"]]
    if lost:
        logging.warning("%s lost %s, which is made anew.", directory, ", ".join(lost))
        for shard in shards:
            _write_json(_note_of(directory / shard["name"]), shard)
        _write_json(directory / JOB, identity)
        (directory / MANIFEST).unlink()
    return bool(lost)


def _finish(directory: Path, paths: list[Path], identity: dict[str, Any], how: Packing) -> None:
    shards = [json.loads(_note_of(path).read_text(encoding="utf-8")) for path in paths]
    skipped: collections.Counter[str] = collections.Counter()
    for shard in shards:
        skipped.update(shard["skipped"])
    if skipped.total() > how.max_bad_fraction * identity["examples"]:
        worst = max(shards, key=lambda shard: sum(shard["skipped"].values()))
        raise ValueError(
            f"{skipped.total()} of {identity['examples']} examples are unusable ({dict(skipped)}), "
            f"most of them in what became {worst['name']}; allowed is a fraction of "
            f"{how.max_bad_fraction}. Mend the source, or raise --max_bad_fraction"
        )
    count = sum(shard["count"] for shard in shards)
    manifest = {**identity, "count": count, "skipped": dict(sorted(skipped.items()))}
    _write_json(directory / MANIFEST, {**manifest, "shards": shards})
    for path in (*map(_note_of, paths), directory / JOB):
        path.unlink()


def _note_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.packed")


def _pack_shard(source: DataSource, start: int, path: Path, how: Packing) -> None:
    note = _note_of(path)
    if note.exists() and path.exists():
        if _is_whole(path, json.loads(note.read_text(encoding="utf-8")), how):
            return
        logging.warning("%s is not what was written: it is made anew.", path)
    skipped: collections.Counter[str] = collections.Counter()
    examples = _usable(source, range(start, min(start + how.shard_size, len(source))), skipped, how)
    work = path.with_name(f"{path.name}.tmp")
    if how.format == "tar":
        count = _write_tar(work, examples)
        sync(work)
        size, digest = work.stat().st_size, file_sha256(stat(DataPath(str(work))))
    else:
        class_names = None if source.class_names is None else list(source.class_names)
        manifest = write_records(work, examples, class_names=class_names)
        count, size, digest = (manifest[key] for key in ("count", "bytes", "sha256"))
        beside = work.with_name(f"{work.name}.json")
        beside.rename(path.with_name(f"{path.name}.json"))
    work.rename(path)
    _write_json(
        note,
        {
            "name": path.name,
            "count": count,
            "bytes": size,
            "sha256": digest,
            "skipped": dict(sorted(skipped.items())),
        },
    )


def _is_whole(path: Path, shard: dict[str, Any], how: Packing) -> bool:
    if how.format == "arrayrecord" and not path.with_name(f"{path.name}.json").exists():
        return False
    file = stat(DataPath(str(path)))
    return file.size == shard["bytes"] and file_sha256(file) == shard["sha256"]


def _usable(
    source: DataSource, indices: range, skipped: collections.Counter[str], how: Packing
) -> Iterator[Any]:
    """Gives the packed form of every example that can be used; counts the rest."""
    pack_example = _members if how.format == "tar" else _record
    for index in indices:
        try:
            example = source[index]
            if how.format == "arrayrecord" and isinstance(source, Mix):
                # Two of its sources may use the same key.
                example = {**example, "key": f"{example['key']}#{index}"}
            packed = pack_example(index, example, *encode(example["image"], how))
        except SampleError as error:
            skipped[error.reason] += 1
            continue
        yield packed


def encode(image: bytes | np.ndarray | Image.Image, how: Packing) -> tuple[str, bytes]:
    """Encodes a picture for a shard; gives its extension and its bytes.

    Raises:
        SampleError: if it is of an unknown format, or does not decode.
    """
    if isinstance(image, bytes):
        picture = None if how.resize is None else decode_image(image)
        if picture is None or min(picture.size) <= how.resize:
            return _extension_of(image), image
    else:
        picture = as_pil(image)
    file = io.BytesIO()
    if how.resize is None or min(picture.size) <= how.resize:
        picture.save(file, "PNG", compress_level=6)  # pixels stay what they are
        return "png", file.getvalue()
    factor = how.resize / min(picture.size)
    size = tuple(max(how.resize, round(side * factor)) for side in picture.size)
    small = to_rgb(picture).resize(size, Image.Resampling.BICUBIC)
    small.save(file, "JPEG", quality=how.quality, subsampling="4:2:0")
    return "jpg", file.getvalue()


def _extension_of(data: bytes) -> str:
    for extension, offset, magic in _MAGIC:
        if data[offset : offset + len(magic)] == magic:
            return extension
    raise SampleError("image_format", f"a picture begins with {data[:8]!r}")


def _write_tar(path: Path, examples: Iterator[list[tuple[str, bytes]]]) -> int:
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for members in examples:
            for name, content in members:
                entry = tarfile.TarInfo(name)  # no time, no owner
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
            count += 1
    return count


def _members(index: int, example: Example, extension: str, image: bytes) -> list[tuple[str, bytes]]:
    text = example["text"]
    about: dict[str, Any] = {"key": example["key"]}
    if not isinstance(text, str):
        about["captions"] = text if isinstance(text, dict) else list(text)
    if "label" in example:
        about["label"] = int(example["label"])
    members = {extension: image, "json": _json(about)}
    if isinstance(text, str):
        members["txt"] = text.encode("utf-8")
    if "label" in example:
        members["cls"] = str(int(example["label"])).encode()
    for suffix, content in members.items():
        if len(content) > MAX_MEMBER_BYTES:
            raise SampleError(
                "too_large",
                f"its {suffix} has {len(content)} bytes; a tar shard is read with files of up to "
                f"{MAX_MEMBER_BYTES}",
                example["key"],
            )
    return [(f"{index:09d}.{suffix}", content) for suffix, content in members.items()]


def _record(index: int, example: Example, extension: str, image: bytes) -> bytes:
    text = example["text"]
    if isinstance(text, dict):
        raise ValueError(
            "packed records have no languages: pack this source with --format tar, or choose one "
            "language in its SPEC"
        )
    return pack_record(
        key=example["key"],
        text=(text,) if isinstance(text, str) else tuple(text),
        blobs={"image": image},
        label=example.get("label"),
    )


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True).encode("utf-8")


def _write_json(path: Path, value: Any) -> None:
    content = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    write(DataPath(str(path)), content.encode("utf-8"))
