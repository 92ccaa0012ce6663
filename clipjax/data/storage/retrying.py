"""Which errors of storage may pass, and how often it is asked again."""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from absl import logging

T = TypeVar("T")

ATTEMPTS = 6
FIRST_DELAY_S = 1.0  # doubled after every attempt: 31 s in all, less the jitter
DEADLINE_S = 60.0  # after which none is begun: the libraries of buckets try again themselves

_PERMANENT = (
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_TRANSIENT_STATUS = (408, 429, 500, 502, 503, 504)
_TRANSIENT_ERRNO = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.ENFILE,
    errno.ENOBUFS,
    errno.ENOLCK,
    errno.ENOMEM,
    errno.ENOTCONN,  # a mount whose process is gone
    errno.EPIPE,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
# Errors of these libraries that carry no status are broken connections.
_NETWORK_LIBRARIES = ("aiohttp", "botocore", "gcsfs", "google", "requests", "urllib3")


class StorageError(OSError):
    """A file could not be read, although it was tried more than once."""


class TruncatedError(StorageError):
    """A local file ends before what was asked for: its content is at fault, not the storage."""


class ShortReadError(OSError):
    """Fewer bytes came than the file holds."""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, _PERMANENT) or "Credential" in type(error).__name__:
        return False
    status = getattr(error, "code", None) or getattr(error, "status", None)
    if isinstance(status, int | str) and str(status).isdigit():
        return int(status) in _TRANSIENT_STATUS
    if isinstance(error, TimeoutError | ConnectionError | ShortReadError):
        return True
    if _is_network_library(error):
        return True
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO


def is_wrong_path(error: OSError) -> bool:
    """Whether the path itself is at fault, for good: no file, a folder, too long, not allowed."""
    wrong = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
    return isinstance(error, wrong) or error.errno in (errno.ELOOP, errno.ENAMETOOLONG)


def is_of_the_system(error: BaseException) -> bool:
    """Whether the system or the storage failed, which says nothing about what was to be read."""
    if not isinstance(error, OSError) or is_missing(error):
        return False
    return error.errno is not None or isinstance(error, StorageError)


def is_missing(error: OSError) -> bool:
    """Whether there is nothing at the path: that is what the storage says, and no failure of it."""
    return is_wrong_path(error) and not isinstance(error, PermissionError)


def _is_network_library(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in _NETWORK_LIBRARIES


def retry(operation: Callable[[], T], what: str) -> T:
    """Runs an operation, again after a transient error, a limited number of times.

    The delay doubles every time and is cut by a random part of up to one half, so that the
    hosts of a run do not return all at once.

    Raises:
        StorageError: when the attempts are used up; any other error of the operation as it is.
    """
    start = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return operation()
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            if not is_transient(error):
                if _is_network_library(error):
                    raise StorageError(f"{what} failed: {told}") from error
                raise
            seconds = time.monotonic() - start
            if attempt == ATTEMPTS or seconds > DEADLINE_S:
                raise StorageError(
                    f"{what} failed {attempt} times in {seconds:.0f} s; the last time: {told}"
                ) from error
            delay = FIRST_DELAY_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            logging.warning("%s: %s. Attempt %d in %.1f s.", what, told, attempt + 1, delay)
            time.sleep(delay)
    raise AssertionError("unreachable")
