"""One version, and one place for each thing that files around the package repeat."""

import re
import runpy
import shlex
import sys
import types
from pathlib import Path

import pytest
import yaml

import clipjax

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def setup():
    """What setup.py gives to setuptools."""
    given = {}
    stand_in = types.SimpleNamespace(setup=given.update, find_packages=lambda **_: [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "setuptools", stand_in)
        runpy.run_path(str(ROOT / "setup.py"))
    return given


def load(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_there_is_one_version(setup):
    assert setup["version"] == clipjax.__version__
    assert load("CITATION.cff")["version"] == clipjax.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(.+?)\]", changes, re.M)
    assert versions[:2] == ["Unreleased", clipjax.__version__]


def test_the_workflow_runs_the_tests_on_every_python_from_the_lowest(setup):
    (job,) = load(".github/workflows/test.yml")["jobs"].values()
    pythons = job["strategy"]["matrix"]["python"]
    assert pythons == ["3.11", "3.12", "3.13"]
    assert setup["python_requires"] == f">={pythons[0]}"
    command = shlex.split(job["steps"][-1]["run"])
    assert command[0] == "bash" and (ROOT / command[1]).is_file()


def test_hooks_of_commits_run_programs_of_the_environment(setup):
    names = {re.match(r"[\w-]+", line)[0] for line in setup["extras_require"]["test"]}
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    programs = [shlex.split(hook["entry"])[0] for hook in hooks]
    assert programs and {Path(program).name for program in programs} <= names
    assert all(program.startswith(".venv/bin/") for program in programs)
