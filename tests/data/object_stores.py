"""Servers of object stores on this machine, and a network before them that fails as told."""

import collections
import contextlib
import http.client
import http.server
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time

# scheme -> arguments of the server's module, up to the port.
SERVERS = {
    "s3": ("moto.server", "-H", "127.0.0.1", "-p"),
    "gs": ("gcp_storage_emulator", "start", "--host=127.0.0.1", "--in-memory", "--port"),
}
_HOP = {"connection", "transfer-encoding", "content-length", "server", "date"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(scheme):
    """Runs a server of a scheme and gives its port."""
    port = free_port()
    command = [sys.executable, "-m", *SERVERS[scheme], str(port)]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{' '.join(command)} does not start")
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


class Network(http.server.ThreadingHTTPServer):
    """Passes requests on to a port; answers that carry bytes of objects may be spoiled.

    `faults` are the next ones, `rate` the part of the others that is spoiled at random; `seen`
    counts what was done, and `bytes` what objects gave.
    """

    daemon_threads = True
    KINDS = ("unavailable", "reset", "cut", "less")

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target, self.faults, self.rate = target, collections.deque(), 0.0
        self.forbidden, self.bytes, self.seen = "", 0, collections.Counter()
        self.random, self.lock = random.Random(0), threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_fault(self):
        with self.lock:
            if self.faults:
                fault = self.faults.popleft()
            else:
                fault = self.random.choice(self.KINDS) if self.random.random() < self.rate else None
            self.seen[fault] += 1
            return fault

    def handle_error(self, request, client_address):
        """A client that went away is none of the server's business."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        backend = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=30)
        with contextlib.closing(backend):
            backend.request(self.command, self.path, body, dict(self.headers))
            answer = backend.getresponse()
            content = answer.read()
        # A range of bytes, and only that, is answered with 206.
        fault = self.server.next_fault() if answer.status == 206 else None
        status = answer.status
        if self.server.forbidden and self.server.forbidden in self.path:
            status, content = 403, b""
        elif fault == "unavailable":
            status, content = 503, b""
        elif fault == "reset":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            return
        length = len(content)
        if fault in ("cut", "less"):
            content = content[: length // 2]
        if fault == "less":
            length = len(content)
        if status == 206:
            self.server.bytes += len(content)
        self.send_response(status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        if self.command == "HEAD":
            length = answer.getheader("Content-Length") or 0
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.close_connection = fault == "cut"

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on
