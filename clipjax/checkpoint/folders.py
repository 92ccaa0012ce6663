"""Step folders of a checkpoint directory: naming, listing, setting aside, deleting.

<directory>/<step>/                a save; it counts only once it holds manifest.json
<directory>/<step>.damaged[.N]/    set aside by a restore that found it wrong; never deleted
<directory>/<step>.unfinished/     a save that was cut off; deleted after the next good save
<directory>/<step>.after_<N>/      set aside as the run went back to step N; never deleted
<directory>/resumed.after_<N>      that it did: once, whatever starts it again
<directory>/<step>.deleting/       on its way out
<directory>/<step>.orbax-checkpoint-tmp*/   being written
"""

import functools
import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from absl import logging

from clipjax import faults
from clipjax.data.storage.retrying import is_missing, retry
from clipjax.strict_json import read_json

MANIFEST = "manifest.json"
DAMAGED = ".damaged"
UNFINISHED = ".unfinished"
DELETING = ".deleting"
AFTER = ".after_"
TMP = ".orbax-checkpoint-tmp"  # the name is Orbax's
_STEP = re.compile(r"0|[1-9][0-9]*")
DAMAGED_STEP = re.compile(r"[0-9]+\.damaged(\.[0-9]+)?")
_NUMBERED = re.compile(r"(0|[1-9][0-9]*)(\..+)?")
# By what follows the number, why a folder is of no use. A save that is still going looks like one
# that was cut off; a step that is being deleted is nobody's loss.
_UNUSABLE = {
    TMP: "its save is not finished",
    UNFINISHED: "its save was cut off",
    DAMAGED: "it was found damaged",
    AFTER: "the run went back to an earlier one",
}


def is_step(path: Path) -> bool:
    """Whether a folder is called as a step's is."""
    return _STEP.fullmatch(path.name) is not None


def is_file(path: Path) -> bool:
    """Whether there is a file; an error of the storage is raised, as it does not say that."""
    return _is(stat.S_ISREG, path)


def is_folder(path: Path) -> bool:
    """Whether there is a folder; an error of the storage is raised, as it does not say that."""
    return _is(stat.S_ISDIR, path)


def _is(kind: Callable[[int], bool], path: Path) -> bool:
    def look() -> int:
        faults.point("checkpoint.look")
        return os.stat(path).st_mode

    try:
        return kind(retry(look, f"looking up {path}"))
    except OSError as error:
        if is_missing(error):
            return False
        raise


def entries(directory: Path) -> list[Path]:
    """What is in a folder; nothing if there is none."""
    if not is_folder(directory):
        return []
    return retry(lambda: list(directory.iterdir()), f"listing {directory}")


def step_folders(directory: Path) -> list[int]:
    """Lists the steps that have a folder, finished or not, oldest first."""
    return sorted(int(p.name) for p in entries(directory) if is_step(p))


def refuse_links(step_dir: Path) -> None:
    """Checks that what is in a step's folder is in it: a link could lead to any file.

    Raises:
        ValueError: names a symbolic link, or what is neither a file nor a folder.
    """
    folders: list[str | Path] = [step_dir]
    while folders:
        folder = folders.pop()
        try:
            found = retry(functools.partial(_scan, folder), f"listing {folder}")
        except FileNotFoundError:
            continue  # deleted meanwhile; what is missing is noticed where it is read
        for entry in found:
            if entry.is_symlink():
                raise ValueError(
                    f"{entry.path} is a symbolic link, and a checkpoint holds its files itself: "
                    "copy it whole, with cp -rL"
                )
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif not entry.is_file(follow_symlinks=False):
                raise ValueError(f"{entry.path} is neither a file nor a folder; remove it")


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    return list(os.scandir(folder))


def committed_steps(directory: Path) -> list[int]:
    """Lists the steps whose folder holds a manifest, oldest first."""
    return _with_manifest(directory, step_folders(directory))


def _with_manifest(directory: Path, steps: Iterable[int]) -> list[int]:
    return [step for step in steps if is_file(directory / str(step) / MANIFEST)]


def good_steps(directory: Path) -> list[int]:
    """The two newest steps whose manifests tell of no skipped steps just before them, newest first.

    What made the steps after the first fail may be in its own state, as when an update was far too
    large. From the second the run went on.
    """
    return _good(directory, committed_steps(directory), 2)


