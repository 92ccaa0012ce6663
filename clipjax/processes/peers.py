"""The processes of a run end together, and each says which of them ended it and why.

JAX has its coordination service for it, but a process that fails waits there in a barrier while
the others wait in a collective, and one that is lost ends the rest by a dump of C++. Here

- a process that fails tells the others through the service's key-value store before it closes
  anything, and waits until they have heard;
- a thread of each looks there every second, and ends its process whatever that waits for;
- the dump of a lost process is read for who it was: the service tells it by its heartbeats, which
  no lock of the interpreter holds up.

The lead is the last to go, since the store is in its memory.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from clipjax.printable import describe, message_text, traceback_text
from clipjax.processes import distributed, exit_record, process_log
from clipjax.processes.distributed import Limits, process_index
from clipjax.processes.exit_codes import FAILED, PEER_LOST
from clipjax.processes.leaving import end_process

_FIRST, _HEARD = "clipjax/failure", "clipjax/heard"
_PAUSE_S = 1.0  # between two looks
_GRACE_S = 3.0  # for a process to fail by itself: what all of them find wrong, all of them say
_LINGER_S = 10.0  # for the others to hear
_CLOSING_S = 15.0  # for a process that has failed to close its parts, which may wait for the others

# What a collective or the coordination service says where another process is gone.
_OF_PEERS = re.compile(
    r"gloo|nccl|coordination ?(service|agent)|connection (reset|closed|refused)|socket closed"
    r"|heartbeat|\bbarrier\b|\bunavailable:|broken pipe|\baborted:",
    re.IGNORECASE,
)
_ABORTED = 128 + signal.SIGABRT
_FATAL = "JAX distributed service detected fatal errors"


class Failure(NamedTuple):
    """What ended a run.

    Attributes:
        process: the number of the process that failed; -1 where nobody knows.
        code: its exit code; `PEER_LOST` where it left without a word.
        reason: one line.
    """

    process: int
    code: int
    reason: str

    def sentence(self) -> str:
        """For a person, in another process."""
        if self.process < 0:
            return self.reason
        lost = self.code == PEER_LOST
        return f"process {self.process} {'was lost' if lost else 'failed'}: {self.reason}"


class _Peers:
    """This process among the others of its run."""

    def __init__(self, client: Any, process: int, count: int) -> None:
        self.client, self.process, self.count = client, process, count
        self.own: Failure | None = None
        self.theirs: Failure | None = None
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self.thread.start()

    def first(self) -> Failure | None:
        """What another process said of its failure, if any has and the store answers."""
        if self.theirs is None:
            with contextlib.suppress(Exception):  # NOT_FOUND; or the lead is gone, which JAX tells
                found = Failure(*json.loads(self.client.key_value_try_get(_FIRST)))
                if found.process != self.process:
                    self.theirs = found
        return self.theirs

    def tell(self, failure: Failure) -> None:
        """Says that this process has failed, unless another was earlier."""
        self.own = failure
        told = failure._replace(reason=message_text(failure.reason)[:2000])
        _within(5.0, lambda: self.client.key_value_set(_FIRST, json.dumps(told)))

    def hear(self) -> None:
        """Says that this process knows, and waits for the others where it is the lead."""
        _within(5.0, lambda: self.client.key_value_set(f"{_HEARD}/{self.process}", ""))

    def wait_until_heard(self) -> None:
        """Waits until all others know; not for long."""

        def heard() -> bool:
            return len(self.client.key_value_dir_get(_HEARD)) >= self.count

        end = time.monotonic() + _LINGER_S
        with contextlib.suppress(Exception):  # the lead is gone
            while not heard() and time.monotonic() < end:
                time.sleep(0.1)

    def _watch(self) -> None:
        while not self.closed.wait(_PAUSE_S):
            failure = self.first()
            if failure is not None:
                if not self.closed.wait(_GRACE_S):
                    self.end(failure)
                return

    def end(self, failure: Failure) -> None:
        """Ends this process for another's failure; from any thread."""
        process_log.keep(self.process)
        process_log.say(_last_words(failure.sentence()))
        exit_record.end(failure.code, failure.sentence())
        self.hear()
        if self.process == 0:
            self.wait_until_heard()
            time.sleep(_PAUSE_S)  # for who has failed to see it
        end_process(PEER_LOST)


