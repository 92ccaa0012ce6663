"""Datasets as CLIP_benchmark writes them: tar shards of a split, and what stands beside it.

ROOT/classnames.txt                           a class a line, in the order of the labels
ROOT/zeroshot_classification_templates.txt    a template a line, with `{c}` for the class
ROOT/dataset_type.txt                         `retrieval`; `multilabel`; without it, classes
ROOT/test/nshards.txt                         number of shards
ROOT/test/0.tar, 1.tar, ...
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

from clipjax.data.classes.named_lists import strings_of_lines
from clipjax.data.storage.files import StoredFile, find_files, is_folder, list_files, read, read_all
from clipjax.data.storage.paths import DataPath, data_path, expand_braces
from clipjax.data.storage.text_files import decode_text

NUM_SHARDS = "nshards.txt"
CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
KIND = "dataset_type.txt"
KINDS = ("classification", "retrieval", "multilabel")
_END = 1024  # bytes, zeros, of the end of an archive
SPLITS = ("test", "train", "val", "validation", "dev")


class BenchmarkFolder(NamedTuple):
    """What stands beside the split of a dataset.

    Attributes:
        class_names: names in the order of the labels; None without `classnames.txt`.
        templates: prompts with `{c}` for the class; None without their file.
    """

    class_names: tuple[str, ...] | None
    templates: tuple[str, ...] | None
    kind: str


def find_shards(where: str) -> list[StoredFile]:
    """Finds tar shards: those of a folder that says their number, else those of a pattern."""
    path = data_path(where)
    if expand_braces(where) != [where] or path.suffix == ".tar" or not is_folder(path):
        return find_files(where, suffix=".tar")
    files = {file.path.name: file for file in list_files(path)}
    if NUM_SHARDS not in files:
        splits = [f"tar:{path / name}" for name in SPLITS if _is_there(path / name, NUM_SHARDS)]
        if splits:
            raise ValueError(
                f"{path} is a dataset of CLIP_benchmark's layout: name a split, "
                f"{' or '.join(splits)}"
            )
        return find_files(where, suffix=".tar")  # which says what to write instead
    said = _read_text(path / NUM_SHARDS).strip()
    if not said.isdecimal() or not 0 < int(said) < 10**7:
        raise ValueError(f"{path / NUM_SHARDS} says {said!r:.40}, expected the number of shards")
    names = [f"{number}.tar" for number in range(int(said))]
    missing = [name for name in names if name not in files]
    others = [name for name in files if name.endswith(".tar") and name not in set(names)]
    if missing or others:
        wrong = [f"{len(missing)} are missing, e.g. {missing[0]}"] if missing else []
        wrong += [f"{len(others)} are others, e.g. {others[0]}"] if others else []
        raise ValueError(
            f"{path / NUM_SHARDS} says that there are {said} shards, 0.tar to {names[-1]}: "
            f"{'; '.join(wrong)}. Fetch the folder again; to read what is there, write {path}/*.tar"
        )
    return [files[name] for name in names]


def read_beside(shards: Sequence[StoredFile]) -> BenchmarkFolder | None:
    """Reads what stands beside the split that shards are of; None where that is no such folder."""
    folders = {shard.path.parent for shard in shards}
    if len(folders) != 1:
        return None
    (split,) = folders
    if not _is_there(split, NUM_SHARDS):
        return None
    # The folder above `.` is not `.`.
    root = DataPath(os.path.abspath(split.url)).parent if split.is_local else split.parent
    there = {file.path.name for file in list_files(root)}
    kind = _read_text(root / KIND).strip().lower() if KIND in there else KINDS[0]
    if kind not in KINDS:
        raise ValueError(f"{root / KIND} says {kind!r:.40}; what can be read is {', '.join(KINDS)}")
    return BenchmarkFolder(
        _strings(root / CLASS_NAMES, "class names", False) if CLASS_NAMES in there else None,
        _strings(root / TEMPLATES, "templates", True) if TEMPLATES in there else None,
        kind,
    )


def check_whole(where: str) -> BenchmarkFolder | None:
    """Looks at the folder of a split without reading its shards.

    Raises:
        ValueError: if shards are missing, or some on this machine have no end.
    """
    shards = find_shards(where)
    local = [shard for shard in shards if shard.path.is_local]
    cut = [s for s in local if s.size < _END or read(s.path, s.size - _END, _END).strip(b"\0")]
    if cut:
        raise ValueError(
            f"{len(cut)} of {len(shards)} shards are cut short, e.g. {cut[0].path}: the end marker "
            "of an archive is missing. Fetch them again"
        )
    return read_beside(shards)


def _is_there(folder: DataPath, name: str) -> bool:
    if folder.is_local:
        return os.path.isfile((folder / name).url)
    return name in {file.path.name for file in list_files(folder)}


def _strings(path: DataPath, what: str, comments: bool) -> tuple[str, ...]:
    found = strings_of_lines(_read_text(path), str(path), comments=comments)
    if not found:
        raise ValueError(f"{path} holds no {what}; write one a line, or remove it")
    return tuple(found.values())


def _read_text(path: DataPath) -> str:
    return decode_text(read_all(path), path)
