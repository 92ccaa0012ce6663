"""`clipjax serve`: when it starts, when it refuses to, and how it ends."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time

import pytest
from counting import HANGS_S, wait_until
from serving import ask

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
TOKEN = "correct-horse-battery"


def free_port():
    """A port that is free just now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def when_it_serves(port, then):
    """Waits for the server of this process, in a thread beside it."""
    while True:
        with contextlib.suppress(OSError):
            if ask(port, "/api/health").status == 200:
                return then(port)
        time.sleep(0.02)


def test_it_serves_until_a_signal_ends_it_quietly(command, index, tmp_path):
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    replies = []

    def ask_and_stop(port):
        given = {"authorization": f"Bearer {TOKEN}"}
        replies.append(ask(port, "/api/search", {"query": "a cat"}, **given))
        os.kill(os.getpid(), signal.SIGINT)

    port = free_port()
    thread = threading.Thread(target=when_it_serves, args=(port, ask_and_stop))
    thread.start()
    flags = (f"--index={index}", f"--port={port}", "--batch_size=2")
    done = command("serve", *flags, f"--token_file={tmp_path}/token")
    thread.join()
    assert done.code == 0, done.err
    assert re.fullmatch(rf"serving tiny, 22 pictures at http://127.0.0.1:{port}; .*\n", done.out)
    assert len(replies[0].json["results"]) == 20
    assert "POST /api/search: 200, " in done.err
    assert not re.search("Traceback|Error|WARNING|ERROR", done.err), done.err
    assert TOKEN not in done.err + done.out


def test_what_is_in_work_when_a_signal_ends_it_is_answered(command, checkpoint):
    """Two requests of which half has come; nobody else is let in any more."""
    body, answers = json.dumps({"texts": ["a cat"]}).encode(), []
    head = "POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"

    def ask_stop_and_go_on(port):
        asked = [socket.create_connection(("127.0.0.1", port), HANGS_S) for _ in range(2)]
        for connection in asked:
            connection.sendall(head.encode() + body[:9])
        wait_until(lambda: ask(port, "/api/about").status == 503)  # both are in work
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: not listens(port))
        time.sleep(0.3)  # longer than a server that ended now would take
        for connection in asked:
            with connection:
                connection.sendall(body[9:])
                answers.append(b"".join(iter(lambda c=connection: c.recv(65536), b"")))

    port = free_port()
    thread = threading.Thread(target=when_it_serves, args=(port, ask_stop_and_go_on))
    thread.start()
    flags = (f"--checkpoint={checkpoint}", f"--port={port}", "--batch_size=2")
    done = command("serve", *flags, "--max_requests=2")
    thread.join()
    assert done.code == 0, done.err
    assert [answer.split()[1] for answer in answers] == [b"200", b"200"], answers
    assert all(b'{"model":"tiny","embeddings":[[' in answer for answer in answers)


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), HANGS_S).close()
    except ConnectionRefusedError:
        return False
    return True


def test_what_others_reach_needs_a_token(command, checkpoint, tmp_path, monkeypatch):
    flags = ("serve", f"--checkpoint={checkpoint}", "--host=0.0.0.0", "--port=0")
    done = command(*flags)
    assert done.code == 1 and "set a token" in done.err
    monkeypatch.setenv("CLIPJAX_SERVE_TOKEN", "short")
    done = command(*flags)
    assert done.code == 1 and "16 or more" in done.err and "short" not in done.err
    done = command(*flags, f"--token_file={tmp_path}/none")
    assert done.code == 1 and "cannot be read" in done.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--port=0",), "--checkpoint PATH is missing"),
        (("--checkpoint=c", "--host=no.such.host.invalid"), "give another by --host or --port"),
        (("--checkpoint=nowhere", "--port=0"), "nowhere: no such file"),
        (("--index=nowhere", "--port=0"), "has no index.json"),
        (("--checkpoint=c", "--port=70000"), "--port"),
        (("--checkpoint=c", "--timeout_s=inf"), "--timeout_s=inf is no limit"),
        (("--checkpoint=c", "--max_body_mb=nan"), "--max_body_mb=nan is no limit"),
    ],
)
def test_what_cannot_be_served_is_said(command, flags, words):
    done = command("serve", *flags)
    assert done.code == 1 and words in done.err and "Traceback" not in done.err


def test_an_address_that_is_taken_is_said(command, server, checkpoint):
    done = command("serve", f"--checkpoint={checkpoint}", f"--port={server.port}")
    assert done.code == 1 and "in use" in done.err and "--port" in done.err


def test_without_the_extra_it_says_what_to_install(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [name for name in sys.modules if name.startswith("clipjax.serving.server")]:
        monkeypatch.delitem(sys.modules, name)
    done = command("serve", "--checkpoint=c")
    assert done.code == 1 and "pip install 'clipjax[serve]'" in done.err
