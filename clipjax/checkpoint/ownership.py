"""One writer a workdir: `owner.json` names the process that writes there.

It is taken by a hard link, which fails where the name is taken, or by O_EXCL where the store has no
links, and read again afterwards, for stores where both may succeed. A thread writes a heartbeat
into the file itself, never into one that took its place. An owner is dead where it was a process of
this machine that is gone, or where its heartbeat stands still; clocks of two hosts are not
compared. Whoever only reads the workdir asks nobody.
"""

import contextlib
import dataclasses
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import logging

from clipjax import faults
from clipjax.data.storage.retrying import retry
from clipjax.files import TEMPORARY, sha256
from clipjax.processes.distributed import gather, is_lead
from clipjax.processes.leaving import giving_back
from clipjax.strict_json import parse_json

OWNER = "owner.json"
BEAT_S = 10.0
DEAD_S = 120.0  # a heartbeat that stands still for as long is a dead owner's
_LOOK_S = 1.0
_SIZE = 1024  # of the file, so that a heartbeat writes over the one before it


class WorkdirTakenError(RuntimeError):
    """Another run writes into the workdir, or it is gone."""


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who an owner file says that owns; `beat` counts up."""

    token: str
    host: str = "an unknown host"
    machine: str = ""
    pid: int = 0
    process_start: str = ""
    since: str = "an unknown time"
    beat: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@functools.cache
def machine_id() -> str:
    """Names the system whose process numbers are ours: this boot of it, and its container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process_start(pid: int) -> str | None:
    """When a process of this machine began; None if it is gone, "" if that is not told here."""
    try:
        # Behind the name, which may hold anything: the state, and the start as the 20th field.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""


class Ownership:
    """Holds a workdir; a context manager, that gives it back at its end.

    Args:
        workdir: a folder that is there.
        take_over: take it from whoever holds it.

    Raises:
        WorkdirTakenError: a living process holds it.
        OSError: the owner file cannot be written.
    """

    def __init__(self, workdir: Path, *, take_over: bool = False) -> None:
        self._path = workdir / OWNER
        self.me = Owner(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            machine=machine_id(),
            pid=os.getpid(),
            process_start=_process_start(os.getpid()) or "",
            since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        )
        self._lost = ""
        self._closed = threading.Event()
        self._take(take_over)
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Ownership":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed.set()
        self._thread.join()
        self.release()

    def release(self) -> None:
        """Gives the workdir back, unless another has it."""
        self._closed.set()
        with contextlib.suppress(OSError):
            if self._is_mine():
                self._path.unlink()

    def check(self) -> None:
        """Looks whether the workdir is still ours: a file of a kilobyte is read.

        Raises:
            WorkdirTakenError: it is not; nothing may be written there any more.
        """
        try:
            owner = self._read()
        except OSError as error:  # the write that follows meets it, too
            logging.warning("%s cannot be read: %s", self._path, error)
            return
        if owner is None:
            self._lost = (
                f"{self._path} is gone: {self._path.parent} was deleted or emptied while this run "
                "wrote there. What is left of it stands as it is"
            )
        elif owner.token != self.me.token:
            self._lost = (
                f"{self._path.parent} was taken over by another run ({owner}): this one stops and "
                "writes nothing more. Give one of them another workdir"
            )
        if self._lost:
            raise WorkdirTakenError(self._lost)

    # Taking

    def _take(self, take_over: bool) -> None:
        seen: Owner | None = None
        since = time.monotonic()
        while not self._create(self._path):
            owner = self._read()
            if owner is None:
                continue  # given back meanwhile
            if take_over or is_gone(owner):
                if self._replace(owner):
                    logging.warning("%s is taken over from %s", self._path.parent, owner)
                    return
                time.sleep(_LOOK_S / 4)
                continue
            age = self._age()
            living = owner.machine == machine_id() and age < DEAD_S
            if living or (
                seen is not None and (seen.token, seen.beat) != (owner.token, owner.beat)
            ):
                raise WorkdirTakenError(
                    f"{self._path.parent} is being written by another run ({owner}): stop that "
                    "one, or give another workdir; if you know that it is gone, add take_over=True"
                )
            if seen is None:
                logging.warning(
                    "%s was held by %s, which cannot be asked from here: waiting up to %.0f s for "
                    "its heartbeat", self._path.parent, owner, DEAD_S
                )  # fmt: skip
                seen, since = owner, time.monotonic()
            stood_still = time.monotonic() - since
            # The store's own clock may say that it is long dead; it is watched all the same.
            if stood_still > (2.5 * BEAT_S if age >= DEAD_S else DEAD_S):
                take_over = True
            time.sleep(_LOOK_S)

    def _create(self, path: Path) -> bool:
        """Writes our record where no file is; whether it is there."""
        temporary = self._temporary()
        try:
            faults.point("owner.link")
            os.link(temporary, path)
        except FileExistsError:
            pass  # or the answer to a first try was lost: the file says so
        except OSError:  # no links here
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            with os.fdopen(descriptor, "wb") as file:
                file.write(self._record())
        finally:
            temporary.unlink(missing_ok=True)
        faults.point("owner.created")
        return self._is_mine(path)

    def _replace(self, dead: Owner) -> bool:
        """Takes the place of an owner; of several that try it, one does."""
        claim = self._path.with_name(f"{OWNER}.after-{dead.token}")
        if not self._create(claim):
            other = self._read(claim)
            if other is not None and (is_gone(other) or self._age(claim) > DEAD_S):
                claim.unlink(missing_ok=True)  # of one that died right here
            return False
        try:
            now = self._read()
            if now is None or now.token != dead.token:
                return False
            faults.point("owner.replace")
            os.replace(self._temporary(), self._path)
            return self._is_mine()
        finally:
            claim.unlink(missing_ok=True)

    def _temporary(self) -> Path:
        path = self._path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{OWNER}")
        path.write_bytes(self._record())
        return path

    def _record(self) -> bytes:
        return json.dumps(dataclasses.asdict(self.me)).encode().ljust(_SIZE - 1) + b"\n"

    def _read(self, path: Path | None = None) -> Owner | None:
        """Reads who owns; None if nobody does."""
        path = path or self._path
        try:
            data = retry(path.read_bytes, f"reading {path}")
        except FileNotFoundError:
            return None
        return _parse(data)

    def _is_mine(self, path: Path | None = None) -> bool:
        owner = self._read(path)
        return owner is not None and owner.token == self.me.token

    def _age(self, path: Path | None = None) -> float:
        """Seconds since the owner's heartbeat, by the clock of the store alone."""
        temporary = self._temporary()
        try:
            return temporary.stat().st_mtime - (path or self._path).stat().st_mtime
        except FileNotFoundError:
            return 0.0
        finally:
            temporary.unlink(missing_ok=True)

    # Holding

    def _beat(self) -> None:
        while not self._closed.wait(BEAT_S):
            self.me = dataclasses.replace(self.me, beat=self.me.beat + 1)
            try:
                faults.point("owner.beat")
                # In place: one that was taken over is another file, which this never touches.
                with open(self._path, "r+b", buffering=0) as file:
                    owner = _parse(file.read())
                    if owner.token != self.me.token:
                        return  # noticed before the next write
                    os.pwrite(file.fileno(), self._record(), 0)
            except FileNotFoundError:
                return
            except OSError as error:
                logging.warning("the heartbeat in %s failed: %s", self._path, error)


