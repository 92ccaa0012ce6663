"""Failing on purpose: named points where a fault can be injected.

`CLIPJAX_FAULT="kill@save.before_manifest:step=37"` makes the process kill itself at that point of
step 37; `EIO@checkpoint.read:times=9` lets the first nine reads fail with that error of the system.
Tests use it to prove that a run survives; unset, a point costs one look at the environment.
"""

import collections
import errno
import os
import signal
import time

from absl import logging

FAULT = "CLIPJAX_FAULT"
_SIGNALS = {
    "kill": signal.SIGKILL,
    "term": signal.SIGTERM,
    "hup": signal.SIGHUP,
    "int": signal.SIGINT,
    "usr1": signal.SIGUSR1,
}
ACTIONS = (*_SIGNALS, "raise", "hang", "slow")  # and the names of `errno`
SLOW_S = 0.2

fired: set[str] = set()  # those that are used up
_struck: collections.Counter[str] = collections.Counter()


class InjectedFault(RuntimeError):
    """What `raise@...` raises."""


def parse_fault(text: str) -> tuple[str, str, int | None, int]:
    """Splits `action@point[:step=N][:times=N]`; it strikes once where no number is given.

    Raises:
        ValueError: the text has another form, or names an unknown action.
    """
    action, at, where = text.partition("@")
    point_name, *conditions = where.split(":")
    known = (action in ACTIONS or hasattr(errno, action)) and bool(at and point_name)
    numbers = dict(condition.partition("=")[::2] for condition in conditions)
    if not known or not all(k in ("step", "times") and n.isdecimal() for k, n in numbers.items()):
        raise ValueError(
            f"{FAULT}={text!r}: expected action@point[:step=N][:times=N], with an action of "
            f"{', '.join(ACTIONS)}, or the name of an error of the system, such as EIO"
        )
    step = numbers.get("step")
    return action, point_name, None if step is None else int(step), int(numbers.get("times", 1))


def point(name: str, step: int | None = None) -> None:
    """Marks a place where a fault can be injected; it strikes as often a process as it says.

    Raises:
        InjectedFault: if `CLIPJAX_FAULT` says `raise` here.
        OSError: it names an error of the system.
        ValueError: `CLIPJAX_FAULT` has another form than `parse_fault` reads.
    """
    text = os.environ.get(FAULT)
    if not text or text in fired:
        return
    action, wanted_name, wanted_step, times = parse_fault(text)
    if name != wanted_name or wanted_step not in (None, step):
        return
    _struck[text] += 1
    if _struck[text] >= times:
        fired.add(text)
        del _struck[text]
    logging.warning("injected fault: %s", text)
    if action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[action])
    elif action == "raise":
        raise InjectedFault(text)
    elif action == "slow":
        time.sleep(SLOW_S)
    elif action not in ACTIONS:
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number), text)
    while action == "hang":
        time.sleep(60)