_peers: _Peers | None = None
_limits = Limits()
_handler: Any = None  # ctypes lets go of what nobody holds


def join(mode: str, limits: Limits) -> None:
    """Joins the processes of this run (`distributed.initialize`), and begins to look after them."""
    guard(limits)
    distributed.initialize(mode, limits)
    watch(limits)


def watch(limits: Limits) -> None:
    """Begins to look for failures of the others; nothing in a process on its own."""
    global _peers, _limits
    _limits = limits
    if distributed.num_joined() > 1:
        _peers = _Peers(distributed.store(), process_index(), distributed.num_joined())


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Tells the others at once of what is raised inside, before anything is closed.

    What closes may wait for the others; it has a while, then the process is ended.
    """
    try:
        yield
    except Exception as error:
        if _peers is not None and not getattr(error, "is_agreed", False) and not is_theirs(error):
            failure = Failure(_peers.process, FAILED, describe(error))
            _peers.closed.set()
            _peers.tell(failure)
            threading.Thread(target=_end_late, args=(failure,), daemon=True).start()
        raise


def theirs(error: BaseException) -> Failure | None:
    """What another process has to do with an error of this one; None if it is this one's own.

    Waits for the other's own word, or for the service to miss it.
    """
    if _peers is None or not is_theirs(error):
        return None
    _peers.closed.set()
    # Of two it is the other. Of more the service says which, by an abort that `guard` reads.
    wait_s = 2 * _GRACE_S if _peers.count == 2 else _limits.heartbeat_timeout_s + 15
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        if (found := _peers.first()) is not None:
            return found
        time.sleep(0.1)
    other = 1 - _peers.process if _peers.count == 2 else -1
    late = "DEADLINE_EXCEEDED" in str(error)  # gloo waits 30 s for a process to come
    what = "it was not there in time" if late else "it left without a word"
    return Failure(other, PEER_LOST, f"{what}: {describe(error)}")


def fail(error: BaseException, code: int, say: Callable[[], None]) -> None:
    """Ends this process with an error and all others with it; returns in a process on its own.

    Args:
        error: what happened here.
        code: to exit with, unless the error is another process's.
        say: shows the error to a person; called when the others have spoken.
    """
    if _peers is None:
        return
    process_log.keep(_peers.process)
    process_log.write(traceback_text(error))
    failure = theirs(error)
    _peers.closed.set()
    if failure is not None:
        _peers.end(failure)
    warn(code, describe(error))
    say()
    end_process(code)


def warn(code: int, reason: str) -> None:
    """Says to the others and in exit.json that this process ends; from any thread, not for long."""
    exit_record.end(code, reason)
    if _peers is not None:
        _peers.closed.set()
        _peers.tell(Failure(_peers.process, code, reason))
        _peers.hear()
        _peers.wait_until_heard()


def leave() -> None:
    """Leaves the run with all others: behind it, JAX's own barrier finds all of them.

    Raises:
        TimeoutError: another process does not come to its end.
    """
    global _peers
    if _peers is None:
        return
    wait_s = _limits.end_timeout_s
    try:
        _peers.client.wait_at_barrier("clipjax/end", wait_s * 1000)
    except Exception as error:
        if (failure := theirs(error)) is not None and failure.process >= 0:
            _peers.end(failure)
        raise TimeoutError(
            f"another process does not come to its end within config.distributed.end_timeout_s = "
            f"{wait_s}: {describe(error)}"
        ) from error
    _peers.closed.set()
    _peers.thread.join()
    _peers = None


def guard(limits: Limits) -> None:
    """Has the dump of an abort read, by which JAX ends a process whose peers are lost.

    Nothing where descriptor 2 is no log: there is no dump to read.
    """
    global _handler, _limits
    _limits = limits
    if process_log.path() is None or _handler is not None:
        return
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    _handler = kind(_on_abort)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, kind], ctypes.c_void_p
    # faulthandler writes the stacks of all threads, and then calls what was there before it.
    faulthandler.disable()
    libc.signal(signal.SIGABRT, _handler)
    faulthandler.enable(process_log.STDERR)


def read_dump(text: str, limits: Limits) -> Failure | None:
    """Reads what JAX wrote before it aborted: who is lost; None if it is not about that."""
    if _FATAL not in text:
        return None
    status = text[text.rindex(_FATAL) :].partition("*** Check failure")[0]
    status = status.partition("absl::Status: ")[2].strip()
    join = re.search(r"of tasks that reached the barrier: (\d+)/(\d+)", status)
    names = re.search(r"(?:heartbeats\)|task names):\s*\n((?:\S*\d+\s*\n)+)", f"{status}\n")
    numbers = [int(re.findall(r"\d+", line)[-1]) for line in names[1].split()] if names else []
    some = ", ".join(map(str, numbers))
    if join and "register" in status:
        came = [p for p in range(int(join[2])) if p not in numbers]
        who = ", ".join(map(str, came)) if len(came) == int(join[1]) else f"{join[1]} of {join[2]}"
        text = (
            f"the run did not get together: of its {join[2]} processes {who} came within "
            f"config.distributed.join_timeout_s = {limits.join_timeout_s}, {some or 'others'} not"
        )
        return Failure(-1, PEER_LOST, text)
    if "RegisterTask" in status:
        return Failure(0, PEER_LOST, "it leads the run, and did not answer when this one joined")
    if numbers:
        reason = "no sign of life: it was killed, stopped or cut off"
        if len(numbers) == 1:
            return Failure(numbers[0], PEER_LOST, reason)
        return Failure(-1, PEER_LOST, f"processes {some} were lost: {reason}")
    name = status.partition(":")[0]
    return Failure(0, PEER_LOST, f"it leads the run, and was killed, stopped or cut off ({name})")


def _on_abort(number: int) -> None:
    """Handles SIGABRT; on return the process dies of it as it would have."""
    process_log.keep(process_index())
    own = process_log.tail().rpartition(f"process {os.getpid()} of ")[2]
    peers = _peers
    if peers is not None and peers.own is not None:  # the others were faster to go
        process_log.say(_last_words(peers.own.reason))
        exit_record.end(peers.own.code, peers.own.reason)
        end_process(peers.own.code)
    found = (peers and peers.theirs) or read_dump(own, _limits)
    if found is None:
        lines = [line for line in own.splitlines() if re.match(r"F\d{4} |terminate called", line)]
        reason = lines[-1] if lines else "a library aborted the process"
        warn(_ABORTED, reason)
        process_log.say(_last_words(reason))
        return
    process_log.say(_last_words(found.sentence()))
    exit_record.end(found.code, found.sentence())
    if process_index() == 0:
        time.sleep(2 * _PAUSE_S)  # the service, which is here, tells the others meanwhile
    end_process(PEER_LOST)


def _end_late(failure: Failure) -> None:
    time.sleep(_CLOSING_S)
    process_log.keep(failure.process)
    process_log.say(_last_words(failure.reason))
    exit_record.end(failure.code, failure.reason)
    end_process(failure.code)


def is_theirs(error: BaseException) -> bool:
    """Whether an error, or what caused it, comes of a collective that another process left."""
    seen: BaseException | None = error
    while seen is not None:
        of_jax = isinstance(seen, jax.errors.JaxRuntimeError)
        named = "gloo" in str(seen).lower() and isinstance(seen, ValueError | RuntimeError)
        if (of_jax and _OF_PEERS.search(str(seen))) or named:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _last_words(text: str) -> str:
    return message_text(f"clipjax: {text}{process_log.where()}")


def _within(seconds: float, call: Callable[[], Any]) -> None:
    """Calls something that may never answer; what it raises is not of interest any more."""

    def quietly() -> None:
        with contextlib.suppress(Exception):
            call()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(seconds)
