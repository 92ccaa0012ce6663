"""Compiled programs are kept in a folder of the user's, so that the next start need not compile.

A compiled program is code that JAX runs: who can write to the folder can run what they like as its
user. So it is a folder of this user's that nobody else can write to, never a workdir or a bucket.
"""

import os
import platform
import stat
from pathlib import Path

import jax
from absl import logging

from clipjax.files import sha256

VARIABLE = "CLIPJAX_COMPILE_CACHE"
_OFF = ("off", "0", "false")
_SAVED = "/jax/compilation_cache/compile_time_saved_sec"  # JAX's name for it
_LEAST_SAID_S = 1.0

_saved_s = 0.0
_listens = False


def use(default: Path, *, workdir: Path | None = None) -> Path | None:
    """Switches the cache on; before the first compilation.

    `CLIPJAX_COMPILE_CACHE` names another folder, or is `off`; else JAX's own
    `JAX_COMPILATION_CACHE_DIR` counts. The log says how many seconds the cache has saved.

    Args:
        default: where the folder is made if no variable names one.
        workdir: of the run, where it may not be.

    Returns:
        The folder; None where there is none.

    Raises:
        ValueError: the folder may not hold code: others can write to it, or it is in the workdir or
            in a bucket.
    """
    given = os.environ.get(VARIABLE, "")
    if given.lower() in _OFF:
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    name = VARIABLE if given else "JAX_COMPILATION_CACHE_DIR"
    given = given or str(getattr(jax.config, "jax_compilation_cache_dir", None) or "")
    if "://" in given:
        raise ValueError(
            f"{name}={given}: compiled programs are code, and a bucket is not this user's alone; "
            f"give a local folder, or {VARIABLE}=off"
        )
    # A program may use all that the processor of this machine can; a home is often on several.
    folder = Path(given).expanduser() if given else default / _processor()
    if workdir is not None and folder.resolve().is_relative_to(workdir.resolve()):
        raise ValueError(
            f"{folder} is in the workdir, which others are given, and compiled programs are code; "
            f"give {name} another folder, or {VARIABLE}=off"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (folder, *folder.resolve().parents):
            _check_owner(path, is_cache=path == folder)
    except OSError as error:
        if given:
            raise ValueError(f"{name}={given}: {error.strerror}: {error.filename}") from error
        logging.info("compiled programs are not kept: %s: %s", error.strerror, error.filename)
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    _listen()
    return folder


def _check_owner(path: Path, *, is_cache: bool) -> None:
    """Checks that no other user can write into a folder, or replace one that is in it."""
    found = path.stat()
    others = stat.S_IWOTH | (stat.S_IWGRP if is_cache else 0)
    writable = bool(found.st_mode & others) and (is_cache or not found.st_mode & stat.S_ISVTX)
    if writable or (is_cache and found.st_uid != os.geteuid()):
        raise ValueError(
            f"{path}: others can write to this folder of compiled programs, which are code; "
            f"chmod 700 a folder of your own and name it by {VARIABLE}, or say {VARIABLE}=off"
        )


def _processor() -> str:
    """A name for the kind of this machine's processor."""
    text = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        text = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        text = platform.processor()
    return f"{platform.machine()}-{sha256(text)[:8]}"


def _listen() -> None:
    global _listens
    if not _listens:
        _listens = True
        jax.monitoring.register_event_duration_secs_listener(_note)


def _note(event: str, duration_secs: float, **kwargs: str | int) -> None:
    global _saved_s
    if event == _SAVED and duration_secs > 0:
        _saved_s += duration_secs
        if duration_secs >= _LEAST_SAID_S:
            text = "a program was compiled before: %.1f s saved, %.1f s since the start"
            logging.info(text, duration_secs, _saved_s)
