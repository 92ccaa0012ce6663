"""FLIP ViT-B/16: half of the patches, then all of them for a short end (arXiv:2212.00794).

    clipjax train --config configs/flip_vit_b16.py:source=SPEC --workdir DIR
    clipjax plan --config configs/flip_vit_b16.py --topology v5e:16x16

One run of two stages. Not as published: captions are CLIP's pieces, there BERT's. Not known are
batch and warm-up of the unmasked end, which are those before it and none here, and Adam's epsilon.
Arguments: source (a SPEC, see docs/data.md), batch_size (the rates go with it), smoke (a flag:
small towers and a few steps on generated pictures).
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, make_towers_small, parse_arg, put_stages


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(arg, source="", batch_size=65_536, smoke=False)
    config = default_config()
    config.model.name = "ViT-B-16"
    masked, unmasked, warmup = 12_800_000_000, 128_000_000, 51_000_000
    if arg.smoke:
        arg.source, arg.batch_size, masked, unmasked, warmup = "synthetic:64", 32, 96, 64, 32
        make_towers_small(config)
    config.model.text.context_length = 32
    config.data.source = arg.source
    config.data.transforms = (
        {"name": "random_resized_crop", "scale": (0.5, 1.0)},
        {"name": "random_flip"},
    )
    config.batch_size = arg.batch_size
    put_stages(
        config,
        {
            "examples": masked,
            "patch_dropout": 0.5,
            "optimizer": {"learning_rate": 4e-6 * arg.batch_size / 256},
            "schedule": {"warmup_steps": f"{warmup} examples"},
        },
        {
            "examples": unmasked,
            "optimizer": {"learning_rate": 4e-8 * arg.batch_size / 256},
            "schedule": {"warmup_steps": 0},
        },
    )
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.2
    config.checkpoint.every_steps = 1000
    # Zero-shot on ImageNet, of LAION-400M.
    config.target.imagenet_top1 = 0.680
    return config
