"""`hf:owner/name` against a hub on this machine, with the library that talks to the real one."""

import hashlib
import http.server
import json
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub import constants
from library_folder import weights

import clipjax
from clipjax.interop import hub
from clipjax.interop.formats import FORMATS

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves folders as models: `repos[owner/name]`; what was asked for is in `asked`."""

    repos: dict[str, Path]
    asked: list[str]

    def do_GET(self):
        path = unquote(urlparse(self.path).path).strip("/")
        self.asked.append(f"{self.command} {path}")
        parts = path.removeprefix("api/models/").split("/")
        if len(parts) < 3:  # what the library asks for on its own account
            return self.refuse("EntryNotFound")
        repo, what, rest = "/".join(parts[:2]), parts[2], parts[3:]
        if repo not in self.repos:
            return self.refuse("RepoNotFound")
        commit = COMMITS.get(rest[0], rest[0])
        if commit not in COMMITS.values():
            return self.refuse("RevisionNotFound")
        folder = self.repos[repo]
        names = sorted(p.name for p in folder.iterdir())
        if what == "resolve":
            file = folder / "/".join(rest[1:])
            if not file.is_file():
                return self.refuse("EntryNotFound", commit)
            return self.answer(file.read_bytes(), commit)
        found = {"id": repo, "sha": commit, "siblings": [{"rfilename": name} for name in names]}
        if what == "tree":
            sizes = {name: (folder / name).stat().st_size for name in names}
            found = [{"type": "file", "path": n, "size": s, "oid": n} for n, s in sizes.items()]
        return self.answer(json.dumps(found).encode(), commit)

    do_HEAD = do_GET

    def answer(self, data, commit):
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def refuse(self, code, commit=""):
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def repos(tmp_path_factory):
    root = tmp_path_factory.mktemp("repos")
    FORMATS["hf"].write(root / "clip", weights())
    (root / "clip" / "modeling.py").write_text("raise SystemExit('code of the model ran')\n")
    config = json.loads((root / "clip" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Evil"}
    (root / "clip" / "config.json").write_text(json.dumps(config))
    (root / "notes").mkdir()
    (root / "notes" / "README.md").write_text("nothing")
    return {"them/clip": root / "clip", "them/notes": root / "notes"}


@pytest.fixture
def asked(repos, tmp_path, monkeypatch):
    """A hub that answers; the list of what it was asked for, and `stop()` on it."""
    handler = type("Handler", (Hub,), {"repos": repos, "asked": Asked()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop():
        server.shutdown()
        server.server_close()
        thread.join()

    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    handler.asked.stop = stop
    yield handler.asked
    if thread.is_alive():
        stop()


class Asked(list):
    stop = None


def test_a_model_of_the_hub_is_loaded_and_kept(asked, repos, caplog):
    caplog.set_level("INFO", logger="absl")
    model = clipjax.load("hf:them/clip")
    wanted = clipjax.load(repos["them/clip"])
    assert (model.encode_text(["a cat"]) == wanted.encode_text(["a cat"])).all()
    assert f"hf:them/clip@{COMMITS['main']}, which pins it" in caplog.text
    downloaded = {line.rsplit("/", 1)[1] for line in asked if line.startswith("GET them/")}
    assert {"config.json", "model.safetensors"} <= downloaded
    assert "modeling.py" not in downloaded  # data is never code
    asked.stop()  # without a network, what is in the cache is taken
    folder = hub.fetch("hf:them/clip")
    assert folder.name == COMMITS["main"] and (folder / "model.safetensors").is_file()
    assert hub.fetch(f"hf:them/clip@{COMMITS['main']}") == folder


def test_a_revision_is_that_revision(asked):
    assert hub.fetch("hf:them/clip@v1").name == COMMITS["v1"]
    assert not any(COMMITS["main"] in line for line in asked)


def test_what_is_missing_offline_is_named(asked, tmp_path):
    asked.stop()
    with pytest.raises(ValueError, match=r"cannot be reached") as error:
        clipjax.load("hf:them/clip@v1")
    command = "`hf download them/clip --revision v1 --include '*.json' '*.txt' '*.model' model.safe"
    assert command in str(error.value) and str(tmp_path / "cache") in str(error.value)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("hf:them/none", "hf:them/none: the hub does not give it: .*404"),
        ("hf:them/clip@v9", "hf:them/clip@v9: the hub does not give it: .*404"),
        ("hf:them/notes", "hf:them/notes is of none of the formats hf, open_clip"),
        ("hf:clip", "'hf:clip' is no address: expected hf:owner/name"),
        ("hf:../../etc", "is no address"),
    ],
)
def test_what_the_hub_does_not_have(asked, address, words):
    with pytest.raises(ValueError, match=words):
        clipjax.load(address)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"needs the package huggingface_hub: pip install"):
        clipjax.load("hf:them/clip")
