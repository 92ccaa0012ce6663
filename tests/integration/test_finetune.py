"""Fine-tuning through the shipped config: full, locked image tower, another resolution."""

import json
import re

import pytest
from xla_flags import with_devices


def finetune(clipjax, reference, workdir, arguments="", *flags, **options):
    return clipjax(
        "train",
        "--config",
        f"configs/finetune.py:checkpoint={reference},source=synthetic:256,batch_size=16,steps=4"
        f",eval=synthetic:64{arguments}",
        "--workdir",
        workdir,
        "--config.report=false",
        "--config.log_every=1",
        *flags,
        **options,
    )


# What is locked does not move: tests/optim; it is the loaded one: tests/checkpoint/test_start.py.
@pytest.mark.slow
def test_locked_image_tower(clipjax, reference, digests_of, losses_of, tmp_path):
    done = finetune(clipjax, reference, tmp_path, ",mode=lit")
    assert "loaded      text_encoder/token_embedding" in done.stderr and "frozen" in done.stderr
    before, after = digests_of(reference, 24), digests_of(tmp_path, 4)
    for name in before:
        if name.startswith("params/image"):
            assert before[name] == after[name], name
    for name in ("text_projection/kernel", "text_encoder/token_embedding"):
        assert before[f"params/{name}"] != after[f"params/{name}"]
    # What it could do before: step 0 of the evaluations, which a run from scratch does not have.
    evaluated = [
        [json.loads(line)["step"] for line in (run / "evals.jsonl").read_text().splitlines()]
        for run in (tmp_path, reference)
    ]
    assert evaluated[0][0] == 0 and evaluated[1][0] > 0
    # Nothing is wrong but the captions, of which there are few.
    warnings = [line for line in done.stderr.splitlines() if " WARNING " in line]
    assert all("captions of the first batch" in line for line in warnings), warnings
    assert re.search(r"devices: 1 x \w+ \(cpu\) of 1 host\n", done.stderr)
    # It starts from what was learnt: the loss is far from that of a model drawn anew.
    assert losses_of(tmp_path)[1] < losses_of(reference)[1]


@pytest.mark.slow
def test_full(clipjax, reference, digests_of, tmp_path):
    finetune(clipjax, reference, tmp_path)
    before, after = digests_of(reference, 24), digests_of(tmp_path, 4)
    for name in ("image_projection/kernel", "text_encoder/token_embedding"):
        assert before[f"params/{name}"] != after[f"params/{name}"]


@pytest.mark.slow  # resizing: tests/checkpoint/test_start.py
def test_another_resolution(clipjax, reference, tmp_path):
    """On two devices, and with the layers in the other layout than the checkpoint's."""
    devices = {"XLA_FLAGS": with_devices(2)}
    flag = "--config.scan_layers=false"
    done = finetune(clipjax, reference, tmp_path, ",image_size=64", flag, env=devices)
    assert "resized     image_encoder/position_embedding [16, 32] -> [64, 32]" in done.stderr
    manifest = json.loads((tmp_path / "checkpoints" / "4" / "manifest.json").read_text())
    assert manifest["contract"]["model"]["image_size"] == 64


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.init.drop=('text_projection',)", ["text_projection/kernel", "initialise"]),
        ("--config.model.text.pooling='mean'", ["pooling"]),
    ],
)
def test_leftovers_and_other_models_are_errors(command, reference, tmp_path, flag, words):
    done = finetune(command, reference, tmp_path, "", flag)
    assert done.code == 1 and "Traceback" not in done.err
    for word in words:
        assert word in done.err
