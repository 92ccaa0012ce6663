"""Failing on purpose: named points where a fault can be injected.

`CLIPJAX_FAULT="kill@save.before_manifest:step=37"` makes the process kill itself at that point of
step 37. Tests use it to prove that a run survives; unset, a point costs one look at the
environment.
"""

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
ACTIONS = (*_SIGNALS, "raise", "hang")

_fired: set[str] = set()


class InjectedFault(RuntimeError):
    """What `raise@...` raises."""


def parse_fault(text: str) -> tuple[str, str, int | None]:
    """Splits `action@point[:step=N]`.

    Raises:
        ValueError: the text has another form, or names an unknown action.
    """
    action, at, where = text.partition("@")
    point_name, _, condition = where.partition(":")
    key, _, number = condition.partition("=")
    known = action in ACTIONS and bool(at and point_name)
    if not known or (condition and (key != "step" or not number.isdecimal())):
        raise ValueError(
            f"{FAULT}={text!r}: expected action@point[:step=N], with an action of "
            f"{', '.join(ACTIONS)}"
        )
    return action, point_name, int(number) if condition else None


def point(name: str, step: int | None = None) -> None:
    """Marks a place where a fault can be injected; each fault strikes once a process.

    Raises:
        InjectedFault: if `CLIPJAX_FAULT` says `raise` here.
        ValueError: `CLIPJAX_FAULT` has another form than `parse_fault` reads.
    """
    text = os.environ.get(FAULT)
    if not text or text in _fired:
        return
    action, wanted_name, wanted_step = parse_fault(text)
    if name != wanted_name or wanted_step not in (None, step):
        return
    _fired.add(text)
    logging.warning("injected fault: %s", text)
    if action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[action])
    elif action == "raise":
        raise InjectedFault(text)
    while action == "hang":
        time.sleep(60)
