"""`clipjax doctor`: what each check finds, and what it finds where something is wrong."""

import json
import os
import resource
import shutil
import subprocess
import sys
import types
from pathlib import Path

import jax
import pytest
from counting import HANGS_S

from clipjax.config import default_config, validate
from clipjax.doctor import Finding, data_rate, hosts, is_well, machine, store, to_text
from clipjax.doctor.data_rate import Demand, Rates
from clipjax.plan import gpu
from clipjax.plan.chips import CHIPS, KINDS, chip_of_kind

ROOT = Path(__file__).parents[2]
CONFIG = ("--config", "configs/smoke.py", "--seconds=0.05")


def test_a_good_machine_gets_one_page(command, tmp_path):
    found = tmp_path / "found.json"
    workdir = tmp_path / "runs" / "run"
    flags = ("--workdir", workdir, "--samples_per_s=0.001", f"--json={found}")
    done = command("doctor", *CONFIG, *flags)
    assert done.code == 0, done.out + done.err
    assert done.out.rstrip().endswith("all is well")
    assert all(len(line) <= 100 or " " not in line[16:] for line in done.out.splitlines())
    told = json.loads(found.read_text())
    assert told["ok"]
    (findings,) = told["processes"]
    names = [finding["name"] for finding in findings]
    assert names == [
        *("devices", "versions", "network", "files", "shm", "clock", "store", "config"),
        *("agreement", "disk", "data"),
    ]
    assert {finding["state"] for finding in findings} == {"ok"}
    page = " ".join(done.out.split())
    assert "8 x cpu" in page and "of 512 examples" in page
    assert list(tmp_path.iterdir()) == [found]  # nothing of it is left


def test_data_that_starves_the_devices_ends_with_1(command):
    done = command("doctor", *CONFIG, "--samples_per_s=1e12")
    assert done.code == 1
    assert "BAD   data" in done.out and "-> " in done.out
    assert "1 of 9 checks failed: data" in done.out


def test_a_config_whose_data_is_not_there_is_a_finding(command):
    done = command("doctor", *CONFIG, "--config.data.source=folder:/nowhere/at/all")
    assert done.code == 1 and "Traceback" not in done.err
    assert "BAD   config" in done.out and "/nowhere/at/all" in done.out
    assert "data " not in done.out.replace("config.data", "")  # nothing to measure


def test_without_a_config_the_machine_alone(command, tmp_path):
    done = command("doctor", "--workdir", tmp_path)
    assert done.code == 0, done.out + done.err
    assert "note  disk" in done.out and "ok    config" not in done.out


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--mfu=2", "in (0, 1]"), ("--samples_per_s=0", "above 0"), ("--workdir=gs://b/x", "mount")],
)
def test_a_wrong_flag_is_one_line(command, flag, message):
    done = command("doctor", flag)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err


def test_an_accelerator_that_jax_does_not_see(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    assert machine.devices(tmp_path).state == "ok"
    (tmp_path / "nvidia0").touch()
    found = machine.devices(tmp_path)
    assert found.state == "BAD" and "pip install 'clipjax[cuda]'" in found.remedy
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert machine.devices(tmp_path).state == "note"


def test_a_device_that_multiplies_wrongly(tmp_path, monkeypatch):
    right = jax.numpy.matmul
    monkeypatch.setattr(jax.numpy, "matmul", lambda *a, **k: right(*a, **k) + 1)
    found = machine.devices(tmp_path)
    assert found.state == "BAD" and "multiplies wrongly" in found.found


def test_a_sum_that_is_wrong(monkeypatch):
    assert machine.sum_over_devices().state == "ok"
    monkeypatch.setattr(jax.numpy, "sum", jax.numpy.max)
    assert machine.sum_over_devices().state == "BAD"


def test_versions_outside_of_the_bounds():
    assert machine.versions().state == "ok"
    core = ["numpy>=1", "numpy<1 ; extra == 'old'", "nothing-of-this-name>=2", "jax<0.1"]
    assert list(machine.unfit("x", core, "")) == [
        "nothing-of-this-name is missing, and x needs it",
        f"jax {jax.__version__} is not <0.1, which x needs",
    ]
    (found,) = machine.unfit("x", core, "old")  # that of an accelerator's extra alone
    assert found.endswith("is not <1, which x[old] needs")


def test_few_file_handles(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 512))
    found = machine.file_handles(16)
    assert found.state == "BAD" and "1,088" in found.found and "hard limit, 512" in found.remedy
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert machine.file_handles(16).remedy == "ulimit -n 1088"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4096, 4096))
    assert machine.file_handles(16).state == "ok"


