"""CLIPA-v2 ViT-H/14: short images and texts, then two tunings at full size (arXiv:2306.15658).

    clipjax train --config configs/clipa_vit_h14.py:source=SPEC --workdir DIR
    clipjax plan --config configs/clipa_vit_h14.py --topology v5e:16x16

One run of three stages of 84, 224 and 336 pixels, each with its batch, rate and schedule. Of the
short captions of the first stage nouns come first, which needs the extra [text]. Not as published:
there classes of words are NLTK's, and of pieces of words; short captions take the first rows of the
text's positions; colours are jittered in one way for all pictures, there in four of any order for
four of five.
Arguments: source (a SPEC, see docs/data.md), batch_size (of the first stage; the others have a half
and a quarter of it, and the rates go with it), fsdp (devices that share one copy of the state),
smoke (a flag: small towers and a few steps on generated pictures).
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, make_towers_small, parse_arg, put_stages

# Pixels, tokens of a text, patch dropout, batch size as a part of the first stage's, examples,
# those of the warm-up (3,200, 800 and 1,600 steps), learning rate of 256 examples.
STAGES = (
    (84, 8, 0.0, 1, 12_811_670_000, 3200 * 65_536, 8e-6),
    (224, 32, 0.3, 2, 524_288_000, 800 * 32_768, 4e-7),
    (336, 32, 0.4, 4, 131_072_000, 1600 * 16_384, 1e-7),
)


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(arg, source="", batch_size=65_536, fsdp=16, smoke=False)
    config = default_config()
    config.model.name = "ViT-H-14-CLIPA-336"
    config.mesh.fsdp = arg.fsdp
    config.sharding = "fsdp"
    scale = 1
    if arg.smoke:
        arg.source, arg.batch_size, scale = "synthetic:64", 32, 100_000_000
        make_towers_small(config)
        config.mesh.fsdp = 1
    stages = []
    for pixels, tokens, patch_dropout, part, examples, warmup, rate in STAGES:
        batch_size = arg.batch_size // part
        stages.append(
            {
                "examples": max(examples // scale, 2 * batch_size),
                "image_size": pixels,
                "context_length": tokens,
                "patch_dropout": patch_dropout,
                "batch_size": batch_size,
                "optimizer": {"learning_rate": rate * batch_size / 256},
                # CLIPA: fewer than 3,200 steps collapse at 84 pixels.
                "schedule": {"warmup_steps": f"{warmup // scale} examples"},
            }
        )
    transforms = (
        {"name": "random_resized_crop", "scale": (0.4, 1.0), "interpolation": "bilinear"},
        # Near the published jitter of strength 0.4.
        {
            "name": "color_jitter",
            "hue": 29.0,
            "saturation": (0.68, 1.32),
            "gain": 0.32,
            "channel_gain": 0.0,
            "offset": 0.0,
        },
        {"name": "random_grayscale", "probability": 0.2},
    )
    # Six words, as a cut caption has a start and an end beside them.
    nouns_first = {"name": "mask_words", "max_words": STAGES[0][1] - 2, "kind": "syntax"}
    stages[0]["data"] = {"transforms": (*transforms, nouns_first)}
    put_stages(config, *stages)
    config.data.source = arg.source
    config.data.transforms = transforms
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "kernels"
    config.optimizer.mu_dtype = "bfloat16"
    config.checkpoint.every_steps = 1000
    # Zero-shot on ImageNet, squashed to 336 pixels, of DataComp-1B; 0.815 behind the second stage.
    config.target.imagenet_top1 = 0.818
    return config