def _good(
    directory: Path, committed: Sequence[int], count: int, *, strict: bool = False
) -> list[int]:
    """So many of the newest committed steps that no skipped ones precede, newest first.

    Strict, it raises where the storage fails: a step that cannot be read may be one of them.
    """
    found: list[int] = []
    for step in reversed(committed):
        path = directory / str(step) / MANIFEST
        try:
            fields = retry(functools.partial(read_json, path), f"reading {path}")
            if not fields.get("skipped_in_a_row", 0):
                found.append(step)
        except (OSError, ValueError, AttributeError) as error:
            if strict and isinstance(error, OSError):
                raise
            logging.warning("%s cannot be read: %s", path, error)
        if len(found) == count:
            break
    return found


def set_later_aside(directory: Path, step: int) -> bool:
    """Renames all steps after one, unless that was done before; says whether it did.

    Raises:
        ValueError: there is no such step.
    """
    ending, steps = f"{AFTER}{step}", committed_steps(directory)
    if step not in steps:
        raise ValueError(
            f"resume_step={step}: {directory} holds no such step, only "
            f"{', '.join(map(str, steps)) or 'none'}"
        )
    done = directory / f"resumed{ending}"
    if done.exists():
        logging.warning(
            "the run went back to step %d before, and goes on from its newest; to go back once "
            "more, remove %s",
            step,
            done,
        )
        return False
    for later in reversed(step_folders(directory)):  # the newest first: a step never lacks others
        if later > step:
            kept = set_aside(directory / str(later), ending)
            logging.warning("going back to step %d: step %d is set aside as %s", step, later, kept)
    done.touch()
    return True


def unusable_after(directory: Path, step: int) -> list[str]:
    """Says of each folder of a later step why it cannot be used, oldest first."""
    found = []
    for path in entries(directory):
        match = _NUMBERED.fullmatch(path.name)
        if match is None or int(match[1]) <= step:
            continue
        if match[2] is None and not is_file(path / MANIFEST):
            found.append((int(match[1]), f"{path.name}: its save is not finished (no {MANIFEST})"))
        for ending, why in _UNUSABLE.items():
            if (match[2] or "").startswith(ending):
                found.append((int(match[1]), f"{path.name}: {why}"))
    return [line for _, line in sorted(found)]


def set_aside(step_dir: Path, ending: str) -> Path:
    """Renames a step's folder, so that it no longer counts but nothing is lost."""
    return step_dir.rename(_free(step_dir.with_name(step_dir.name + ending)))


def _free(path: Path) -> Path:
    """A name that nothing has: the path, or with the first number behind it that is free."""
    names = (path.with_name(f"{path.name}.{n}" if n else path.name) for n in itertools.count())
    return next(name for name in names if not name.exists())


def clear_half_written(directory: Path) -> None:
    """Deletes what a killed save was writing; what cannot be deleted gives up the step's name."""
    sweep(directory, TMP)
    for path in entries(directory):
        match = _NUMBERED.fullmatch(path.name)
        if match is not None and (match[2] or "").startswith(TMP):
            path.rename(_free(path.with_name(match[1] + UNFINISHED)))


def sweep(directory: Path, *endings: str) -> None:
    """Deletes what cut-off saves and deletions left behind; what cannot be deleted stays."""
    _sweep(entries(directory), *endings)


def _sweep(there: Iterable[Path], *endings: str) -> None:
    left_over = re.compile(f"[0-9]+({'|'.join(map(re.escape, endings))}).*")
    for path in there:
        if left_over.fullmatch(path.name):
            delete(path)


def delete(path: Path) -> None:
    """Deletes a folder that nobody needs; a failure is told, and tried again after the next save.

    Of a link, only the link goes.
    """
    try:
        faults.point("save.delete")
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        logging.warning("%s is not deleted yet: %s; it is tried again later", path, error)


def delete_old_steps(
    directory: Path, *, keep: int, keep_every: int | None, best: int | None = None
) -> None:
    """Deletes what retention gives up, and what cut-off saves left behind; `best` stays.

    So do the newest that no skipped ones precede, two of them unless one is kept: those after them
    may hold a bad state.
    Called after a commit, so that the newest step that stays has just been hashed, and whatever
    storage does here, that step is saved: what fails is told, and tried again after the next save.
    """
    try:
        there = entries(directory)
        steps = _with_manifest(directory, sorted(int(p.name) for p in there if is_step(p)))
        good = _good(directory, steps, min(keep, 2), strict=True)
    except OSError as error:
        logging.warning("old steps are not deleted yet: %s; tried again later", error)
        return
    _sweep(there, UNFINISHED, DELETING)
    for step in steps[:-keep]:
        if step not in (best, *good) and (keep_every is None or step % keep_every):
            # Renamed first, so that a half-deleted folder is never taken for a save.
            try:
                faults.point("save.rename_old")
                old = set_aside(directory / str(step), DELETING)
            except OSError as error:
                logging.warning("step %d is not deleted yet: %s; tried again later", step, error)
                continue
            delete(old)