def test_shared_memory_matters_to_gpus_of_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=64 << 20))
    assert machine.shared_memory(8, "gpu", tmp_path).state == "BAD"
    assert machine.shared_memory(1, "gpu", tmp_path).state == "ok"
    assert machine.shared_memory(8, "cpu", tmp_path).state == "ok"
    assert machine.shared_memory(8, "gpu", tmp_path / "none").state == "BAD"


def test_a_store_that_cannot_be_written(tmp_path):
    assert store.store(tmp_path / "not" / "yet").state == "ok"
    (tmp_path / "file").touch()
    found = store.store(tmp_path / "file" / "run")
    assert found.state == "BAD" and "is no folder" in found.found
    assert store.store(Path("/proc/1/run")).state == "BAD"  # nobody makes a folder there


@pytest.mark.parametrize(
    ("owner", "name", "broken", "message"),
    [
        (Path, "replace", lambda self, target: shutil.copy2(self, target), "still listed"),
        (Path, "unlink", lambda self, missing_ok=False: None, "still listed"),
        (Path, "read_bytes", lambda self: b"", "not what was written"),
    ],
)
def test_a_store_that_does_other_things(owner, name, broken, message, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, broken)
        if name == "replace":  # of a folder, as the checkpoints are renamed, it works
            patch.setattr(store, "rename_synced", lambda source, target: source.rename(target))
        found = store.store(tmp_path)
    assert found.state == "BAD" and message in found.found


def test_the_disk_against_the_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=5 << 30))
    config = default_config()
    config.data.source, config.checkpoint.keep = "synthetic:8", 3
    found = store.disk(tmp_path, validate(config), 1 << 30)
    assert found.state == "ok" and "4 checkpoints of 1.20 GiB take 4.8 GiB" in found.found
    config.checkpoint.best = "zero_shot/x/top1"
    found = store.disk(tmp_path, validate(config), 1 << 30)
    assert found.state == "BAD" and "take 6.0 GiB" in found.found and "keep" in found.remedy
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "checkpoints" / "10" / "manifest.json").touch()
    assert store.disk(tmp_path, validate(config), 1 << 30).state == "ok"
    config.checkpoint.keep_every = 1000
    assert "15 checkpoints" in store.disk(tmp_path, validate(config), 1 << 30).found


def test_clocks_that_are_apart():
    assert hosts.clock_finding([0.0, 0.4, -1.1]).state == "ok"
    assert hosts.clock_finding([0.0, 30.0]).state == "note"
    found = hosts.clock_finding([0.0, 1.0, -75.0])
    assert found.state == "BAD" and "process 2 is -75.0 s" in found.found


def test_processes_that_do_not_agree():
    same = {"config": "c" * 64, "version of jax": "1"}
    assert hosts.agreement([same, dict(same)]).state == "ok"
    found = hosts.agreement([same, same, {**same, "version of jax": "2"}])
    assert found.state == "BAD"
    assert "processes [2] differ from process 0 in the version of jax: 2 and 1" in found.found
    assert "data: nothing and d" in hosts.agreement([{**same, "data": "d"}, same]).found


