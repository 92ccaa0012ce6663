"""The API, asked over a socket: right answers, and one clear error for whatever else comes."""

import io
import json
import re
import socket
import time
import zlib

import numpy as np
import pytest
from checkpoints import write_checkpoint
from counting import HANGS_S
from embedding import COUNT
from PIL import Image
from serving import encoded, serving
from tiny import tiny_spec

import clipjax
from clipjax.serving.limits import Limits

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def model(checkpoint):
    return clipjax.load(checkpoint)


@pytest.fixture(scope="module")
def picture(pictures):
    return (pictures / "03.png").read_bytes()


def ranked(reply):
    assert reply.status == 200, reply.body
    return [(one["label"], one["probability"]) for one in reply.json["labels"]]


def same(found, expected):
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert [p for _, p in found] == pytest.approx([p for _, p in expected], abs=1e-5)


def test_labels_are_ranked_as_by_the_library(server, model, picture):
    for labels, templates in {
        ("cat", "dog", "a red bicycle"): None,
        ("cat", "dog"): "openai_7",
        ("dog", "cat"): ["{}", "a drawing of a {}"],
    }.items():
        fields = {"image": encoded(picture), "labels": labels, "templates": templates}
        reply = server.ask("/api/classify", fields)
        same(ranked(reply), model.classify([picture], labels, templates)[0])
        assert reply.json["probabilities"] == "softmax"
    assert reply.json["templates"] == ["{}", "a drawing of a {}"]
    expected = model.classify([picture], ["cat", "dog"])[0]
    for labels in ("labels=cat,%20dog,", "labels=cat&labels=dog"):
        address = f"/api/classify?{labels}"
        same(ranked(server.ask(address, body=picture, content_type="image/png")), expected)


def test_a_sigmoid_answers_for_each_label_by_itself(picture, tmp_path):
    text = {"vocab_size": 49408, "context_length": 16, "depth": 1}
    write_checkpoint(
        tmp_path, tiny_spec(image={"patch_size": 8, "depth": 1}, text=text, logit_bias=-1.0)
    )
    with serving(tmp_path, hosts={"LocalHost", "127.0.0.1"}) as server:
        assert server.ask("/api/health", host="localhost").status == 200
        reply = server.ask("/api/classify", {"image": encoded(picture), "labels": ["cat", "dog"]})
        same(ranked(reply), clipjax.load(tmp_path).classify([picture], ["cat", "dog"])[0])
        assert reply.json["probabilities"] == "sigmoid"
        fields = {"image": encoded(picture), "labels": ["cat"]}  # a question of its own here
        alone = [one for one in ranked(reply) if one[0] == "cat"]
        same(ranked(server.ask("/api/classify", fields)), alone)
        assert server.ask("/api/about").json["index"] is None
        reply = server.ask("/api/search", {"query": "a cat"})
        assert reply.status == 404 and reply.json == {"error": "this server has no index"}


def test_pictures_and_texts_are_embedded(server, model, picture):
    found = server.ask("/api/embed", {"texts": ["a cat", "snow", "x " * 200]}).json["embeddings"]
    expected = model.encode_text(["a cat", "snow", "x " * 200])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    found = server.ask("/api/embed", {"image": encoded(picture)}).json["embeddings"]
    np.testing.assert_allclose(found, model.encode_image([picture]), atol=1e-5)


def test_many_texts_leave_room_for_those_of_others(checkpoint, model, monkeypatch):
    sizes, encode = [], clipjax.Model.encode_text

    def recorded(self, texts, **options):
        sizes.append(len(texts))
        return encode(self, texts, **options)

    monkeypatch.setattr(clipjax.Model, "encode_text", recorded)
    texts = [f"text {n}" for n in range(10)]
    with serving(checkpoint, limits=Limits(batch_rows=4)) as server:
        sizes.clear()
        found = server.ask("/api/embed", {"texts": texts}).json["embeddings"]
    assert sizes == [4, 4, 2]
    np.testing.assert_allclose(found, encode(model, texts), atol=1e-5)


