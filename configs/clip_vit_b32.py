"""CLIP ViT-B/32 as OpenAI trained it on 400 million pairs (arXiv:2103.00020).

    clipjax train --config 'configs/clip_vit_b32.py:source=tar:/data/{0000..4145}.tar' --workdir DIR

Arguments: source (a SPEC, see docs/data.md), batch_size, examples (seen in training, in all), eval
(a SPEC with labels, for zero-shot accuracy during the run).
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(arg, source="", batch_size=32_768, examples=12_800_000_000, eval="")
    config = default_config()
    config.model.name = "ViT-B-32-quickgelu"
    config.data.source = arg.source
    # OpenAI's only augmentation: a random square crop of the resized image.
    config.data.transforms = ({"name": "random_resized_crop", "scale": (0.9, 1.0)},)
    config.batch_size = arg.batch_size
    config.total_steps = arg.examples // arg.batch_size
    config.optimizer.learning_rate = 5e-4
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "openai"
    config.schedule.warmup_steps = 2000
    config.checkpoint.every_steps = 2000
    config.checkpoint.keep_every = 50_000
    if arg.eval:
        config.evals.zero_shot = {
            "name": "zero_shot",
            "source": arg.eval,
            "templates": "openai_80",
            "every_steps": 10_000,
        }
    # ImageNet-1k zero-shot, 80 templates, OpenAI's preprocessing, as open_clip measured it.
    config.target.imagenet_top1 = 0.6332
    return config
