"""The traffic that theory asks for, in numbers worked out by hand."""

import pytest

from clipjax.plan.advice import Setting, Step
from clipjax.plan.formulas import collective_formulas

TOWER = {"width": 10, "mlp_dim": 40, "depth": 2, "num_heads": 2}
SPEC = {
    "embed_dim": 16,
    "image_size": 32,
    "image": {"name": "vit", "patch_size": 8, "pooling": "mean", **TOWER},
    "text": {"name": "causal_transformer", "vocab_size": 100, "context_length": 4, **TOWER},
}
MATRICES = 2 * 2 * (4 * 10 * 10 + 2 * 10 * 40) + 100 * 10  # of both towers, and the table of tokens


def moved(sharding, mesh, *, remat="dots", micro_batches=1):
    devices = mesh[0] * mesh[1] * mesh[2]
    step = Step(
        spec=SPEC, num_parameters=8000, optimizer_bytes=8.0, batch_per_device=64 / devices,
        num_devices=devices, item_bytes=2,
    )  # fmt: skip
    setting = Setting(remat=remat, micro_batches=micro_batches, sharding=sharding, fsdp=mesh[1])
    return collective_formulas(
        step, setting, dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)), 64
    )


@pytest.mark.parametrize(
    ("sharding", "mesh", "settings", "expected"),
    [
        ("replicated", (8, 1, 1), {}, 2 * 2 * 8000 * 7 / 8),
        ("replicated", (2, 4, 1), {}, 2 * 2 * 8000 * 7 / 8),
        ("replicated", (8, 1, 1), {"micro_batches": 8}, 8 * 2 * 2 * 8000 * 7 / 8),
        ("zero1", (8, 1, 1), {}, (2 + 4) * 8000 * 7 / 8),
        ("zero1", (8, 1, 1), {"micro_batches": 8}, (8 * 2 + 4) * 8000 * 7 / 8),
        ("zero1", (1, 1, 1), {}, 0),
        ("fsdp", (1, 8, 1), {}, 3 * 2 * 8000 * 7 / 8),
        ("fsdp", (2, 4, 1), {}, 3 * 2 * 8000 * 3 / 4 + 2 * 2 * 2000 / 2),
        ("fsdp", (1, 8, 1), {"remat": "full"}, 4 * 2 * 8000 * 7 / 8),
        ("fsdp", (1, 8, 1), {"micro_batches": 2}, 2 * 4 * 2 * 8000 * 7 / 8),
        (
            "fsdp",
            (2, 4, 1),
            {"micro_batches": 2},
            2 * (4 * 2 * 8000 * 3 / 4 + 2 * 2 * 2000 / 2),
        ),
        ("tensor", (8, 1, 1), {"micro_batches": 4}, (4 * 2 + 4) * 8000 * 7 / 8),
        ("tensor", (8, 1, 1), {}, (2 + 4) * 8000 * 7 / 8),  # nothing is split: as zero1
        (
            "tensor",
            (2, 2, 2),
            {},
            (2 + 4) * (8000 - MATRICES / 2) * 3 / 4
            # 16 examples; 16 patches and 4 tokens, 2 blocks of 4 sums of bfloat16; one look-up.
            + 2 / 2 * 16 * (2 * 4 * (16 + 4) * 10 * 2 + 4 * 10 * 4),
        ),
    ],
)
def test_traffic_of_a_step(sharding, mesh, settings, expected):
    assert moved(sharding, mesh, **settings)["step"] == pytest.approx(expected)


def test_traffic_of_the_loss():
    assert moved("zero1", (16, 1, 1))["loss"] == 12 * 64 * 16 / 4
    assert moved("zero1", (1, 1, 1))["loss"] == 0
