"""A server in a thread of this process, and what asks it."""

import base64
import contextlib
import http.client
import json
import socket
import threading
from typing import NamedTuple

import clipjax
from clipjax.embeddings.index import Index
from clipjax.embeddings.model import open_model_of
from clipjax.serving.limits import Limits
from clipjax.serving.service import Service

OWN = {"localhost", "127.0.0.1"}


class Reply(NamedTuple):
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Served(NamedTuple):
    service: Service
    port: int

    def send(self, data):
        """Sends bytes as they are; everything that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def ask(self, path, fields=None, *, method=None, body=None, **headers):
        """Asks as a program does: JSON, or a body as it is."""
        return ask(self.port, path, fields, method=method, body=body, **headers)


def ask(port, path, fields=None, *, method=None, body=None, **headers):
    if fields is not None:
        body = json.dumps(fields)
        headers.setdefault("content_type", "application/json")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(
            method or ("GET" if body is None else "POST"),
            path,
            body,
            {name.replace("_", "-"): value for name, value in headers.items()},
        )
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read())


def encoded(data):
    return base64.b64encode(data).decode()


@contextlib.contextmanager
def serving(
    checkpoint=None, *, index=None, limits=None, token=None, hosts=OWN, address="127.0.0.1"
):
    """Serves a checkpoint, or an index with its model."""
    from clipjax.serving.app import make_app
    from clipjax.serving.searching import Searcher
    from clipjax.serving.server import bind, make_server

    limits, searcher = limits or Limits(), None
    if index is not None:
        opened = Index.open(index)
        searcher = Searcher(opened, opened.source(), limits.results)
        model = open_model_of(opened, batch_size=limits.batch_rows).model
    else:
        model = clipjax.load(checkpoint, batch_size=limits.batch_rows)
    service = Service(model, limits, searcher=searcher)
    listener, is_own = bind(address, 0)
    assert is_own == (address == "127.0.0.1")
    port, began = listener.getsockname()[1], threading.Event()
    app = make_app(service, token=token, hosts=hosts)
    server = make_server(app, limits, began.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert began.wait(60)
    try:
        yield Served(service, port)
    finally:
        server.should_exit = True
        thread.join()
        service.close()