def test_the_code_is_told_by_its_content(tmp_path):
    assert hosts.code_sha256() == hosts.code_sha256()
    (tmp_path / "a.py").write_text("x = 1\n")
    before = hosts.code_sha256(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    renamed = hosts.code_sha256(tmp_path)
    (tmp_path / "b.py").write_text("x = 2\n")
    assert len({before, renamed, hosts.code_sha256(tmp_path)}) == 3


def test_what_the_devices_take():
    assert chip_of_kind("cpu") is None
    assert set(KINDS.values()) == set(CHIPS)
    for name, properties in gpu.PROPERTIES.items():
        assert chip_of_kind(properties.name) is CHIPS[name]


@pytest.mark.parametrize(
    ("made", "read", "workers", "state", "remedy"),
    [
        (120.0, 500.0, 2, "ok", ""),
        (90.0, 50.0, 2, "BAD", "stage it nearer"),
        (90.0, 500.0, 0, "BAD", "num_workers="),
        (90.0, 500.0, 10_000, "BAD", "more cores"),
    ],
)
def test_the_data_against_the_devices(made, read, workers, state, remedy):
    rates = Rates(read=read, bytes_read=1e6, made=made, first_s=0.1, bad=0)
    found = data_rate.judge(rates, 100.0, "as was said", workers)
    assert found.state == state and remedy in found.remedy and " (1.0 MB/s) from" in found.found
    drawn = data_rate.judge(rates._replace(bytes_read=0.0), None, "say it", workers)
    assert drawn.state == "note" and "MB/s" not in drawn.found


def test_the_stage_that_computes_least_takes_most(monkeypatch):
    device = types.SimpleNamespace(device_kind="TPU v5 lite")
    devices = types.SimpleNamespace(flat=[device], size=4)
    needs = {"small": 1e9, "large": 4e9}
    stages = [types.SimpleNamespace(spec=name) for name in needs]
    program = types.SimpleNamespace(mesh=types.SimpleNamespace(devices=devices), stages=stages)
    monkeypatch.setattr(
        data_rate, "flops_of", lambda stage: types.SimpleNamespace(train=needs[stage.spec])
    )
    wanted, how = data_rate.demanded(program, Demand(mfu=0.5))
    assert wanted == pytest.approx(4 * 1.97e14 * 0.5 / 1e9) and "50% of the peak of 4 x v5e" in how
    assert data_rate.demanded(program, Demand(7.0))[0] == 7.0
    device.device_kind = "TPU of tomorrow"
    assert data_rate.demanded(program, Demand())[0] is None


def test_the_page_of_many_processes():
    well = [Finding("disk", "ok", f"{n} GiB free") for n in range(8)]
    page = to_text([[finding] for finding in well])
    assert page.splitlines()[0].split() == ["ok", "disk", "process", "0:", "0", "GiB", "free"]
    told = [[f] for f in well[:2]] + [[Finding("disk", "BAD", f"full {n}", "x")] for n in range(6)]
    lines = to_text(told).splitlines()
    assert [line for line in lines if "process" in line][:2] == [
        "BAD   disk      process 2: full 0",
        "BAD   disk      process 3: full 1",
    ]
    assert "and in 2 more processes" in lines[-3]
    assert lines[-1] == "1 of 1 checks failed: disk" and not is_well(told)
    alike = [[Finding("versions", "BAD", "jax is old", "pip install jax")]] * 3
    assert to_text(alike).count("jax is old") == 1


@pytest.mark.slow
def test_two_processes_are_examined_together(tmp_path):
    command = ["bash", "launch/local.sh", "2", "doctor", *CONFIG, "--workdir", tmp_path / "run"]
    env = {**os.environ, "CLIPJAX_COMMAND": f"{sys.executable} -m clipjax"}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("all is well") == 1
    for words in ("2 processes agree", "all processes see", "clocks of 2 processes are within"):
        assert words in " ".join(done.stdout.split())
