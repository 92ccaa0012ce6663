"""CLIPA-v2 ViT-H/14: short images and texts, then two tunings at full size (arXiv:2306.15658).

    clipjax train --config configs/clipa_vit_h14.py:source=SPEC --workdir runs/84
    clipjax train --config configs/clipa_vit_h14.py:source=SPEC,phase=224,checkpoint=runs/84 \
        --workdir runs/224
    clipjax train --config configs/clipa_vit_h14.py:source=SPEC,phase=336,checkpoint=runs/224 \
        --workdir runs/336
    clipjax plan --config configs/clipa_vit_h14.py --topology v5e:16x16

Three runs and not config.stages, since each has its own batch size and learning-rate schedule.
Arguments: source (a SPEC, see docs/data.md), phase (84 | 224 | 336), checkpoint (of the phase
before), batch_size and examples (0: as published), fsdp (devices that share one copy of the state).
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, parse_arg

# Pixels: tokens of a text, patch dropout, batch size, examples, warm-up steps, learning rate of
# 256 examples, and the published accuracy: zero-shot top-1 on ImageNet, squashed to that size; 224
# and 336 pixels are those of DataComp-1B.
PHASES = {
    84: (8, 0.0, 65_536, 12_811_670_000, 3200, 8e-6, 0.756),
    224: (32, 0.3, 32_768, 524_288_000, 800, 4e-7, 0.815),
    336: (32, 0.4, 16_384, 131_072_000, 1600, 1e-7, 0.818),
}


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(arg, source="", phase=84, checkpoint="", batch_size=0, examples=0, fsdp=16)
    if arg.phase not in PHASES:
        raise ValueError(f"config argument phase={arg.phase}: allowed are 84, 224, 336")
    tokens, patch_dropout, batch_size, examples, warmup_steps, rate, top1 = PHASES[arg.phase]
    config = default_config()
    config.model.name = "ViT-H-14-CLIPA"
    config.model.image_size = arg.phase  # the positions are fixed: any size has its own
    config.model.image.patch_dropout = patch_dropout
    # Cut behind the last word that fits; the published run puts the nouns first.
    config.model.text.context_length = tokens
    config.init.checkpoint = arg.checkpoint  # its text positions are interpolated to 32
    config.mesh.fsdp = arg.fsdp
    config.sharding = "fsdp"
    config.data.source = arg.source
    config.data.transforms = (
        {"name": "random_resized_crop", "scale": (0.4, 1.0), "interpolation": "bilinear"},
        # Near the published jitter of strength 0.4, which also takes the colour of some pictures.
        {
            "name": "color_jitter",
            "hue": 29.0,
            "saturation": (0.68, 1.32),
            "gain": 0.32,
            "channel_gain": 0.0,
            "offset": 0.0,
        },
    )
    config.batch_size = arg.batch_size or batch_size
    config.total_steps = (arg.examples or examples) // config.batch_size
    config.optimizer.learning_rate = rate * config.batch_size / 256
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "kernels"
    config.optimizer.mu_dtype = "bfloat16"
    config.schedule.warmup_steps = warmup_steps  # CLIPA: fewer than 3,200 collapse at 84 pixels
    config.checkpoint.every_steps = 1000
    config.target.imagenet_top1 = top1
    return config
