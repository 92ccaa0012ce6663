"""Worker processes: what one of them makes is the same in any other, so a lost one is replaced.

One thread starts the processes, hands out the parts of batches and watches. A worker that dies is
noticed at once, by the end of its socket; one that is stopped or hangs, `timeout_s` after it
began with its part, and is killed. Its part is made anew by another one, identical by construction,
and counted as `worker_restarts`. If that one is lost at the same part, the example kills or hangs
whoever touches it: WorkerError.

The kernel kills the workers when that thread ends, so none outlives its parent.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from absl import logging

from clipjax.data.loading import workers_messages as messages
from clipjax.data.loading.rows import RowMaker
from clipjax.data.loading.workers import Pending, Workers, parts_of
from clipjax.importing import importable_folders

# Parts that a worker is given at a time: the next one waits for it, not it for the next one.
_AHEAD = 2
# Seconds in which a process has to import and to open the source, on a busy machine.
START_S = 120.0
_MAX_FAILED_STARTS = 3
_LONGEST_PAUSE_S = 1.0
_START = (
    "import json, sys; sys.path[:], folders = json.loads(sys.argv[1]); "
    "from clipjax.importing import make_importable; make_importable(folders); "
    "from clipjax.data.loading.workers_child import main; main(*map(int, sys.argv[2:]))"
)


class WorkerError(RuntimeError):
    """Worker processes cannot be started, or are lost again and again at the same examples."""


@dataclasses.dataclass
class _Memory:
    """The file of a batch's memory; closed when its last part is done."""

    file: int

    def __del__(self) -> None:
        os.close(self.file)


@dataclasses.dataclass
class _Task:
    """A part of a batch, and how often a worker was lost at it."""

    step: int
    order: messages.Order
    memory: _Memory
    at_work: np.ndarray
    future: concurrent.futures.Future
    losses: list[str] = dataclasses.field(default_factory=list)


