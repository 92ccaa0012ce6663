"""The whole machinery in under a minute, on generated pictures: coloured shapes with captions.

    clipjax train --config configs/smoke.py --workdir runs/smoke

Arguments: steps (24), batch_size (32), seed (0), stages (a flag: smaller images, shorter texts and
fewer patches in the first third of the run, two changes on the way to the model's own size).
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(arg, steps=24, batch_size=32, seed=0, stages=False)
    config = default_config()
    config.seed = arg.seed
    config.batch_size = arg.batch_size
    config.total_steps = arg.steps
    config.dtype = "float32"

    config.model = ConfigDict(
        {
            "name": "smoke",
            "embed_dim": 32,
            "image_size": 32,
            "image": {
                "name": "vit",
                "patch_size": 8,
                "width": 32,
                "depth": 2,
                "num_heads": 2,
                "mlp_dim": 64,
                "activation": "gelu",
                "layer_norm_eps": 1e-5,
                "pooling": "mean",
                "patch_dropout": 0.0,
                "dropout": 0.0,
            },
            "text": {
                "name": "causal_transformer",
                "vocab_size": 49408,
                "context_length": 16,
                "width": 32,
                "depth": 2,
                "num_heads": 2,
                "mlp_dim": 64,
                "activation": "gelu",
                "layer_norm_eps": 1e-5,
                "pooling": "eot",
                "dropout": 0.0,
            },
            "tokenizer": {"name": "clip_bpe"},
            "preprocess": {
                "resize": "shortest",
                "interpolation": "bicubic",
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
            },
            "logit_scale": {"init": 1 / 0.07, "max": 100.0},
        }
    )
    if arg.stages:
        third = arg.steps // 3
        config.stages = (
            {"until_step": third, "image_size": 16, "context_length": 8, "patch_dropout": 0.5},
            {"until_step": 2 * third, "image_size": 24, "context_length": 12},
        )
    config.data.source = "synthetic:512"
    config.optimizer.learning_rate = 2e-3
    config.schedule.warmup_steps = min(8, arg.steps // 2)
    config.evals.zero_shot = {
        "name": "zero_shot",
        "source": "synthetic:128",
        "templates": "plain",
        "every_steps": 0,
    }
    config.checkpoint.every_steps = 8
    config.log_every = 1
    return config