def test_an_index_is_searched_as_by_the_command(server, command, index, pictures, tmp_path):
    path = pictures / "07.png"
    flags = ("--query=a red bicycle", "--query=snow", "--minus=a car", f"--image={path}")
    done = command("search", f"--index={index}", *flags, f"--json={tmp_path}/found.json")
    assert done.code == 0, done.err
    expected = json.loads((tmp_path / "found.json").read_text())["results"]
    fields = {"query": ["a red bicycle", "snow"], "minus": "a car"}
    fields["image"] = encoded(path.read_bytes())
    reply = server.ask("/api/search", fields)
    found = reply.json["results"]
    assert [one["key"] for one in found] == [one["key"] for one in expected]
    assert [one["cosine"] for one in found] == pytest.approx(
        [one["cosine"] for one in expected], abs=1e-5
    )
    assert found[0]["captions"] == expected[0]["captions"] and reply.json["searched"] == COUNT - 1
    few = server.ask("/api/search", fields | {"top": 3}).json["results"]
    assert few == found[:3]
    for one in few:  # number 5 is damaged, and not in the index
        reply = server.ask(f"/api/pictures/{one['number']}")
        assert reply.status == 200 and reply.headers["content-type"] == "image/jpeg"
        shown = np.asarray(Image.open(io.BytesIO(reply.body)), float)
        stored = np.asarray(Image.open(pictures / one["key"]), float)
        assert shown.shape == stored.shape and np.abs(shown - stored).mean() < 20
    assert server.ask("/api/search", {"image": fields["image"], "top": 1}).json["results"] == [
        {"number": 6, "cosine": pytest.approx(1, abs=1e-5)}
        | {"key": "07.png", "captions": ["picture 7", "number 7"]}
    ]


