"""What a loader and its worker processes say to one another.

A socket of whole messages (SOCK_SEQPACKET): none is ever read in part, so a worker that is stopped
while it writes does not stop who reads. A message is a few bytes, its content is a file without a
name (memfd) that travels with it; both are gone when nobody holds them. Batches are made in such
files too. Pickles go between the processes of one run only.
"""

import mmap
import os
import pickle
import socket
from typing import Any, NamedTuple

import numpy as np

READY, DONE, FAILED = b"ready", b"done", b"failed"
_LIMIT = 4096  # bytes of a message


class Order(NamedTuple):
    """One part of a batch: rows `low..high - 1`, the first of them at position `start`.

    The rest says how the batch's memory is laid out: `rows` images of `size` x `size` pixels, then
    one number for each of `parts` parts, where its worker writes at which example it is.
    """

    stage: int
    start: int
    low: int
    high: int
    part: int
    parts: int
    rows: int
    size: int


def memory_file(content: bytes = b"") -> int:
    """Makes a file in memory and gives its descriptor."""
    file = os.memfd_create("clipjax-loader", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(file), "wb") as writer:
        writer.write(content)
    return file


def batch_memory(file: int, order: Order) -> tuple[np.ndarray, np.ndarray]:
    """Opens a batch's memory; it is let go with the last array that uses it.

    Returns:
        Images u8 `[rows, size, size, 3]`, and indices of the examples at work i64 `[parts]`.
    """
    images = order.rows * order.size**2 * 3
    at_work = -(-images // 64) * 64
    total = at_work + 8 * order.parts
    if os.fstat(file).st_size < total:
        os.ftruncate(file, total)
    memory = mmap.mmap(file, total)
    shape = (order.rows, order.size, order.size, 3)
    return (
        np.frombuffer(memory, np.uint8, images).reshape(shape),
        np.frombuffer(memory, np.int64, order.parts, at_work),
    )


def send(connection: socket.socket, message: bytes, content: Any = None) -> None:
    """Sends a message and, pickled, what belongs to it."""
    file = memory_file(pickle.dumps(content, pickle.HIGHEST_PROTOCOL))
    try:
        socket.send_fds(connection, [message], [file])
    finally:
        os.close(file)


def receive(connection: socket.socket) -> tuple[bytes, Any]:
    """Waits for what `send` sent; EOFError if the other side is gone."""
    message, file = receive_file(connection)
    try:
        return message, unpickle(file)
    finally:
        os.close(file)


def unpickle(file: int) -> Any:
    """Reads an object from a file in memory."""
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as content:
        return pickle.loads(content)


def send_order(connection: socket.socket, order: Order, file: int) -> None:
    """Sends a part to be made, with its batch's memory."""
    socket.send_fds(connection, [np.array(order, np.int64).tobytes()], [file])


def receive_order(connection: socket.socket) -> tuple[Order, int]:
    """Waits for an order; EOFError if there will be none."""
    message, file = receive_file(connection)
    return Order(*np.frombuffer(message, np.int64).tolist()), file


def receive_file(connection: socket.socket) -> tuple[bytes, int]:
    """Waits for a message and the file that travels with it."""
    try:
        message, files, _, _ = socket.recv_fds(connection, _LIMIT, 1)
    except ConnectionError as error:
        raise EOFError("the other side is gone") from error
    if not files:
        raise EOFError("the other side is gone")
    return message, files[0]
