"""A run's rate as a share of its devices' peak."""

import logging
import types

import numpy as np
import pytest
from tiny import tiny_spec

from clipjax.plan.chips import CHIPS
from clipjax.plan.mfu import make_mfu
from clipjax.plan.model_flops import model_flops


def program_on(kind, count=4, platform="tpu"):
    device = types.SimpleNamespace(device_kind=kind, platform=platform)
    specs = (tiny_spec(image_size=8), tiny_spec())
    return types.SimpleNamespace(
        mesh=types.SimpleNamespace(devices=np.array([device] * count)),
        stages=tuple(
            types.SimpleNamespace(
                spec=spec, model=None, batch_size=1024, is_locked=lambda tower: False
            )
            for spec in specs
        ),
    )


@pytest.mark.parametrize(
    ("kind", "name"), [("TPU v5 lite", "v5e"), ("TPU7x", "tpu7x"), ("NVIDIA H200", "h200")]
)
def test_a_known_chip(kind, name):
    program = program_on(kind)
    mfu = make_mfu(program)
    peak = 4 * CHIPS[name].flops / CHIPS[name].devices
    for number, stage in enumerate(program.stages):
        needs = model_flops(stage.spec, None, 1024).train
        assert mfu.of(0.5 * peak / needs, number) == pytest.approx(0.5)
    assert mfu.of(1e6, 1) > 2 * mfu.of(1e6, 0)  # the larger images of the second stage


def test_an_unknown_chip_says_so_and_a_cpu_is_none(caplog):
    logging.getLogger("absl").setLevel(logging.INFO)
    assert make_mfu(program_on("cpu", platform="cpu")) is None
    assert not caplog.text
    assert make_mfu(program_on("TPU of tomorrow")) is None
    assert "no peak of TPU of tomorrow is known here" in caplog.text
