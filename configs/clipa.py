"""CLIPA: short images and texts, then tunings at full size (arXiv:2305.07017; v2: 2306.15658).

    clipjax train --config configs/clipa.py:source=SPEC --workdir DIR
    clipjax train --config configs/clipa.py:recipe=B-16-i50-t16,source=SPEC --workdir DIR
    clipjax plan --config configs/clipa.py --topology v5e:16x16

One run of two or three stages, each with its batch, rate and schedule. Of the short captions of a
first stage nouns come first, which needs the extra [text]. The first version's three recipes are of
UCSC-VLAA/CLIPA's clipa_torch/scripts/exp, for eight A100s (its JAX file of B/16 has half of the
batch, 1,600 steps of warm-up and 7 epochs); v2's of its clipa_jax/configs, model_h and model_bigG,
where a second file tunes bigG/14 by Lion instead. Not known are the rates and warm-ups of v2's
L/14, which are H/14's here. Not as published: there classes of words are NLTK's, and of pieces of
words; short captions take the first rows of the text's positions; colours are jittered in one
order, there in any; the first version's tuning learns the positions, which are fixed here, and its
L/16 has contrast about the mean luma and the class token in the mean of the tokens.
Arguments: recipe (v2-H-14; a name of the table), source (a SPEC, see docs/data.md), batch_size (of
the first stage; the others go with it, and all rates), fsdp (devices that share one copy of the
state), smoke (a flag: small towers and a few steps on generated pictures).
"""

from typing import Any, NamedTuple

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


class Stage(NamedTuple):
    """A stage: pixels, tokens of a text, batch size, examples, warm-up steps, rate, and extras."""

    pixels: int
    tokens: int
    batch_size: int
    examples: int
    warmup_steps: int
    rate: float
    nouns_first: bool = False
    patch_dropout: float = 0.0


class Clipa(NamedTuple):
    """Top-1 to reach, and what a model is trained with."""

    model: str
    imagenet: float
    stages: tuple[Stage, ...]
    fsdp: int = 1
    transforms: tuple[dict[str, Any], ...] = CLIPA_IMAGES

    @property
    def batch_size(self) -> int:
        """That of the first stage."""
        return self.stages[0].batch_size


V2 = (
    # Fewer than 3,200 steps of warm-up collapse at 84 pixels.
    Stage(84, 8, 65_536, 12_811_670_000, 3200, 2.048e-3, nouns_first=True),
    Stage(224, 32, 32_768, 524_288_000, 800, 5.12e-5, patch_dropout=0.3),
    Stage(336, 32, 16_384, 131_072_000, 1600, 6.4e-6, patch_dropout=0.4),
)
V2_BIGG = (
    Stage(70, 8, 65_536, 12_811_670_000, 3200, 1.024e-3, nouns_first=True),
    Stage(224, 32, 16_384, 524_288_000, 0, 2.56e-5, patch_dropout=0.4),
    V2[-1],
)
L16_TUNING = Stage(224, 32, 7168, 131_072_000, 3571, 2.24e-5)
# Results are of the README of UCSC-VLAA/CLIPA: the first version's on LAION-400M, v2's on
# DataComp-1B unless LAION-2B is said, squashed to 336 pixels.
RECIPES = {
    "B-16-i50-t16": Clipa(
        "ViT-B-16",
        0.632,
        (
            Stage(112, 16, 65_536, 2_400_000_000, 782, 2.048e-3),
            Stage(224, 16, 8192, 131_072_000, 3072, 2.56e-5),
        ),
        transforms=CLIPA_IMAGES[:1],
    ),
    "L-16-i17-t16": Clipa(
        "ViT-L-14",
        0.678,
        (
            Stage(64, 16, 32_768, 2_400_000_000, 1563, 1.024e-3, nouns_first=True),
            L16_TUNING._replace(tokens=16),
        ),
    ),
    "L-16-i37-t8": Clipa(
        "ViT-L-14",
        0.693,
        (Stage(96, 8, 32_768, 2_400_000_000, 1563, 1.024e-3, nouns_first=True), L16_TUNING),
    ),
    "v2-L-14": Clipa("ViT-L-14-CLIPA-336", 0.803, V2, fsdp=2),
    "v2-H-14": Clipa("ViT-H-14-CLIPA-336", 0.818, V2, fsdp=16),
    "v2-H-14-laion2b": Clipa("ViT-H-14-CLIPA-336", 0.791, V2, fsdp=16),
    "v2-bigG-14": Clipa("ViT-bigG-14-CLIPA-336", 0.830, V2_BIGG, fsdp=8),
}


def get_config(arg: str | None = None) -> ConfigDict:
    arg, recipe = choose(
        arg, RECIPES, default="v2-H-14", source="", batch_size=0, fsdp=1, smoke=False
    )
    config = default_config()
    config.model.name = recipe.model
    put_fsdp(config, arg.fsdp)
    scale, stages = arg.batch_size / recipe.batch_size, recipe.stages
    if arg.smoke:
        make_towers_small(config)
        arg.source, config.mesh.fsdp, scale = "synthetic:64", 1, 1.0
        stages = [_small(each, 32 / recipe.batch_size) for each in stages]
    config.data.source = arg.source
    config.data.transforms = recipe.transforms
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.2
    if "CLIPA" in recipe.model:
        config.optimizer.eps = 1e-8
        config.optimizer.decay_mask = "kernels"
        config.optimizer.mu_dtype = "bfloat16"
    else:  # the first version: towers and optimizer of OpenCLIP, in patches of 16
        config.model.image.patch_size = 16
        config.model.image.positions = "sincos2d"
        if recipe.model == "ViT-L-14":
            config.model.image.pooling = "patch_mean"
        config.optimizer.eps = 1e-6
        config.optimizer.decay_mask = "openclip_legacy"
    put_stages(config, *(_stage(each, scale, recipe) for each in stages))
    config.checkpoint.every_steps = 1000
    put_target(config, recipe.imagenet)
    return config


def _small(stage: Stage, part: float) -> Stage:
    batch_size = max(int(stage.batch_size * part), 8)
    steps = 4 if batch_size == 32 else 2
    return stage._replace(batch_size=batch_size, examples=steps * batch_size, warmup_steps=1)


def _stage(stage: Stage, scale: float, recipe: Clipa) -> dict[str, Any]:
    found = {
        "examples": stage.examples,
        "image_size": stage.pixels,
        "context_length": stage.tokens,
        "patch_dropout": stage.patch_dropout,
        "batch_size": int(stage.batch_size * scale),
        "optimizer": {"learning_rate": stage.rate * scale},
        "schedule": {"warmup_steps": f"{stage.warmup_steps * stage.batch_size} examples"},
    }
    if stage.nouns_first:
        # Two words less than tokens, as a cut caption has a start and an end beside them.
        first = {"name": "mask_words", "max_words": stage.tokens - 2, "kind": "syntax"}
        found["data"] = {"transforms": (*recipe.transforms, first)}
    return found
