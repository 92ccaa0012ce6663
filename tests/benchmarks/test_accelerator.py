"""benchmarks/accelerator.py: a list of cases of which none can end the others."""

import json
import os
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import pytest
from counting import wait_until
from xla_flags import with_devices

from benchmarks import accelerator, accelerator_cases
from benchmarks.common import ROOT, MissingError, read_lines


def run(*arguments, **options):
    command = [sys.executable, "benchmarks/accelerator.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, **options)


def test_the_list_is_in_the_order_that_time_is_spent_in():
    names = run("--list").stdout.splitlines()
    assert [line.split()[0] for line in names] == list(accelerator_cases.CASES)
    first = ["b16", "b16_open_clip", "b16_names", "b16_512", "loss_32k", "loss_32k_open_clip"]
    assert list(accelerator_cases.CASES)[: len(first)] == first
    for case in accelerator_cases.CASES.values():
        assert set(case.against) <= set(accelerator_cases.CASES)
        assert bool(case.against) == ("open_clip" in case.name)


@pytest.fixture
def own_cases(tmp_path, monkeypatch):
    """Runs cases of a test's own in processes; returns their rows.

    The module that the processes run is one of this folder, with the same way to write rows.
    """

    def run_cases(minutes=1.0, **bodies):
        lines = ["from benchmarks.accelerator_cases import *", "CASES.clear()"]
        for name, (limit_s, body) in bodies.items():
            source = textwrap.indent(textwrap.dedent(body), "    ")
            lines += [f"def {name}(tiny, report):", source]
            lines += [f"CASES[{name!r}] = Case({name!r}, {name!r}, {limit_s}, {name})"]
        module = tmp_path / "own_cases.py"
        # The functions of the real module look in the globals of the real module.
        start = "import benchmarks.accelerator_cases\nbenchmarks.accelerator_cases.main()\n"
        module.write_text("\n".join([*lines, start]))
        out = tmp_path / "rows.jsonl"
        chosen = [
            accelerator_cases.Case(name, name, limit_s, None)
            for name, (limit_s, _) in bodies.items()
        ]
        real = subprocess.Popen

        def popen(command, **options):
            if "benchmarks.accelerator_cases" in command:
                command = [sys.executable, str(module), *command[3:]]
            return real(command, **options)

        monkeypatch.setattr(accelerator.subprocess, "Popen", popen)
        options = accelerator.argparse.Namespace(out=out, minutes=minutes, tiny=False, commit="abc")
        environment = accelerator.child_environment(tmp_path, tiny=True, brought=None)
        accelerator.run_list(chosen, options, environment)
        return read_lines(out)

    return run_cases


def test_no_case_ends_the_others(own_cases):
    """One that raises, one that dies, one that hangs, one without memory: the last still runs."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import benchmarks.accelerator_cases"], cwd=ROOT)
    started_s = time.monotonic() - begin  # on a machine as busy as this one is now
    limit_s = round(1 + 10 * started_s, 1)
    rows = own_cases(
        raises=(120, "raise ValueError('broken')"),
        lacks=(120, "raise MissingError('open_clip is not installed')"),
        dies=(120, "print('last words', flush=True); os.kill(os.getpid(), 9)"),
        full=(120, "raise RuntimeError('RESOURCE_EXHAUSTED: out of memory allocating 9 bytes')"),
        hangs=(limit_s, "report({'step_ms': 1.0}); time.sleep(600)"),
        works=(120, "report({'step_ms': 2.0})"),
    )
    said = {}
    for row in rows:
        if row["status"] not in ("setting", "wall"):
            said.setdefault(row["case"], []).append(row)
    assert {name: [row["status"] for row in found] for name, found in said.items()} == {
        "raises": ["failed"],
        "lacks": ["missing"],
        "dies": ["failed"],
        "full": ["out of memory"],
        "hangs": ["ok", "time over"],  # what it had measured is there
        "works": ["ok"],
    }
    assert said["raises"][0]["reason"] == "ValueError: broken"
    assert said["lacks"][0]["reason"] == "open_clip is not installed"
    assert said["dies"][0]["reason"] == "exit code -9: last words"
    assert said["hangs"][1]["reason"] == f"ended after {limit_s:.0f} s"
    assert rows[0]["commit"] == "abc" and rows[0]["machine"]["cores"] >= 1
    assert sum(row["status"] == "wall" for row in rows) == 6


def test_what_the_time_does_not_allow_is_said(own_cases):
    rows = own_cases(minutes=0.01, late=(120, "report({'step_ms': 1.0})"))
    (row,) = [row for row in rows if row["case"] == "late"]
    assert row["status"] == "not run" and "of the 0.01 minutes were left" in row["reason"]


def test_what_a_case_started_ends_with_it(tmp_path):
    """A run of `clipjax train` inside of a case would go on taking the card."""
    file = tmp_path / "pid"
    body = f"sleep 600 & echo $! > {file}; wait"
    with (
        accelerator.started(["bash", "-c", body]) as process,
        pytest.raises(subprocess.TimeoutExpired),
    ):
        wait_until(lambda: file.exists() and file.read_text())
        process.wait(timeout=0.1)
    state = Path(f"/proc/{file.read_text().strip()}/stat")
    for _ in range(1000):  # a signal is delivered when the process is next at its turn
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.01)
    pytest.fail(f"{state} is still there: {state.read_text()}")


def measured(case, **values):
    return {"case": case, "status": "ok", "platform": "gpu", "batch": 8, **values}


def test_ratios_are_of_sides_that_did_the_same():
    rows = [
        measured("b16", images_per_s=300.0, peak_memory_gb=10.0, learns=True, step_ms=1.0),
        measured("b16_open_clip", images_per_s=200.0, peak_memory_gb=20.0, learns=True),
        measured("b16_open_clip_compiled", images_per_s=400.0, learns=False),
        measured("loss_32k", step_ms=2.0, extra_memory_gb=0.5),
        measured("loss_32k_open_clip", step_ms=6.0, extra_memory_gb=5.0),
        measured("l14", images_per_s=9.0),
        {**measured("l14_open_clip", images_per_s=3.0), "batch": 4},
        measured("b32", images_per_s=9.0),
    ]
    found = {row["case"].split(" over ")[1]: row for row in accelerator.ratios_of(rows)}
    assert found["b16_open_clip"]["images_per_s"] == pytest.approx(1.5)
    assert found["b16_open_clip"]["peak_memory_gb"] == pytest.approx(0.5)
    assert found["loss_32k_open_clip"]["step_ms"] == pytest.approx(3.0)
    assert found["loss_32k_open_clip"]["extra_memory_gb"] == pytest.approx(0.1)
    broken = found["b16_open_clip_compiled"]
    assert "images_per_s" not in broken and "the loss does not fall" in broken["reason"]
    assert found["l14_open_clip"]["reason"] == "not the same batch"
    assert len(found) == 4


def test_the_tables_hold_figures_ratios_and_reasons():
    rows = [
        {
            "case": "setting",
            "status": "setting",
            "date": "2026-01-01",
            "commit": "abc",
            "tiny": False,
            "machine": {"gpus": ["A GPU"], "cpu": "a CPU", "cores": 2, "load_average": 0.5},
            "versions": {"jax": "1.2"},
        },
        measured("b16", images_per_s=2800.4, step_ms=91.42, mfu=0.351, loss_last=5.1),
        {"case": "b16 over x", "status": "ratio", "images_per_s": 1.624},
        {"case": "l14", "status": "time over", "reason": "ended after 150 s"},
        measured(
            "kernels",
            step_ms=90.0,
            busy_ms=80.0,
            by_direction={"forward": 30.0},
            by_kind={"fusion": 9.0},
            kernels=[{"kernel": "gemm", "part": "mlp", "ms": 12.5, "runs": 24.0}],
        ),
    ]
    text = accelerator.tables(rows)
    assert "| b16 | 8 | 91.4 | 2,800 | 0.351 |  |  |  | 5.1 |" in text
    assert "| b16 over x | 1.62 |" in text and "- l14: time over: ended after 150 s" in text
    assert "busy 80.00 of 90.00 ms" in text and "| gemm | mlp | 12.500 | 24 |" in text
    assert "A GPU" in text and "commit abc" in text


def test_a_machine_without_the_peer_measures_its_own_side(tmp_path):
    """The door: the program on a CPU, two cases, one of which has nothing to run with."""
    folder = tmp_path / "no_open_clip"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")
    out = tmp_path / "rows.jsonl"
    done = run(
        *("--tiny", "--minutes", 5, "--out", out, "--cases", "loss_32k", "loss_32k_open_clip"),
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    assert done.returncode == 0, done.stderr
    rows = {row["case"]: row for row in read_lines(out) if row["status"] != "wall"}
    ours = rows["loss_32k"]
    assert ours["status"] == "ok" and ours["step_ms"] > 0 and ours["compile_s"] > 0
    assert 0 < ours["loss_last"] < 5 and ours["peak_memory_gb"] > 0
    assert rows["loss_32k_open_clip"]["status"] == "missing"
    assert rows["loss_32k_open_clip"]["reason"] == "torch is not installed"
    assert rows["setting"]["tiny"] is True
    assert "TINY stand-ins" in done.stdout and "loss_32k_open_clip: missing" in done.stdout
    assert run("--table", out).stdout.strip() in done.stdout


@pytest.mark.slow
def test_the_whole_list_runs_on_a_cpu(tmp_path):
    """Every case of clipjax's own side has figures; a peer has them or says what is missing."""
    out = tmp_path / "rows.jsonl"
    one_device = {**os.environ, "XLA_FLAGS": with_devices(1)}
    done = run("--tiny", "--minutes", 30, "--out", out, env=one_device)
    rows = [row for row in read_lines(out) if row["status"] not in ("setting", "wall", "ratio")]
    assert [row["case"] for row in rows] == list(accelerator_cases.CASES), done.stdout
    for row in rows:
        if "open_clip" in row["case"]:
            assert row["status"] in ("ok", "missing"), row
        else:
            assert row["status"] == "ok", row
        if row["status"] == "ok" and "step_ms_of_chunks" in row and "model" in row:
            assert row["learns"], row
            assert row["images_per_s"] > 0 and row["train_gflops_an_example"] > 0
    by_name = {row["case"]: row for row in rows}
    assert by_name["kernels"]["busy_ms"] > 0 and by_name["kernels"]["by_direction"]["backward"] > 0
    assert 0 <= by_name["training_run"]["data_wait_fraction"] <= 1
    assert by_name["training_run"]["platform"] == by_name["b16"]["platform"] == "cpu"
    assert by_name["encode"]["images_per_s"] > 0 and by_name["encode"]["texts_per_s"] > 0


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("cpu", None),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA H100 PCIe", None),  # the table has the SXM form
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GeForce RTX 3090", None),
    ],
)
def test_a_device_is_found_in_the_table_of_chips(kind, chip):
    from benchmarks.ours import chip_of

    assert chip_of(kind) == chip


def test_a_field_that_this_tree_lacks_is_named():
    from benchmarks.ours import make_config
    from benchmarks.sizes import Size

    size = Size("ViT-B-16", 256, tiny=True)
    config = make_config(size, {"remat": "none", "loss.tile_size": 64})
    assert config.remat == "none" and config.loss.tile_size == 64 and config.batch_size == 4
    with pytest.raises(MissingError, match=r"this tree has no config\.nope\.remat"):
        make_config(size, {"nope.remat": "x"})


@pytest.mark.slow
def test_the_wheels_to_bring_are_installed_aside_without_a_network(tmp_path):
    """A wheel of the test's own: none is fetched."""
    wheel = tmp_path / "wheels" / "brought-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("brought.py", "HERE = True\n")
        archive.writestr(
            "brought-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n"
        )
        archive.writestr(
            "brought-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("brought-1.0.dist-info/RECORD", "")
    environment = accelerator.child_environment(tmp_path, tiny=True, brought=wheel.parent)
    code = "import brought, json; print(json.dumps(brought.HERE))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert json.loads(done.stdout) is True
    with pytest.raises(MissingError, match="holds no wheels; make it with --pack"):
        accelerator.child_environment(tmp_path, tiny=True, brought=tmp_path)
