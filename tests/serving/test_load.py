"""The server as a process of its own: many clients at once, and clients that mean no good."""

import contextlib
import http.client
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from counting import HANGS_S
from serving import ask, encoded

import clipjax
from clipjax.embeddings.index import Index
from clipjax.embeddings.search import block_rows, search

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow

CLIENTS, REQUESTS, MALFORMED = 32, 2_000, 200
WARM = 400  # requests, before memory is looked at
KEPT_S = 1.0  # that a client keeps a connection it does not use; the server, 5
GROWTH_MB = 48  # that is taken for flat: what allocators keep of 32 threads


@contextlib.contextmanager
def process(*flags):
    """`clipjax serve`, until SIGTERM; gives its port and number."""
    command = [sys.executable, "-m", "clipjax", "serve", "--port=0", *flags]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        said = []
        reader = threading.Thread(target=lambda: said.extend(started.stderr))
        reader.start()
        try:
            line = started.stdout.readline()
            assert line.startswith("serving "), "".join(said)
            yield int(re.search(r":(\d+);", line)[1]), started.pid
            started.send_signal(signal.SIGTERM)
            assert started.wait(HANGS_S) == 0
        finally:
            started.kill()
            reader.join()
        assert "Traceback" not in "".join(said) and "failed" not in "".join(said)


def memory_mb(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def questions(model, index, pictures):
    """(address, fields, answer), each asked of the library by itself."""
    opened = Index.open(index)
    blocks = list(opened.blocks(block_rows(1, 5)))
    for number in (3, 7, 11, 20):
        data = (pictures / f"{number:02d}.png").read_bytes()
        for labels in (["cat", "dog"], [f"label {n}" for n in range(number)]):
            answer = dict(model.classify([data], labels)[0])
            yield "/api/classify", {"image": encoded(data), "labels": labels}, answer
        embed = model.encode_image([data])
        yield "/api/embed", {"image": encoded(data)}, embed
        cosines, places = search(embed, blocks, 5)
        answer = dict(zip(places[0].tolist(), cosines[0].tolist(), strict=True))
        yield "/api/search", {"image": encoded(data), "top": 5}, answer
        texts = [f"a text of {number}" + " and more" * n for n in range(number % 5 + 1)]
        yield "/api/embed", {"texts": texts}, model.encode_text(texts)


def distance(reply, answer):
    """The largest difference of an answer's numbers from the expected ones."""
    if isinstance(answer, np.ndarray):
        return np.abs(np.array(reply["embeddings"]) - answer).max()
    found = {one.get("label", one.get("number")): one for one in reply.get("labels", [])}
    found |= {one["number"]: one for one in reply.get("results", [])}
    assert found.keys() == answer.keys()
    return max(
        abs(found[key].get("probability", found[key].get("cosine")) - value)
        for key, value in answer.items()
    )


def test_of_many_requests_none_is_lost_and_memory_stays(checkpoint, index, pictures, capsys):
    asked = list(questions(clipjax.load(checkpoint), index, pictures))
    order = random.Random(0).choices(asked, k=REQUESTS)
    seconds, far, lost, opened, local = [], [], [], [], threading.local()

    def connection():
        """This client's, opened anew where the server might be closing it."""
        used = getattr(local, "used", None)
        if used is None or time.monotonic() - used > KEPT_S:
            if used is not None:
                local.connection.close()
            local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANGS_S)
            opened.append(local.connection)
        return local.connection

    def one(question):
        address, fields, answer = question
        body, headers = json.dumps(fields), {"content-type": "application/json"}
        began = time.perf_counter()
        try:
            connection().request("POST", address, body, headers)
            reply = local.connection.getresponse()
            found = json.loads(reply.read())
        except (http.client.HTTPException, OSError) as error:
            lost.append(repr(error))
            local.connection.close()
            return
        finally:
            local.used = time.monotonic()
        assert reply.status == 200, found
        seconds.append(time.perf_counter() - began)
        far.append(distance(found, answer))

    with process(f"--index={index}", "--timeout_s=120") as (port, pid):
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(one, order[:WARM]))
            before, began = memory_mb(pid), time.perf_counter()
            list(clients.map(one, order[WARM:]))
        rate = (REQUESTS - WARM) / (time.perf_counter() - began)
        after = memory_mb(pid)
        for each in opened:
            each.close()
    assert lost == [] and len(seconds) == len(far) == REQUESTS
    p50, p99 = np.percentile(seconds[WARM:], [50, 99]) * 1000
    with capsys.disabled():
        sys.stdout.write(
            f"\n{REQUESTS} requests of {CLIENTS} clients, {len(lost)} lost: p50 {p50:.0f} ms, "
            f"p99 {p99:.0f} ms, {rate:.0f} a second; farthest answer {max(far):.1e}; memory "
            f"{before:.0f} MB after {WARM}, {after:.0f} MB at the end\n"
        )
    assert max(far) < 1e-5
    assert after - before < GROWTH_MB


