"""Dumps and tracebacks go to a file of the process, messages to the terminal as well."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from clipjax.processes import process_log

ROOT = Path(__file__).parents[2]
HEAD = "import os, sys\nfrom pathlib import Path\nfrom clipjax.processes import process_log\n"


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", HEAD + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_what_is_written_to_descriptor_2_is_in_the_file_and_messages_are_on_the_terminal(tmp_path):
    workdir = tmp_path / "run"
    code = (
        "os.write(2, b'before\\n')\n"
        "process_log.start(Path(sys.argv[1]))\n"
        "os.write(2, b'a dump, early\\n')\n"
        "assert not Path(sys.argv[1]).exists()\n"
        "print('a message', file=sys.stderr)\n"
        "process_log.keep(3)\n"
        "os.write(2, b'a dump, late\\n')\n"
        "process_log.say('the last word')\n"
        "os.abort()\n"
    )
    done = run(code, workdir)
    assert done.stderr.splitlines() == ["before", "a message", "the last word"]
    path = workdir / "logs" / "process_3.log"
    kept = path.read_text().splitlines()
    assert kept[0].startswith("--- ")
    assert kept[1:] == ["a dump, early", "a dump, late", "the last word"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    run(code.replace("'before", "'again").replace("assert", "0 #"), workdir)
    assert path.read_text().splitlines()[: len(kept)] == kept  # a later run comes behind


def test_a_long_traceback_is_whole_in_the_file_and_without_credentials(tmp_path):
    code = (
        "from clipjax.processes.tracebacks import guard_tracebacks\n"
        "guard_tracebacks()\n"
        "process_log.start(Path(sys.argv[1]))\n"
        "process_log.keep(0)\n"
        "def f(n):\n"
        "    try:\n"
        "        int('x' * n)\n"
        "    except ValueError as error:\n"
        "        if n < 20: f(n + 1)\n"
        "        raise RuntimeError(f'level {n} token=hf_canary') from error\n"
        "f(1)\n"
    )
    done = run(code, tmp_path)
    whole = (tmp_path / "logs" / "process_0.log").read_text()
    assert "level 20" in whole and whole.count("Traceback") > 20
    assert len(done.stderr.splitlines()) <= 20
    assert done.stderr.splitlines()[-1] == whole.splitlines()[-1]
    assert "hf_canary" not in whole + done.stderr


def test_where_no_folder_can_be_made_the_temporary_file_stays(tmp_path):
    (tmp_path / "file").touch()
    code = (
        "process_log.start(Path(sys.argv[1]))\n"
        "os.write(2, b'a dump\\n')\n"
        "kept = process_log.keep(0)\n"
        "print(kept.read_text().splitlines()[-1])\n"
    )
    done = run(code, tmp_path / "file" / "run")
    assert (done.stdout, done.stderr) == ("a dump\n", "")


def test_without_a_start_nothing_changes(capsys):
    assert process_log.keep(0) is None and process_log.where() == ""
    text = "line\n" * 100
    assert process_log.shortened(text) == text and not process_log.has_dumps()
    process_log.write("nowhere")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("lines", [1, process_log.SHOWN_LINES])
def test_a_short_text_is_shown_whole(lines, tmp_path):
    code = (
        "process_log.start(Path(sys.argv[1]))\n"
        "sys.stderr.write(process_log.shortened('line\\n' * int(sys.argv[2])))\n"
    )
    assert run(code, tmp_path, lines).stderr == "line\n" * lines
