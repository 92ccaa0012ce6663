"""FLIP: half of the patches, then all of them for a short end (arXiv:2212.00794).

    clipjax train --config configs/flip.py:source=SPEC --workdir DIR
    clipjax plan --config configs/flip.py:recipe=2b-ViT-H-14 --topology v5p:8x8x4

One run of two stages, as facebookresearch/flip has them (configs, models_flip.py, README.md);
OpenVision's towers have the same sizes, and a text without a mask. Not as published: images are the
mean of their patches, normalised once; there of their patches and the class token, each normalised;
the text tower starts as OpenAI's. Not known is Adam's epsilon.
Arguments: recipe (400m-ViT-B-16; a name of the table), source (a SPEC, see docs/data.md),
batch_size (the rates go with it), fsdp (devices that share one copy of the state), smoke (a flag:
small towers and a few steps on generated pictures).
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from clipjax.config import default_config
from clipjax.recipes import choose, make_towers_small, put_fsdp, put_stages, put_target

EPOCH = 1_281_167  # examples; lengths are counted in ImageNet's


class Flip(NamedTuple):
    """Epochs with half of the patches, those of their warm-up, rate of 256 examples, top-1."""

    model: str
    epochs: int
    warmup: int
    rate: float
    fsdp: int
    imagenet: float


# Results are of the README of facebookresearch/flip, zero-shot.
RECIPES = {
    "400m-ViT-B-16": Flip("openvision-vit-base-patch16-224", 10_000, 40, 4e-6, 1, 0.680),
    "400m-ViT-L-16": Flip("openvision-vit-large-patch14-224", 10_000, 40, 4e-6, 1, 0.743),
    "400m-ViT-H-14": Flip("openvision-vit-huge-patch14-224", 10_000, 200, 4e-6, 8, 0.755),
    "2b-ViT-L-16": Flip("openvision-vit-large-patch14-224", 20_000, 40, 2e-6, 1, 0.766),
    "2b-ViT-H-14": Flip("openvision-vit-huge-patch14-224", 20_000, 200, 2e-6, 8, 0.788),
}


def get_config(arg: str | None = None) -> ConfigDict:
    arg, recipe = choose(
        arg, RECIPES, default="400m-ViT-B-16", source="", batch_size=65_536, fsdp=1, smoke=False
    )
    config = default_config()
    config.model.name = recipe.model
    config.model.image.patch_size = int(arg.recipe[-2:])
    config.model.preprocess.update({"resize": "shortest", "interpolation": "bicubic"})
    config.model.text.context_length = 32
    config.model.text.vocab_size = 30_523  # BERT's and one for what is unknown
    config.model.text.pooling = "first"
    config.model.tokenizer = {
        "name": "wordpiece",
        "start_token": False,
        "end_token": "none",
        "cleaning": (),
    }
    put_fsdp(config, arg.fsdp)
    masked, unmasked, warmup, last_warmup = (
        epochs * EPOCH for epochs in (recipe.epochs, 100, recipe.warmup, 20)
    )
    if arg.smoke:
        arg.source, arg.batch_size, config.mesh.fsdp = "synthetic:64", 32, 1
        masked, unmasked, warmup, last_warmup = 96, 64, 32, 32
        make_towers_small(config)
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
            "optimizer": {"learning_rate": recipe.rate * arg.batch_size / 256},
            "schedule": {"warmup_steps": f"{warmup} examples"},
        },
        {
            "examples": unmasked,
            "optimizer": {"learning_rate": 4e-8 * arg.batch_size / 256},
            "schedule": {"warmup_steps": f"{last_warmup} examples"},
        },
    )
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "openclip"
    config.checkpoint.every_steps = 1000
    put_target(config, recipe.imagenet)
    return config