def _parse(data: bytes) -> Owner:
    try:
        fields = parse_json(data, max_bytes=_SIZE)
        owner = Owner(**fields)
        if all(isinstance(v, type(getattr(_BLANK, k))) for k, v in fields.items()):
            return owner
    except (ValueError, TypeError):
        pass
    return Owner(token=sha256(data))  # being written, or nobody's: its heartbeat is its content


_BLANK = Owner(token="")


def is_gone(owner: Owner) -> bool:
    """Whether the owner was a process of this machine, and is no more."""
    if owner.machine != machine_id():
        return False
    start = _process_start(owner.pid)
    return start is None or (start != "" and start != owner.process_start)


def living_owner(workdir: Path) -> Owner | None:
    """The process of this machine that holds a workdir now; None where none does, or elsewhere."""
    try:
        owner = _parse((workdir / OWNER).read_bytes())
    except OSError:
        return None
    return owner if owner.machine == machine_id() and not is_gone(owner) else None


@contextlib.contextmanager
def owned(workdir: Path, *, take_over: bool = False) -> Iterator[Callable[[], None]]:
    """Holds a workdir for a run, of several processes by the lead.

    Yields:
        What checks that the workdir is still the run's; in the other processes it does nothing.

    Raises:
        WorkdirTakenError: another run holds it; in all processes.
    """
    owner: Ownership | None = None
    problem: Exception | None = None
    if is_lead():
        try:
            owner = Ownership(workdir, take_over=take_over)
        except (WorkdirTakenError, OSError) as error:
            problem = error  # raised below: the others wait for an answer
    told: Any = gather(None if problem is None else str(problem))[0]
    if told is not None:
        raise problem or WorkdirTakenError(told)
    if owner is None:
        yield lambda: None
        return
    with owner, giving_back(owner.release):
        yield owner.check
