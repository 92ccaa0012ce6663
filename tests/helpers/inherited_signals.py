"""Signals that a suite or a driver inherited as ignored, in the background or under nohup."""

import signal
import threading


def hear_signals() -> None:
    """Has the commands that are started from here hear SIGINT and SIGHUP, as users' do."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
