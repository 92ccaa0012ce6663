"""The page and the API: what is asked for at which address."""

from collections.abc import Collection
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clipjax.report.page import style
from clipjax.serving.fields import Fields, parse
from clipjax.serving.guard import HEALTH, PICTURES, Guard, refusal
from clipjax.serving.limits import RefusedError
from clipjax.serving.service import Service

_SENTENCES = {404: "there is nothing at this address", 405: "another method is needed here"}


def make_app(
    service: Service, *, token: str | None = None, hosts: Collection[str] | None = None
) -> Starlette:
    """Makes the app.

    Args:
        service: what answers.
        token: that the API asks for; None for none.
        hosts: names that the server may be called by; None for any.
    """
    routes = [
        _file("/", "page.html", "text/html"),
        _file("/page.js", "page.js", "text/javascript"),
        _file("/page.css", "page.css", "text/css", before=style()),
        Route(HEALTH, _health),
        Route("/api/about", _about),
        Route("/api/classify", _classify, methods=["POST"]),
        Route("/api/embed", _embed, methods=["POST"]),
        Route("/api/search", _search, methods=["POST"]),
        Route(f"{PICTURES}{{number}}", _picture),
    ]
    guard = Middleware(
        Guard,
        limits=service.limits,
        token=token,
        hosts=hosts,
        places=[route.path for route in routes],
    )
    handlers: dict[Any, Any] = {RefusedError: _refused, HTTPException: _http_error}
    app = Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _refused(request: Request, error: RefusedError) -> Response:
    return refusal(error)


async def _http_error(request: Request, error: HTTPException) -> Response:
    sentence = _SENTENCES.get(error.status_code, "the request is not one that is served")
    return refusal(RefusedError(error.status_code, sentence, dict(error.headers or {})))


def _file(path: str, name: str, kind: str, before: str = "") -> Route:
    text = resources.files("clipjax.serving").joinpath(name).read_text(encoding="utf-8")

    async def give(request: Request) -> Response:
        return Response(before + text, media_type=kind)

    return Route(path, give)


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _about(request: Request) -> Response:
    return JSONResponse(_service(request).about())


async def _classify(request: Request) -> Response:
    fields = await _fields(request, ("image", "labels", "templates"))
    labels, templates = fields.labels(), fields.templates()
    if (picture := await _decoded(request, fields)) is None:
        raise RefusedError(400, "image is missing: a picture file, in base64")
    return JSONResponse(await _service(request).classify(picture, labels, templates))


async def _embed(request: Request) -> Response:
    service = _service(request)
    fields = await _fields(request, ("image", "texts"))
    texts = fields.texts("texts", service.limits.texts)
    picture = await _decoded(request, fields)
    if (picture is None) == (not texts):
        raise RefusedError(400, "give image or texts, one of both")
    if picture is not None:
        embeds = (await service.embed_picture(picture))[None]
    else:
        embeds = await service.embed_texts(texts)
    about = {"model": service.model.spec["name"]}
    return JSONResponse(about | {"embeddings": await service.aside(embeds.tolist)})


async def _search(request: Request) -> Response:
    service = _service(request)
    pictures = len(service.index())
    fields = await _fields(request, ("query", "image", "minus", "top"))
    most = service.limits.texts
    texts, minus, top = (
        fields.texts("query", most),
        fields.texts("minus", most),
        fields.top(pictures),
    )
    picture = await _decoded(request, fields)
    if not texts and picture is None:
        raise RefusedError(400, "give query, a text to look for, or image; minus takes away")
    return JSONResponse(await service.search(texts, picture, minus, top))


async def _picture(request: Request) -> Response:
    service, number = _service(request), request.path_params["number"]
    if not (number.isascii() and number.isdecimal() and len(number) < 16):
        raise RefusedError(404, "pictures have numbers, as a search gives them")
    data = await service.aside(service.index().picture, int(number))
    return Response(data, media_type="image/jpeg")


def _service(request: Request) -> Service:
    return request.app.state.service


async def _fields(request: Request, names: Collection[str]) -> Fields:
    service, headers = _service(request), request.headers
    body = await _body(request, service.limits.body_bytes)
    kind, query = headers.get("content-type", ""), request.url.query
    given = await service.aside(parse, body, kind, query, names)
    return Fields(given, service.limits)


async def _body(request: Request, most: int) -> bytes:
    length = request.headers.get("content-length", "")
    parts, size = [], int(length) if length.isdecimal() else 0
    if size <= most:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                break
            parts.append(part)
    if size > most:
        raise RefusedError(413, f"the body is larger than {most:,} bytes, which are allowed")
    return b"".join(parts)


async def _decoded(request: Request, fields: Fields) -> bytes | None:
    return await _service(request).aside(fields.picture)
