import ast
import os
from pathlib import Path

import pytest

import clipjax
from clipjax import files
from clipjax.files import replacing, sha256, sha256_of_file, write_file


def test_what_stood_there_stays_unless_all_is_written(tmp_path):
    path, folder = tmp_path / "results.json", tmp_path / "cache"
    write_file(path, "old")
    for name in (path, folder):
        with pytest.raises(KeyboardInterrupt), replacing(name) as temporary:
            if name is folder:
                temporary.mkdir()
                (temporary / "part").write_text("half")
            else:
                temporary.write_text("half")
            raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["results.json"]
    write_file(path, b"new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["results.json"]


def test_the_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    done, replace = [], Path.replace
    monkeypatch.setattr(files, "sync", lambda path: done.append(path.name.rpartition("-")[2]))
    monkeypatch.setattr(Path, "replace", lambda a, b: done.append("rename") or replace(a, b))
    root = tmp_path / "root"
    root.mkdir()
    write_file(root / "one", "1")
    assert done == ["one", "rename", "root"]
    done.clear()
    with replacing(root / "folder") as temporary:
        (temporary / "below").mkdir(parents=True)
        (temporary / "below" / "leaf").write_text("x")
    assert sorted(done[:3]) == ["below", "folder", "leaf"] and done[3:] == ["rename", "root"]


def test_a_digest_is_of_all_parts(tmp_path):
    (tmp_path / "file").write_bytes("aä".encode())
    assert sha256("a", "ä".encode()) == sha256("aä") == sha256_of_file(tmp_path / "file")
    assert sha256("a") == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


def test_no_other_module_writes_files_in_its_own_way():
    own = {"fsync", "mkstemp", "NamedTemporaryFile"}
    found = {
        path.name
        for path in Path(clipjax.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in own
    }
    assert found == {"files.py", "process_log.py"}  # a log that is no file of a run yet
