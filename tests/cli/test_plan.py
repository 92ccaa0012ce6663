"""`clipjax plan`, the command itself."""

import json
import os
import subprocess
import sys

import pytest


def run_plan(*arguments):
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return subprocess.run(
        [sys.executable, "-m", "clipjax", "plan", *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_an_unknown_topology_is_one_line_with_the_known_ones(command):
    done = command("plan", "--config", "configs/smoke.py", "--topology", "v9:4x4")
    assert done.code == 1
    assert done.err.strip().startswith("clipjax plan: --topology='v9:4x4' is unknown")
    assert "v5e:16x16 (up to 256 chips)" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--price=-1", "--price=-1.0: USD for one chip and hour, 0 or more"),
        ("--json=/dev/null/plan.json", "/dev/null/plan.json cannot be written"),
    ],
)
def test_a_wrong_flag_is_said_before_anything_is_compiled(command, flag, message):
    done = command("plan", "--config", "configs/smoke.py", "--topology", "v5e:2x2", flag)
    assert done.code == 1
    assert message in done.err
    assert "Traceback" not in done.err


@pytest.mark.tpu
def test_a_plan_for_four_chips(tmp_path):
    path = tmp_path / "plan.json"
    done = run_plan(
        "--config", "configs/smoke.py", "--topology", "v5e:2x2", "--json", str(path),
        "--price", "1.2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "smoke at batch 32 on v5e:2x2: FITS" in done.stdout
    assert "USD at 1.2 USD a chip-hour" in done.stdout
    found = json.loads(path.read_text())
    assert found["fits"]
    assert found["mesh"] == {"data": 4, "fsdp": 1, "tensor": 1}
    flops = found["flops"]
    expected = 1 + flops["expected_extra"] - flops["expected_spared"]
    assert flops["expected_spared"] > 0.1  # a block of two
    assert flops["compiled_over_model"] == pytest.approx(expected, abs=0.05)


@pytest.mark.tpu
def test_a_plan_for_two_slices(tmp_path):
    """The whole step, optimised: each chip sends its share alone to the other slice."""

    def collectives(topology):
        path = tmp_path / "plan.json"
        done = run_plan("--config", "configs/smoke.py", "--topology", topology, "--json", str(path))
        assert done.returncode == 0, done.stderr
        found = json.loads(path.read_text())
        between = [row for row in found["collectives"] if "slices" in row["axes"]]
        inside = [row for row in found["collectives"] if "slices" not in row["axes"]]
        sizes = [sum(row["bytes"] for row in rows) for rows in (between, inside)]
        return done.stdout, found, *sizes

    text, found, between, inside = collectives("v5e:2x2x2slices")
    assert "smoke at batch 32 on v5e:2x2x2slices: FITS" in text
    assert "8 chips, 2 hosts, 2 slices; mesh data 8" in text and "between slices " in text
    assert found["topology"]["slices"] == 2
    assert 0 < between < inside / 4, (between, inside)
    *_, between, inside = collectives("v5e:2x4")
    assert between == 0 < inside


@pytest.mark.tpu
def test_a_plan_that_cannot_fit_names_what_would():
    done = run_plan(
        "--config", "configs/openai.py:batch_size=8192", "--topology", "v5e:2x2",
        "--config.remat=none",
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "DOES NOT FIT" in done.stdout
    assert "--config.micro_batch_size=" in done.stdout
    assert "Remat or micro-batches: prefer " in done.stdout


@pytest.mark.tpu
def test_a_batch_that_does_not_divide():
    done = run_plan("--config", "configs/smoke.py:batch_size=30", "--topology", "v5e:2x2")
    assert done.returncode == 1
    assert "config.batch_size = 30 does not divide" in done.stderr


@pytest.mark.gpu
def test_a_plan_for_two_hosts_of_four_gpus(tmp_path):
    path = tmp_path / "plan.json"
    done = run_plan(
        "--config", "configs/smoke.py", "--topology", "h100:2x4", "--json", str(path),
        "--config.dtype=bfloat16", "--config.remat=dots",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "smoke at batch 32 on h100:2x4: FITS" in done.stdout
    assert "8 GPUs, 2 hosts; mesh data 8" in done.stdout
    assert "Not settled without a device" in done.stdout
    found = json.loads(path.read_text())
    # cuDNN's attention was traced for a GPU that is not there, and its products are counted.
    kernels = found["flops"]["compiled"]["kernels"]
    assert {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"} <= set(kernels)
    assert found["flops"]["compiled"]["uncounted"] == {}
    flops = found["flops"]
    expected = 1 + flops["expected_extra"] - flops["expected_spared"]
    assert flops["expected_spared"] > 0.1  # a block of two
    assert flops["compiled_over_model"] == pytest.approx(expected, abs=0.05)
    assert found["hbm_traffic"]["hbm"] > 0
    assert {c["kind"] for c in found["collectives"]} >= {"all-gather", "reduce-scatter"}