def bomb():
    """A picture that would take much memory: its header says so, and little follows."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (8_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


PICTURE = encoded(b"\x89PNG\r\n\x1a\n")
LABELS = {"labels": ["cat", "dog"]}
# (address, fields or a body) -> (status, words of the error)
REFUSED = [
    ("/api/classify", {}, 400, "labels is missing"),
    ("/api/classify", LABELS, 400, "image is missing"),
    ("/api/classify", LABELS | {"image": "!"}, 400, "base64"),
    ("/api/classify", LABELS | {"image": "\ud83d"}, 400, "base64"),
    ("/api/classify", LABELS | {"image": 3}, 400, "base64"),
    ("/api/classify", LABELS | {"image": ""}, 400, "image is empty"),
    ("/api/classify", LABELS | {"image": PICTURE}, 400, "the picture cannot be used"),
    ("/api/classify", LABELS | {"image": encoded(b"/etc/passwd")}, 400, "it begins with"),
    ("/api/classify", LABELS | {"image": encoded(bomb())}, 400, "8000 x 8000 pixels, allowed"),
    ("/api/classify", {"image": PICTURE, "labels": ["cat", " cat"]}, 400, "stands twice"),
    ("/api/classify", {"image": PICTURE, "labels": ["cat", " "]}, 400, "an empty text"),
    ("/api/classify", {"image": PICTURE, "labels": ["cat", 3]}, 400, "a list of texts"),
    ("/api/classify", {"image": PICTURE, "labels": {"cat": 3}}, 400, "a list of texts"),
    ("/api/classify", {"image": PICTURE, "labels": ["\ud83d"]}, 400, "surrogate"),
    ("/api/classify", {"image": PICTURE, "labels": ["x" * 501]}, 400, "501 characters"),
    ("/api/classify", {"image": PICTURE, "labels": ["x"] * 1001}, 400, "1,001 texts"),
    ("/api/classify", LABELS | {"templates": "/etc/passwd"}, 400, "neither a known name"),
    ("/api/classify", LABELS | {"templates": ["no place"]}, 400, "image is missing"),
    ("/api/classify", LABELS | {"path": "/etc/passwd"}, 400, "unknown field 'path'"),
    ("/api/embed", {}, 400, "give image or texts"),
    ("/api/embed", {"image": PICTURE, "texts": ["a"]}, 400, "give image or texts"),
    ("/api/embed", {"texts": ["a"] * 257}, 400, "257 texts"),
    ("/api/search", {"minus": "a cat"}, 400, "give query"),
    ("/api/search", {"query": "  "}, 400, "an empty text"),
    ("/api/search", {"query": "a", "minus": "a"}, 400, "nothing is left"),
    ("/api/search", {"query": "a", "top": 23}, 400, "from 1 to 22, of 22 pictures"),
    ("/api/search", {"query": "a", "top": True}, 400, "from 1 to 22"),
    ("/api/search", {"query": "a", "top": ""}, 400, "from 1 to 22"),
    ("/api/classify", {"image": PICTURE, "labels": "cat"}, 400, "'cat' is the only label"),
    ("/api/classify?labels=b", LABELS | {"image": PICTURE}, 400, "stand in the body"),
    ("/api/search", {"query": "a", "top": 1e400}, 400, "Infinity is no number"),
    ("/api/embed", b"{", 400, "no JSON"),
    ("/api/embed", b"[1]", 400, "an object of JSON"),
    ("/api/embed", b"\xff", 400, "no JSON"),
    ("/api/embed", b'{"texts": "a", "texts": "b"}', 400, "stands twice"),
    ("/api/embed", b'{"texts": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001, 400, "levels deep"),
    ("/api/embed", b"[" * 200_000, 413, "values"),
]


def test_what_is_malformed_gets_one_clear_error(server, picture, pictures):
    for address, given, status, words in REFUSED:
        if isinstance(given, bytes):
            reply = server.ask(address, body=given, content_type="application/json")
        else:
            reply = server.ask(address, given)
        assert (reply.status, {*reply.json}) == (status, {"error"}), (given, reply.body)
        assert words in reply.json["error"], (given, reply.json)
        assert str(pictures.parent) not in reply.json["error"]
    templates = {"image": encoded(picture), **LABELS, "templates": ["no place"]}
    reply = server.ask("/api/classify", templates)
    assert reply.status == 400 and "holds '{}'" in reply.json["error"], reply.json
    many = {"labels": [f"label {n}" for n in range(200)], "templates": "openai_80"}
    reply = server.ask("/api/classify", {"image": encoded(picture)} | many)
    assert reply.status == 400 and "16,000 texts, allowed are 10,000" in reply.json["error"]
    reply = server.ask("/api/embed", body=b"texts=a", content_type="text/plain")
    assert reply.status == 415 and "application/json" in reply.json["error"]
    for query, words in {
        "labels=%ff,b": "no UTF-8",
        "labels=a,b&image=x": "image is the body here",
        "labels=a,b&labels=b": "the label 'b' stands twice",
        "labels=": "labels is missing",
        "labels=a": "'a' is the only label",
        "labels=a,b&top=": "unknown field 'top'",
    }.items():
        reply = server.ask(f"/api/classify?{query}", body=picture, content_type="image/png")
        assert reply.status == 400 and words in reply.json["error"], (query, reply.body)
    for cut in (9, 60):  # in the header, and behind it
        reply = server.ask("/api/embed", body=picture[:cut], content_type="image/png")
        assert reply.status == 400 and "the picture cannot be used: the " in reply.json["error"]
        assert not re.search("Error|object at|0x", reply.json["error"]), reply.body


@pytest.mark.parametrize(
    ("address", "status"),
    [
        *(("/nowhere", 404), ("/api/classify", 405), ("/api/pictures/22", 404)),
        *(("/api/pictures/-1", 404), ("/api/pictures/9999999999999999999", 404)),
        *(("/api/pictures/..%2f..%2f..%2fetc%2fpasswd", 404), ("/api/pictures/x", 404)),
        *(("/..%2fpage.py", 404), ("/api/classify/", 404), ("//api/health", 404)),
    ],
)
def test_what_is_nowhere_is_not_found(server, address, status):
    reply = server.ask(address)
    assert reply.status == status and {*reply.json} == {"error"}
    assert server.ask("/api/health").json == {"status": "ok"}


def test_what_is_no_http_is_refused_in_json(server):
    head = b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n"
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        head + b"A: " + b"x" * 20_000,
        head + b"Content-Length: many\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ):
        answer = server.send(data)
        assert answer.startswith(b"HTTP/1.1 400 "), answer
        assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]


def test_a_large_body_is_refused_by_its_length_and_by_its_bytes(server):
    head = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = server.send(head + b"Connection: close\r\nContent-Length: 99999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ") and b"20,971,520 bytes" in answer
    chunks = iter([b" " * 2**20] * 21)
    reply = server.ask("/api/embed", body=chunks, content_type="application/json")
    assert reply.status == 413 and "larger than 20,971,520 bytes" in reply.json["error"]


def test_one_that_is_slow_is_ended_and_of_too_many_some_are_told_to_come_again(checkpoint):
    limits = Limits(requests=1, request_s=1.0)
    with serving(checkpoint, limits=limits) as server:
        head = b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as slow:
            slow.sendall(head + b"Content-Length: 100\r\n\r\n{")
            while (reply := server.ask("/api/about")).status == 200:
                time.sleep(0.01)
            assert reply.status == 503 and "busy" in reply.json["error"]
            assert reply.headers["retry-after"] == "1"
            assert server.ask("/api/health").status == 200
            answer = b"".join(iter(lambda: slow.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408 ") and b"within 1 s" in answer
        assert server.ask("/api/about").status == 200
        holding = server.service.aside

        async def late(*args):
            time.sleep(1.5)
            return await holding(*args)

        server.service.aside = late
        reply = server.ask("/api/embed", {"texts": ["a"]})
        assert reply.status == 504 and "longer than 1 s" in reply.json["error"]
        server.service.aside = holding
        assert server.ask("/api/embed", {"texts": ["a"]}).status == 200


def test_a_failure_of_the_server_tells_nothing_of_it(server, monkeypatch, picture):
    def fail(*args):
        raise OSError(2, "No such file", "/data/secret/file")

    monkeypatch.setattr(server.service.searcher, "results", fail)
    reply = server.ask("/api/search", {"query": "a cat"})
    assert reply.status == 500 and reply.json == {"error": "the server failed; its log says why"}


@pytest.mark.parametrize("token", [None, "correct-horse-battery"])
def test_pages_of_others_are_kept_out(checkpoint, token):
    with serving(checkpoint, token=token) as server:
        given = {} if token is None else {"authorization": f"Bearer {token}"}
        good = server.ask("/api/about", host=f"localhost:{server.port}", **given)
        assert good.status == 200 and not any("access-control" in name for name in good.headers)
        for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "["):
            reply = server.ask("/api/about", host=host, **given)
            assert reply.status == 403 and "call this server by" in reply.json["error"]
        assert server.ask("/", host="evil.example").status == 403
        own = {"host": f"localhost:{server.port}", "origin": f"http://localhost:{server.port}"}
        assert server.ask("/api/about", **own, **given).status == 200
        if token is None:
            for origin in ("https://evil.example", "null", "http://localhost:1"):
                assert server.ask("/api/about", **(own | {"origin": origin})).status == 403
            return
        for wrong in ("", token, "Bearer", f"Bearer {token}x", "Bearer caf\xe9", f"Basic {token}"):
            reply = server.ask("/api/about", authorization=wrong)
            assert reply.status == 401 and reply.headers["www-authenticate"] == "Bearer"
            assert token not in reply.json["error"]
        assert server.ask("/api/embed", {"texts": ["a"]}).status == 401
        for open_to_all in ("/", "/page.js", "/page.css", "/api/health"):
            assert server.ask(open_to_all).status == 200


def test_on_an_address_of_others_any_name_is_taken_and_the_token_is_asked_for(checkpoint):
    token = "correct-horse-battery"
    with serving(checkpoint, token=token, hosts=None, address="0.0.0.0") as server:
        elsewhere = {"host": "pictures.example", "origin": "https://pictures.example"}
        given = {"authorization": f"Bearer {token}"}
        fields = {"texts": ["a cat"]}
        assert server.ask("/", **elsewhere).status == 200
        assert server.ask("/api/embed", fields, **elsewhere).status == 401
        wrong = {"authorization": f"Bearer {token[:-1]}"}
        assert server.ask("/api/embed", fields, **elsewhere, **wrong).status == 401
        assert server.ask("/api/embed", fields, **elsewhere, **given).status == 200
        assert server.ask("/api/pictures/0", **elsewhere).status == 401


def test_what_upgrades_or_is_no_http_leaves_no_noise_in_the_log(server, caplog):
    head = b"GET /api/health HTTP/1.1\r\nHost: LocalHost\r\n"
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    with caplog.at_level("WARNING"):
        answer = server.send(head + upgrade + b"Sec-WebSocket-Key: AAAA\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 "), answer  # as of a name in capitals
        assert server.send(b"GET\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert caplog.text == ""


def test_the_page_loads_nothing_from_elsewhere(server):
    for address, kind in {"/": "html", "/page.js": "javascript", "/page.css": "css"}.items():
        reply = server.ask(address)
        assert reply.status == 200 and kind in reply.headers["content-type"]
        assert re.findall(r"https?:|//[a-z]+\.|\bon[a-z]+=|url\(", reply.body.decode()) == []
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_the_log_names_no_path_that_was_asked_for(server, caplog):
    def logged(words):
        """Waits for a line: the server writes it behind the answer, as those of other tests."""
        late = time.monotonic() + HANGS_S
        while True:
            told = [record.getMessage() for record in [*caplog.records]]
            if any(line.startswith(words) for line in told):
                return "\n".join(told)
            assert time.monotonic() < late, told
            time.sleep(0.01)

    with caplog.at_level("INFO"):
        server.ask("/home/me/secret.png?token=abc")
        told = logged("GET elsewhere: 404, ")
        server.ask("/api/pictures/3")
        told += logged("GET /api/pictures/N: 200, ")
    assert not re.search("home|secret|token|abc|pictures/3", told), told
