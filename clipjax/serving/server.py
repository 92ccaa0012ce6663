"""The server: where it listens, who may reach it there, and how it ends."""

import asyncio
import contextlib
import ipaddress
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from clipjax.serving.guard import HEADERS
from clipjax.serving.limits import Limits

_MAX_CONNECTIONS = 512
_MAX_HEADER_BYTES = 16 * 2**10
_IDLE_S = 5  # that a connection is kept between two requests
_QUIET_S = 20.0  # that it may take without a request that is in work
_LAST_S = 5  # beyond a request's time, at the end
_MIN_TOKEN = 16  # characters


def bind(host: str, port: int) -> tuple[socket.socket, bool]:
    """Takes an address, and tells whether only this machine reaches it.

    Raises:
        ValueError: there is no such address, or it is taken.
    """
    taken = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except (OSError, UnicodeError) as error:
        if taken is not None:
            taken.close()
        why = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"host={host!r}, port={port}: {why}; give another by host= or port="
        ) from error
    return taken, ipaddress.ip_address(taken.getsockname()[0]).is_loopback


def read_token(file: str | None, variable: str | None) -> str | None:
    """The token of a file, else of an environment variable; None where there is neither.

    Raises:
        ValueError: the file cannot be read, or the token is too short, or no word.
    """
    token = variable
    if file is not None:
        try:
            token = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"the token's file {file} cannot be read: {error}") from error
    if token is None:
        return None
    if len(token) < _MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"the token has to be {_MIN_TOKEN} or more letters and digits of ASCII, without "
            "blanks; `python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one"
        )
    return token


def make_server(
    app: ASGIApp, limits: Limits, began: Callable[[], None] = lambda: None
) -> uvicorn.Server:
    """Makes what serves, by `run(sockets=[...])`, until SIGTERM or SIGINT.

    Then it takes no more requests, and ends when those in work are answered.

    Args:
        app: of `make_app`.
        limits: `request_s`.
        began: called when the server listens.
    """
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="error",  # what is warned of is a client's doing, and answered
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=int(limits.request_s) + _LAST_S,
    )
    return _Server(config, began)


class _Server(uvicorn.Server):
    """uvicorn's, whose end by a signal is no failure."""

    def __init__(self, config: uvicorn.Config, began: Callable[[], None]) -> None:
        super().__init__(config)
        self._began = began

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._began()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # which alone hears them
            yield
            return
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Protocol(H11Protocol):
    """uvicorn's, which refuses what is no HTTP in JSON, and waits for nothing without end."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > _MAX_CONNECTIONS:
            transport.abort()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_working():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def send_400_response(self, msg: str) -> None:
        body = json.dumps({"error": "this is no request of HTTP/1.1, or its headers are too large"})
        headers: Sequence[tuple[str, str]] = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
            *HEADERS.items(),
        ]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer has begun
            self.transport.write(
                self.conn.send(h11.Response(status_code=400, headers=list(headers))) or b""
            )
            self.transport.write(self.conn.send(h11.Data(data=body.encode())) or b"")
            self.transport.write(self.conn.send(h11.EndOfMessage()) or b"")
        self.transport.close()

    def _is_working(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._stop_waiting()
        self._late = self.loop.call_later(_QUIET_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if not self._is_working():
            self.transport.close()
