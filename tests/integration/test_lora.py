"""LoRA by the command: trained, stopped and gone on with, exported alone, evaluated as whole."""

import json
import shutil

import pytest

CONFIG = (
    "configs/finetune.py:checkpoint={},source=synthetic:64,batch_size=16,steps=4,mode=lora,"
    "rank=2,learning_rate=1e-2,eval=synthetic:64"
)


@pytest.mark.slow  # what is exported and read: tests/interop/test_adapter.py
def test_a_run_goes_on_to_the_bit_and_its_adapter_is_the_run(
    clipjax, reference, digests_of, losses_of, tmp_path
):
    train = ("train", "--config", CONFIG.format(reference), "--config.report=false")
    flags = ("--config.log_every=1", "--config.checkpoint.every_steps=2")
    clipjax(*train, *flags, "--workdir", tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for step in (3, 4):  # it was killed behind step 2
        shutil.rmtree(tmp_path / "stopped" / "checkpoints" / str(step), ignore_errors=True)
    clipjax(*train, *flags, "--workdir", tmp_path / "stopped")
    whole, stopped = (digests_of(tmp_path / run, 4) for run in ("whole", "stopped"))
    assert whole == stopped and losses_of(tmp_path / "whole") == losses_of(tmp_path / "stopped")
    base = digests_of(reference, 24)
    moved = {name for name in whole if name.startswith("params/") and name not in base}
    assert moved and all(name.startswith("params/lora/") for name in moved)
    assert all(whole[name] == base[name] for name in base if name.startswith("params/"))
    moments = [name for name in whole if "/mu/" in name or "/nu/" in name]
    assert len(moments) == 2 * len(moved) and all("/lora/" in name for name in moments)

    clipjax("convert", "--from", tmp_path / "whole", "--to", tmp_path / "ad", "--format=adapter")
    evaluations = []
    for path in (tmp_path / "whole", tmp_path / "ad"):
        found = tmp_path / "found.json"
        clipjax("eval", "--checkpoint", path, "--zero_shot=synthetic:64", f"--json={found}")
        evaluations.append(json.loads(found.read_text()))
    numbers = [{k: v for k, v in e.items() if isinstance(v, float)} for e in evaluations]
    assert numbers[0] == numbers[1] and numbers[0]
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    name = "zero_shot/synthetic_64/top1"
    assert results[name] == pytest.approx(numbers[0][name])
