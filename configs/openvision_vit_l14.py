"""OpenVision ViT-L/14, its contrastive part: small images, then two tunings (arXiv:2505.04601).

    clipjax train --config configs/openvision_vit_l14.py:source=SPEC --workdir DIR
    clipjax plan --config configs/openvision_vit_l14.py --topology v5e:16x16

One run of three stages of 84, 224 and 336 pixels, each with its batch, rate and schedule. Not as
published: there a decoder learns captions of 128 tokens, too, at twice the weight of the pairs, and
a batch is two captions of each of half as many pictures. Not known are the augmentation, of which
there is none here, and Adam's epsilon and decay mask, which are CLIPA's here.
Arguments: source (a SPEC, see docs/data.md), batch_size (of the first stage; the others have a half
and a quarter of it, and the rates go with it), fsdp (devices that share one copy of the state),
smoke (a flag: small towers and a few steps on generated pictures).
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, make_towers_small, parse_arg, put_stages

# Pixels, batch size as a part of the first stage's, examples, those of the warm-up, and learning
# rate at a batch of 32,768 in the first stage.
STAGES = (
    (84, 1, 12_800_000_000, 51_000_000, 1.024e-3),
    (224, 2, 1_020_000_000, 26_000_000, 2.56e-5),
    (336, 4, 256_000_000, 0, 3.2e-6),
)


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(arg, source="", batch_size=32_768, fsdp=2, smoke=False)
    config = default_config()
    config.model.name = "openvision-vit-large-patch14-336"
    config.mesh.fsdp = arg.fsdp
    config.sharding = "fsdp"
    scale = 1
    if arg.smoke:
        arg.source, arg.batch_size, scale = "synthetic:64", 32, 100_000_000
        make_towers_small(config)
        config.mesh.fsdp = 1
    stages = []
    for pixels, part, examples, warmup, rate in STAGES:
        batch_size = arg.batch_size // part
        stages.append(
            {
                "examples": max(examples // scale, 2 * batch_size),
                "image_size": pixels,
                "batch_size": batch_size,
                "optimizer": {"learning_rate": rate * arg.batch_size / 32_768},
                "schedule": {"warmup_steps": f"{warmup // scale} examples"},
            }
        )
    put_stages(config, *stages)
    config.data.source = arg.source
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "kernels"
    config.optimizer.mu_dtype = "bfloat16"
    config.checkpoint.every_steps = 1000
    # Of the whole recipe, its captions too; 0.785 behind the second stage.
    config.target.imagenet_top1 = 0.789
    return config
