"""The workdir's store: what a checkpoint does to it, and whether the disk has room."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipjax.checkpoint.saving import FREE_SPACE_FACTOR
from clipjax.config_fields import Settings
from clipjax.doctor.findings import BAD, NOTE, OK, Finding
from clipjax.files import rename_synced, sync

PREFIX = ".clipjax-doctor-"
_BYTES = 4 << 20
_GIB = 2**30


def existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A folder of its own in the store of another, gone afterwards."""
    with tempfile.TemporaryDirectory(
        prefix=PREFIX, dir=existing(folder), ignore_cleanup_errors=True
    ) as made:
        yield Path(made)


def store(workdir: Path) -> Finding:
    """Writes, reads, renames, appends and deletes in the store, as checkpoints and metrics do."""
    where = existing(workdir)
    if not where.is_dir():
        return Finding("store", BAD, f"{where} is no folder", "give another --workdir")
    begin = time.monotonic()
    try:
        with scratch(workdir) as folder:
            wrong = _try(folder)
    except OSError as error:
        wrong = f"{error.strerror or error}: {error.filename or where}"
    if not wrong and list(where.glob(f"{folder.name}*")):
        wrong = f"{folder} cannot be deleted"
    if wrong:
        return Finding(
            "store",
            BAD,
            f"{where}: {wrong}",
            "give a workdir on a file system that this user may write to and that renames",
        )
    seconds = time.monotonic() - begin
    return Finding(
        "store",
        OK,
        f"{where}: {_BYTES >> 20} MiB written, read, renamed, appended to and deleted in "
        f"{seconds:.2f} s",
    )


def _try(folder: Path) -> str:
    """What goes wrong; empty where nothing does."""
    content = os.urandom(_BYTES)
    step, file = folder / "0.tmp", folder / "0.tmp" / "array"
    step.mkdir()
    file.write_bytes(content)
    sync(file)
    if file.read_bytes() != content:
        return "what is read is not what was written"
    rename_synced(step, folder / "0")
    if step.exists() or (folder / "0" / "array").read_bytes() != content:
        return "a folder that is renamed does not move with what it holds"
    lines, newer = folder / "lines", folder / "newer"
    with lines.open("a", encoding="utf-8") as stream:
        stream.write("1\n")
        stream.flush()
        stream.write("2\n")
        stream.flush()
        if lines.read_text(encoding="utf-8") != "1\n2\n":
            return "a line that is appended is not there at once"
    newer.write_text("3\n", encoding="utf-8")
    newer.replace(lines)
    if lines.read_text(encoding="utf-8") != "3\n":
        return "a file that is renamed does not replace the one of that name"
    lines.unlink()
    if lines.exists() or sorted(path.name for path in folder.iterdir()) != ["0"]:
        return "a file that is deleted is still listed"
    return ""


def disk(workdir: Path, settings: Settings, state_bytes: int) -> Finding:
    """Compares the free space with what the checkpoints of the run will take.

    Args:
        workdir: of the run.
        settings: of the run.
        state_bytes: of its whole state.
    """
    keeps, each = settings.checkpoint, int(FREE_SPACE_FACTOR * state_bytes)
    kept = keeps.keep + 1 + bool(keeps.best)  # and the one that is being written
    kept += settings.total_steps // keeps.keep_every if keeps.keep_every else 0
    there = len(list((workdir / "checkpoints").glob("*/manifest.json")))
    needed = each * max(1, kept - there)
    free = shutil.disk_usage(existing(workdir)).free
    found = (
        f"{free / _GIB:,.1f} GiB free in {existing(workdir)}; {kept} checkpoints of "
        f"{each / _GIB:,.2f} GiB"
    )
    found += f", {there} of them there," if there else ""
    if free >= needed:
        return Finding("disk", OK, f"{found} take {needed / _GIB:,.1f} GiB")
    return Finding(
        "disk",
        BAD,
        f"{found} take {needed / _GIB:,.1f} GiB",
        "make space, or lower config.checkpoint.keep or raise config.checkpoint.keep_every",
    )


def free_space(workdir: Path) -> Finding:
    """Says how much is free, where no config says what is needed."""
    free = shutil.disk_usage(existing(workdir)).free
    text = f"{free / _GIB:,.1f} GiB free in {existing(workdir)}; with --config it is compared"
    return Finding("disk", NOTE, text)
