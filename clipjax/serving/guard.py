"""Who may ask, how much at once and for how long; each error is one sentence of JSON."""

import asyncio
import hmac
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from absl import logging
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipjax.printable import describe
from clipjax.serving.limits import Limits, RefusedError, busy

HEALTH = "/api/health"
PICTURES = "/api/pictures/"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
METHODS = ("GET", "HEAD", "POST")


class Guard:
    """Stands before an app: checks where a request is from, counts it, ends it in time, logs it.

    Args:
        app: what answers; its errors that are no `RefusedError` are answered without a detail.
        limits: `requests` and `request_s`.
        token: that a request for the API has to bring; None for none.
        hosts: names that a request may call this server by; None for any. A page of another site
            can have its own name lead to this machine, and would else be let in.
        places: paths that a log line may name; what else a request asks for, it does not.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        token: str | None,
        hosts: Collection[str] | None,
        places: Collection[str],
    ) -> None:
        self._app, self._limits, self._places = app, limits, places
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._token = None if token is None else f"Bearer {token}".encode()
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        began, answer = time.monotonic(), _Answer(receive, send)
        try:
            try:
                self._check(scope)
                async with asyncio.timeout(self._limits.request_s):
                    await self._counted(scope, answer)
            except RefusedError as error:
                await answer.refuse(scope, error)
            except TimeoutError:
                await answer.refuse(scope, self._late(answer))
            except ClientDisconnect:
                answer.status = 499  # as nginx logs it: nobody waits for an answer
            except Exception as error:
                logging.error("a request failed: %s: %s", type(error).__name__, describe(error))
                await answer.refuse(scope, RefusedError(500, "the server failed; its log says why"))
        finally:
            self._log(scope, answer.status, time.monotonic() - began)

    async def _counted(self, scope: Scope, answer: "_Answer") -> None:
        """Runs the app; of the API's requests no more at once than are allowed."""
        path = scope["path"]
        if not path.startswith("/api/") or path == HEALTH:
            await self._app(scope, answer.receive, answer.send)
            return
        if self._running >= self._limits.requests:
            raise busy()
        self._running += 1
        try:
            await self._app(scope, answer.receive, answer.send)
        finally:
            self._running -= 1

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._hosts is not None:
            if _name(headers.get("host", "")) not in self._hosts:
                raise RefusedError(403, f"call this server by {' or '.join(sorted(self._hosts))}")
            origin = headers.get("origin")
            if (
                self._token is None
                and origin is not None
                and _place(origin) != headers["host"].lower()
            ):
                raise RefusedError(403, "pages of other sites may not ask this server")
        path = scope["path"]
        if self._token is None or not path.startswith("/api/") or path == HEALTH:
            return
        given = headers.get("authorization", "").encode("utf-8", "replace")
        if not hmac.compare_digest(given, self._token):
            raise RefusedError(
                401,
                "the token is missing or wrong: send it as Authorization: Bearer TOKEN",
                {"www-authenticate": "Bearer"},
            )

    def _late(self, answer: "_Answer") -> RefusedError:
        seconds = f"{self._limits.request_s:g} s"
        if answer.is_read:
            return RefusedError(504, f"the answer took longer than {seconds}", {"retry-after": "1"})
        closed = {"connection": "close"}
        return RefusedError(408, f"the request did not arrive within {seconds}", closed)

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        path, method = scope["path"], scope["method"]
        place = path if path in self._places else "elsewhere"
        place = f"{PICTURES}N" if path.startswith(PICTURES) else place
        method = method if method in METHODS else "another method"
        logging.info("%s %s: %d, %.0f ms", method, place, status, 1000 * seconds)


class _Answer:
    """What comes and goes of one request."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.status, self.is_read = 0, False

    async def receive(self) -> Message:
        message = await self._receive()
        self.is_read |= message["type"] == "http.request" and not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message["headers"], *added]}
        await self._send(message)

    async def refuse(self, scope: Scope, error: RefusedError) -> None:
        """Answers with an error, unless an answer has begun."""
        if not self.status:
            await refusal(error)(scope, self.receive, self.send)


def refusal(error: RefusedError) -> Response:
    """The answer of a refused request."""
    return JSONResponse({"error": error.sentence}, error.status, error.headers)


def _name(host: str) -> str | None:
    """The name in a header Host, without the port."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _place(origin: str) -> Any:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None