class Processes(Workers):
    """Worker processes of a loader.

    Raises:
        ValueError: if the system has no files in memory, or `maker` cannot be pickled.
    """

    def __init__(self, maker: RowMaker, number: int, timeout_s: float):
        if not hasattr(os, "memfd_create"):
            raise ValueError("workers = 'processes' needs Linux: use 'threads'")
        try:
            pickled = pickle.dumps(maker, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise ValueError(
                "workers = 'processes' sends the source, the transforms and the tokenizer to other "
                f"processes, and one of them cannot be pickled: {error}. Use 'threads', or give it "
                "a __reduce__"
            ) from error
        self.maker, self._number, self._timeout_s = maker, number, timeout_s
        self._maker_file = messages.memory_file(pickled)
        self._queue: collections.deque[_Task] = collections.deque()
        self._workers: list[_Worker] = []
        self._failed_starts = self._restarts = 0
        self._failure: BaseException | None = None
        self._closing = False
        self._lock = threading.Lock()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self.thread = threading.Thread(target=self._run, name="clipjax-workers", daemon=True)
        self.thread.start()

    def submit(self, step: int, stage: int, start: int, count: int) -> Pending:
        """Begins with the rows of a step."""
        size, parts = self.maker.stages[stage].preprocess.size, list(parts_of(count, self._number))
        memory = _Memory(messages.memory_file())
        tasks = []
        for part, (low, high) in enumerate(parts):
            order = messages.Order(stage, start + low, low, high, part, len(parts), count, size)
            if part == 0:
                images, at_work = messages.batch_memory(memory.file, order)
            future: concurrent.futures.Future = concurrent.futures.Future()
            tasks.append(_Task(step, order, memory, at_work[part : part + 1], future))
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._queue.extend(tasks)
        self._wake()
        return Pending(step, images, [task.future for task in tasks])

    def counts(self) -> dict[str, int]:
        """Workers that were lost and replaced."""
        return {"worker_restarts": self._restarts} if self._restarts else {}

    def pids(self) -> list[int]:
        """Ids of the processes, for tests and messages."""
        return [worker.process.pid for worker in self._workers]

    def are_ready(self) -> bool:
        """Whether all processes have started and opened the source."""
        return len(self._workers) == self._number and all(w.ready for w in self._workers)

    def close(self, *, wait: bool = True) -> None:
        """Kills the processes; they hold nothing that could be lost."""
        self._closing = True
        self._wake()
        if wait and threading.current_thread() is not self.thread:
            self.thread.join()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # closed meanwhile
            self._wake_sender.send(b"!", socket.MSG_DONTWAIT)

    def _run(self) -> None:
        failure: BaseException = WorkerError("the loader is closed")
        try:
            for number in range(self._number):
                self._workers.append(_Worker(number, self._maker_file))
            while not self._closing:
                self._hand_out()
                sockets = {worker.socket: worker for worker in self._workers}
                waiting: list[Any] = [self._wake_receiver, *sockets]
                ready: Any
                now = time.monotonic()
                ends = [worker.deadline(self._timeout_s) for worker in self._workers]
                pauses = [_LONGEST_PAUSE_S, *(max(0.0, end - now) for end in ends)]
                for ready in wait(waiting, min(pauses)):
                    if ready is self._wake_receiver:
                        self._wake_receiver.recv(4096)
                    else:
                        self._receive(sockets[ready])
                self.end_late_ones()
        except BaseException as error:  # whatever it is, it is raised where a batch is waited for
            failure = error
        finally:
            self._end(failure)

    def _end(self, failure: BaseException) -> None:
        with self._lock:
            self._failure = failure
            tasks = [task for worker in self._workers for task in worker.tasks] + [*self._queue]
            self._queue.clear()
        for worker in self._workers:
            worker.kill()
        for task in tasks:
            if not task.future.cancelled():
                task.future.set_exception(failure)
        self._wake_receiver.close()
        self._wake_sender.close()
        os.close(self._maker_file)

    def _hand_out(self) -> None:
        for depth in range(1, _AHEAD + 1):
            for worker in self._workers:
                while worker.ready and len(worker.tasks) < depth:
                    task = self._next_task()
                    if task is None:
                        return
                    worker.give(task)

    def _next_task(self) -> _Task | None:
        while True:
            with self._lock:
                if not self._queue:
                    return None
                task = self._queue.popleft()
            if task.future.running() or task.future.set_running_or_notify_cancel():
                return task

    def _receive(self, worker: "_Worker") -> None:
        try:
            message, content = messages.receive(worker.socket)
        except EOFError:
            self._replace(worker, worker.cause_of_death())
            return
        if message == messages.READY:
            worker.ready, self._failed_starts = True, 0
        elif not worker.ready:
            raise WorkerError(f"a worker process cannot start: {content}") from content
        else:
            task = worker.finished()
            if message == messages.DONE:
                task.future.set_result(content)
            else:
                task.future.set_exception(content)

    def end_late_ones(self) -> None:
        """Replaces the processes that gave no sign for too long."""
        now = time.monotonic()
        for worker in [*self._workers]:
            if worker.deadline(self._timeout_s) < now:
                limit = self._timeout_s if worker.ready else START_S
                self._replace(worker, f"gave no sign for {limit:g} s and was ended")

    def _replace(self, worker: "_Worker", what: str) -> None:
        worker.kill()
        name = f"worker {worker.number} (process {worker.process.pid}) {what}"
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise WorkerError(f"{self._failed_starts} in a row did not start; the last: {name}")
        if worker.tasks:
            head = worker.tasks[0]
            head.losses.append(name)
            logging.warning("%s at %s; it is made anew", name, self._describe(head))
            if len(head.losses) > 1:
                worker.tasks.popleft()
                error = WorkerError(
                    f"two processes were lost at {self._describe(head)}: {'; '.join(head.losses)}. "
                    "Is it memory, the storage, or does an example crash its decoder?"
                )
                head.future.set_exception(error)
        else:
            logging.warning("%s; another one is started", name)
        with self._lock:
            self._queue.extendleft(reversed(worker.tasks))
        worker.tasks.clear()
        self._restarts += 1
        self._workers[worker.number] = _Worker(worker.number, self._maker_file)

    def _describe(self, task: _Task) -> str:
        order, at_work = task.order, int(task.at_work[0])
        indices = self.maker.indices(order.start, order.high - order.low, order.stage).tolist()
        at = f"example {at_work} of " if at_work in indices else ""
        return f"step {task.step}, {at}the examples {', '.join(map(str, indices))}"


class _Worker:
    """A process as its parent sees it."""

    def __init__(self, number: int, maker_file: int):
        self.number = number
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        files = (theirs.fileno(), maker_file)
        numbers = [str(value) for value in (*files, os.getpid())]
        modules = (sys.path, importable_folders())
        try:
            # Not multiprocessing: fork would copy JAX's threads half, spawn runs `__main__` again.
            self.process = subprocess.Popen(
                # -P: what lies in the current folder hides nothing.
                [sys.executable, "-P", "-c", _START, json.dumps(modules), *numbers],
                pass_fds=files,
                stdin=subprocess.DEVNULL,
                # A worker has no business on the devices.
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
        finally:
            theirs.close()
        self.tasks: collections.deque[_Task] = collections.deque()
        self.ready = False
        self._since = time.monotonic()

    def give(self, task: _Task) -> None:
        """Hands a part to the worker."""
        if not self.tasks:
            self._since = time.monotonic()
        self.tasks.append(task)
        with contextlib.suppress(ConnectionError):  # it is dead: the end of its socket says so
            messages.send_order(self.socket, task.order, task.memory.file)

    def finished(self) -> _Task:
        """Gives the part that the worker was at."""
        self._since = time.monotonic()
        return self.tasks.popleft()

    def deadline(self, timeout_s: float) -> float:
        """When the worker is late."""
        if not self.ready:
            return self._since + START_S
        return self._since + timeout_s if self.tasks else float("inf")

    def cause_of_death(self) -> str:
        """What ended a process whose socket has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(2.0)
            if code < 0:
                return f"was ended by {signal.Signals(-code).name}"
            return f"ended with exit code {code}"
        return "closed its socket"

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        self.socket.close()
