"""Signals that ask a run to stop, heard whatever its main thread does.

A thread reads them from a pipe that the interpreter writes to, so that one is heard in the middle
of a compilation as well. Where ending loses nothing (before the first step, after the last save)
the process ends at once; else the loop asks between its steps (`should_stop`), between the batches
of an evaluation (`poll`) and while it waits for data (`poll_alone`), saves and stops. A second
signal ends the process at once.

In a run of several processes a signal may come to one of them only. Who hears one tells the others
through the coordination service how many times it has asked; all stop the next time after the
largest of these numbers, so all stop at one place. JAX's own preemption service would take no
notice of a second signal, and of none but SIGTERM.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from clipjax.processes import process_log
from clipjax.processes.exit_codes import PREEMPTED
from clipjax.processes.leaving import end_process

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
INTERRUPTED = 128 + signal.SIGINT
_ASKED, _OVER, _GONE = "stop/asked", "stop/over", "stop/gone"  # notes of the processes
_LOOK_S, _LOOK_SOON_S = 1.0, 0.05  # between two looks at the notes of the others
_ANSWER_S = 10.0  # that the others may take to answer where ending loses nothing
_SAME_S = 0.5  # a terminal that closes and a service manager send two signals for one request
_LAST_S = 5.0  # that the lead, who keeps the notes, stays for the others to read them
_CLEAN_UP_S = 5.0  # that a command may take to end after Ctrl-C


class StopRequestedError(Exception):
    """The run was asked to stop, at a place where it can."""

    is_agreed = True  # all processes stop


class Listener:
    """Hears signals in a thread of its own; use as a context manager in the main thread.

    What is ignored when it begins stays ignored, as under nohup.

    Args:
        numbers: of the signals.
        hear: called in the thread with the number of each.
        handler: what the main thread does when it comes to it.
    """

    def __init__(
        self,
        numbers: tuple[signal.Signals, ...],
        hear: Callable[[int], None],
        handler: Callable[[int, FrameType | None], Any] = lambda number, frame: None,
    ) -> None:
        self._numbers, self._hear, self._handler = numbers, hear, handler
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Listener":
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)  # as `set_wakeup_fd` asks for
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in self._numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handler)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._writer)  # the thread reads the end
        self._thread.join()
        os.close(self._reader)

    def _listen(self) -> None:
        while data := os.read(self._reader, 64):
            for number in data:
                if number in self._previous:
                    self._hear(number)


class PreemptionGuard:
    """Turns the signals that ask a run to stop into an answer to its loop, or into its end.

    Args:
        is_command: whether the process is the run's own, so that it may be ended where that loses
            nothing: from the beginning on, until `losing(True)`.
    """

    def __init__(self, *, is_command: bool = False) -> None:
        self.before_exit: list[Callable[[int, str], None]] = []  # (code, reason), before it ends
        self._is_command = self._safe = is_command
        self._listener = Listener(STOPS, self._hear, self._come)
        self._came = False  # a signal, to the main thread; the other one hears it about now
        self._changed = threading.Condition()
        self._first: tuple[int, float] | None = None  # signal to this very process, and when
        self._heard: str | None = None
        self._asked = 0  # how many times the loop has
        self._note: dict[str, Any] | None = None  # of this process, for the others
        self._stop_at: int | None = None  # of `_asked`
        self._count = 1  # of processes
        self._exchange: threading.Thread | None = None
        self._wake, self._closing = threading.Event(), False

    def __enter__(self) -> "PreemptionGuard":
        global _active
        _active = self
        self._listener.__enter__()
        return self

    def __exit__(self, *exc_info: object) -> None:
        global _active
        _active = None
        self._listener.__exit__()
        self._closing = True
        self._wake.set()
        if self._exchange is not None:
            self._exchange.join(_LAST_S)  # no longer: the service may not answer

    def share(self) -> None:
        """Begins to exchange requests with the other processes; once they are joined."""
        from clipjax.processes import distributed

        self._count = distributed.num_joined()
        if self._count > 1 and self._exchange is None:
            self._exchange = threading.Thread(
                target=self._exchange_notes, name="stop requests", daemon=True
            )
            self._exchange.start()

    def losing(self, something: bool) -> None:
        """Says whether the end of the process would lose something from now on.

        Where it would not, a request that came before ends it now.
        """
        with self._changed:
            self._safe = self._is_command and not something
            ends = self._safe and self._heard is not None and self._count == 1
        if ends:
            self._end_safely()

    def should_stop(self) -> bool:
        """Whether to save and stop now; the same answer in all processes.

        All of them ask equally often: the place where they stop is found by counting.
        """
        with self._changed:
            self._asked += 1
            if self._came:
                self._changed.wait_for(lambda: self._heard is not None, _LAST_S)
            if self._heard is None or self._count == 1:
                return self._heard is not None
            exchange = self._exchange
            while self._stop_at is None and exchange is not None and exchange.is_alive():
                self._changed.wait(1.0)
            # Where the exchange broke off, a process is lost, which ends the run otherwise.
            return self._stop_at is not None and self._asked >= self._stop_at

    @property
    def heard_alone(self) -> bool:
        """Whether a run of one process was asked to stop: it may wherever it is."""
        return self._count == 1 and (self._came or self._heard is not None)

    def _come(self, number: int, frame: FrameType | None) -> None:
        self._came = True  # no more: the main thread may hold a lock right now

    def _hear(self, number: int) -> None:
        name, now = signal.Signals(number).name, time.monotonic()
        if self._first is None:
            self._first = number, now
            self._request(name)
        elif number == self._first[0] == signal.SIGTERM or (
            # A scheduler may send its warning more than once.
            number != signal.SIGUSR1 and now - self._first[1] > _SAME_S
        ):
            self._end_all(128 + number, f"a second signal, {name}: ended without saving")

    def _request(self, name: str) -> None:
        with self._changed:
            if self._heard is not None:
                return
            self._heard = name
            self._note = {"asked": self._asked, "safe": self._safe, "signal": name}
            safe = self._safe
            self._changed.notify_all()
        self._wake.set()
        if not safe:
            _say(f"{name}: the run is saved and stops; a second signal ends it at once")
        elif self._count == 1:
            self._end_safely()

    def _end_safely(self) -> None:
        reason = f"{self._heard}: stopped where nothing is lost; start again to go on"
        self._leave(PREEMPTED, reason)

    def _end_all(self, code: int, reason: str) -> None:
        """Ends this process and tells the others to end likewise."""
        if self._count > 1:
            from clipjax.processes import distributed

            note = {**(self._note or {}), "code": code, "reason": reason}
            # In a thread: it might wait for a service that does not answer.
            teller = threading.Thread(target=distributed.tell, args=(_ASKED, note), daemon=True)
            teller.start()
            teller.join(1.0)
        self._leave(code, reason)

    def _leave(self, code: int, reason: str) -> None:
        """Ends the process, whatever its main thread does; the lead is the last."""
        _say(reason)
        for tell in self.before_exit:
            with contextlib.suppress(Exception):
                tell(code, reason)
        if self._count > 1:
            leaving = threading.Thread(target=self._wait_for_others, daemon=True)
            leaving.start()
            leaving.join(_LAST_S + 1)
        process_log.forget()
        end_process(code)

    def _wait_for_others(self) -> None:
        from clipjax.processes import distributed

        distributed.tell(_GONE, True)
        end = time.monotonic() + _LAST_S
        if distributed.process_index() == 0:
            while len(distributed.told(_GONE)) < self._count and time.monotonic() < end:
                time.sleep(_LOOK_SOON_S)
            time.sleep(2 * _LOOK_SOON_S)  # who has said so is gone a moment later

    def _exchange_notes(self) -> None:
        """Tells the others what was asked of this process, and finds out where all stop."""
        from clipjax.processes import distributed

        told, since = False, None
        try:
            while not self._closing:
                self._wake.wait(_LOOK_S if self._heard is None else _LOOK_SOON_S)
                notes = distributed.told(_ASKED)
                for note in notes.values():
                    self._request(note.get("signal") or "a signal")
                    if "code" in note:
                        self._leave(note["code"], f"in another process: {note['reason']}")
                if self._note is None:
                    continue
                self._wake.clear()
                if not told:
                    distributed.tell(_ASKED, self._note)
                    told, since = True, time.monotonic()
                elif self._stop_at is None:
                    self._decide(notes, distributed.told(_OVER), since or 0.0)
            distributed.tell(_OVER, {"asked": self._asked, "safe": False})
        except Exception as error:  # of the coordination service
            process_log.write(f"requests to stop are no longer shared: {error}\n")
        with self._changed:
            self._changed.notify_all()

    def _decide(self, notes: Mapping[int, Any], over: Mapping[int, Any], since: float) -> None:
        notes = {**over, **notes}
        if len(notes) < self._count:
            if self._safe and time.monotonic() - since > _ANSWER_S:
                self._end_safely()
            return
        if all(note["safe"] for note in notes.values()):
            self._end_safely()
        with self._changed:
            self._stop_at = max(note["asked"] for note in notes.values()) + 1
            self._changed.notify_all()


_active: PreemptionGuard | None = None


@contextlib.contextmanager
def guarding() -> Iterator[PreemptionGuard]:
    """The guard of this process, or one for the block; shared with the other processes."""
    with contextlib.ExitStack() as stack:
        guard = _active or stack.enter_context(PreemptionGuard())
        guard.share()
        yield guard


def active() -> PreemptionGuard | None:
    """The guard of this process, if there is one."""
    return _active


def poll() -> None:
    """Stops here if the run was asked to; all its processes call it equally often.

    Raises:
        StopRequestedError: it was.
    """
    if _active is not None and _active.should_stop():
        raise StopRequestedError


def poll_alone() -> None:
    """Stops here if a run of one process was asked to, in its main thread.

    Raises:
        StopRequestedError: it was.
    """
    is_asked = _active is not None and _active.heard_alone
    if is_asked and threading.current_thread() is threading.main_thread():
        raise StopRequestedError


@contextlib.contextmanager
def interruptible(sentence: str) -> Iterator[None]:
    """Ends a command by Ctrl-C: an interrupt in the main thread, and soon the process in any case.

    A second one ends it at once; the exit code is `INTERRUPTED`.

    Args:
        sentence: what is said once.
    """
    said = threading.Lock()

    def end() -> None:
        if said.acquire(blocking=False):
            _say(sentence, prefix="")
        os._exit(INTERRUPTED)

    pressed = threading.Event()

    def hear(number: int) -> None:
        if pressed.is_set():
            end()
        pressed.set()
        timer = threading.Timer(_CLEAN_UP_S, end)
        timer.daemon = True
        timer.start()

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        with Listener((signal.SIGINT,), hear, interrupt):
            yield
    except KeyboardInterrupt:
        if said.acquire(blocking=False):
            _say(sentence, prefix="")
        raise SystemExit(INTERRUPTED) from None


def _say(text: str, prefix: str = "clipjax: ") -> None:
    process_log.say(prefix + text)