def bad_request(rng, picture):
    """Bytes of one request that is wrong in one of several ways, and whether it stays open."""
    head = "POST /api/{} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\n"

    def posted(body, kind="application/json", where="classify"):
        length = f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return (head.format(where, kind) + length).encode() + body

    cut = picture[: rng.randrange(1, len(picture) * 3 // 4)]  # without its end it is whole
    spoilt = bytearray(picture)
    spoilt[rng.randrange(8)] ^= 1 << rng.randrange(8)
    fields = json.dumps({"image": encoded(cut), "labels": ["cat", "dog"]}).encode()
    kinds = [
        (rng.randbytes(rng.randrange(1, 4000)) + b"\r\n\r\n", False),
        (posted(cut, "image/png", "classify?labels=cat,dog"), False),
        (posted(bytes(spoilt), "image/png", "embed"), False),
        (posted(fields), False),
        (posted(fields[: rng.randrange(1, len(fields) - 1)]), False),
        (posted(rng.randbytes(rng.randrange(4000))), False),
        (posted(b"[" * rng.randrange(1, 10**6)), False),
        (posted(json.dumps({"labels": rng.choice([3, None, {}, [[]], [""]])}).encode()), False),
        ((head.format("embed", "x") + f"A: {'x' * 17_000}").encode(), False),
        (
            (head.format("embed", "x") + f"Content-Length: {10 ** rng.randrange(9, 30)}").encode(),
            True,
        ),
        (posted(fields)[: -rng.randrange(1, len(fields))], True),
    ]
    return rng.choice(kinds)


def test_clients_that_mean_no_good_do_no_harm(checkpoint, pictures):
    rng, picture = random.Random(0), (pictures / "03.png").read_bytes()
    expected = dict(clipjax.load(checkpoint).classify([picture], ["cat", "dog"])[0])
    good = {"image": encoded(picture), "labels": ["cat", "dog"]}
    statuses = []
    flags = (f"--checkpoint={checkpoint}", "--timeout_s=120")  # as long as a busy machine takes
    with process(*flags) as (port, _), contextlib.ExitStack() as left_open:
        for number in range(MALFORMED):
            data, stays_open = bad_request(rng, picture)
            connection = left_open.enter_context(
                socket.create_connection(("127.0.0.1", port), timeout=HANGS_S)
            )
            connection.sendall(data)
            if stays_open:
                continue
            with connection:
                answer = b"".join(iter(lambda c=connection: c.recv(65536), b""))
            status = int(answer.split()[1])
            assert 400 <= status < 500, (number, data[:200], answer)
            assert {*json.loads(answer.partition(b"\r\n\r\n")[2])} == {"error"}
            statuses.append(status)
        assert len(statuses) > 120 and MALFORMED - len(statuses) > 10
        reply = ask(port, "/api/classify", good)
        assert reply.status == 200, reply.body
        assert distance(reply.json, expected) < 1e-5
    # What hung was ended with its connection, and the process at once when it was asked to.
    assert {400, 413} <= {*statuses}
