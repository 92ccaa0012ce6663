"""OpenVision, its contrastive part: small images, then tunings at full size (arXiv:2505.04601).

    clipjax train --config configs/openvision.py:source=SPEC --workdir DIR
    clipjax plan --config configs/openvision.py:recipe=huge --topology v5e:16x16

One run of two or three stages, each with its batch, rate and schedule, as UCSC-VLAA/OpenVision has
them (src/configs/openvision.py, scripts/project/openvision/train.sh). Not as published: there a
decoder learns captions of 128 tokens, too, at twice the weight of the pairs, and a batch is two
captions of each of half as many pictures; colours are jittered in one order, there in any. So the
targets are of the whole recipe.
Arguments: recipe (large; a name of the table), source (a SPEC, see docs/data.md), batch_size (of
the first stage; the others have a half and a quarter of it, and the rates go with it), fsdp
(devices that share one copy of the state), smoke (a flag: small towers and a few steps on generated
pictures).
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from clipjax.config import default_config
from clipjax.recipes import (
    CLIPA_IMAGES,
    choose,
    make_towers_small,
    put_fsdp,
    put_stages,
    put_target,
)


class OpenVision(NamedTuple):
    """The model at its last size, the pixels of the stages, devices that share the state, top-1."""

    model: str
    pixels: tuple[int, ...]
    fsdp: int
    imagenet: float


# Results are of the README of UCSC-VLAA/OpenVision, at the last size.
RECIPES = {
    "tiny": OpenVision("openvision-vit-tiny-patch16-224", (160, 224), 1, 0.496),
    "small": OpenVision("openvision-vit-small-patch16-224", (160, 224), 1, 0.659),
    "base": OpenVision("openvision-vit-base-patch16-224", (160, 224), 1, 0.739),
    "large": OpenVision("openvision-vit-large-patch14-336", (84, 224, 336), 2, 0.789),
    "so400m": OpenVision("openvision-vit-so400m-patch14-384", (84, 224, 384), 2, 0.799),
    "huge": OpenVision("openvision-vit-huge-patch14-224", (84, 224), 2, 0.804),
}
# Batch size as a part of the first stage's, examples and those of the warm-up in epochs of
# ImageNet, and learning rate at a batch of 32,768 in the first stage.
STAGES = ((1, 10_000, 40, 1.024e-3), (2, 800, 20, 2.56e-5), (4, 200, 0, 3.2e-6))
EPOCH = 1_281_167


def get_config(arg: str | None = None) -> ConfigDict:
    arg, recipe = choose(
        arg, RECIPES, default="large", source="", batch_size=32_768, fsdp=1, smoke=False
    )
    config = default_config()
    config.model.name = recipe.model
    put_fsdp(config, arg.fsdp)
    epoch = EPOCH
    if arg.smoke:
        arg.source, arg.batch_size, epoch = "synthetic:64", 32, 0.0128  # whole batches a stage
        make_towers_small(config)
        config.mesh.fsdp = 1
    stages = []
    for pixels, (part, epochs, warmup, rate) in zip(recipe.pixels, STAGES, strict=False):
        batch_size = arg.batch_size // part
        stages.append(
            {
                "examples": max(int(epochs * epoch), 2 * batch_size),
                "image_size": pixels,
                "batch_size": batch_size,
                "optimizer": {"learning_rate": rate * arg.batch_size / 32_768},
                "schedule": {"warmup_steps": f"{int(warmup * epoch)} examples"},
            }
        )
    put_stages(config, *stages)
    config.data.source = arg.source
    config.data.transforms = CLIPA_IMAGES
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "kernels"
    config.optimizer.mu_dtype = "bfloat16"
    config.checkpoint.every_steps = 1000
    put_target(config, recipe.imagenet)
    return config
