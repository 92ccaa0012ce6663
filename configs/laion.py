"""CLIP as LAION trained it with OpenCLIP on LAION-400M and LAION-2B (arXiv:2212.07143).

    clipjax train --config 'configs/laion.py:source=tar:/data/{00000..41455}.tar' --workdir DIR
    clipjax plan --config configs/laion.py:recipe=2b-ViT-H-14 --topology v5p:8x8x4

Rates, warm-ups and batches are those of LAION-AI/scaling-laws-openclip (trained_models_info.csv)
and of open_clip's docs/PRETRAINED.md, whose results are of a run with the batch that stands here.
Not known are the rate and the warm-up of 400m-ViT-B-16-plus-240, which are ViT-B-16's here.
2b-ViT-bigG-14 (laion.ai/blog/giant-openclip) has two stages (FLIP, arXiv:2212.00794): half of the
patches for 32 billion examples, all of them for the last 2; there the rate doubled for the end,
here it is one cosine. 160k is its batch as published; 159,744 divides over 512 devices.
Arguments: recipe (2b-ViT-B-32; a name of the table), source (a SPEC, see docs/data.md), batch_size,
examples (seen in training, in all), fsdp (devices that share one copy of the state), eval (a SPEC
with labels, for zero-shot accuracy during the run), smoke (a flag: small, on generated pictures).
"""

import dataclasses

from ml_collections import ConfigDict

from clipjax.recipes import Recipe, pair_config, put_stages

B32 = Recipe(
    model="ViT-B-32",
    examples=34_725_395_968,
    batch_size=79_104,
    learning_rate=1e-3,
    warmup_steps=2000,
    imagenet=0.6656,
    flickr30k=(0.668, 0.841),
    coco=(0.393, 0.563),
)
B16 = dataclasses.replace(
    B32,
    model="ViT-B-16",
    examples=34_215_894_963,
    batch_size=88_064,
    warmup_steps=10_000,
    imagenet=0.7023,
    flickr30k=(0.698, 0.863),
    coco=(0.423, 0.594),
)
B16_400M = dataclasses.replace(
    B16,
    examples=13_034_626_688,
    batch_size=33_792,
    learning_rate=5e-4,
    imagenet=0.6705,
    flickr30k=(0.657, 0.835),
    coco=(0.384, 0.554),
)
H14 = dataclasses.replace(
    B32,
    model="ViT-H-14",
    learning_rate=5e-4,
    fsdp=16,
    imagenet=0.7796,
    flickr30k=(0.776, 0.907),
    coco=(0.495, 0.659),
)
# Results are of the released weights, with OpenAI's preprocessing (bicubic) and 80 templates, as
# open_clip measured them (docs/openclip_results.csv), 400m-ViT-L-14's by scaling-laws-openclip.
RECIPES = {
    "400m-ViT-B-32": dataclasses.replace(
        B32,
        model="ViT-B-32-quickgelu",
        examples=13_034_626_688,
        batch_size=32_768,
        learning_rate=5e-4,
        imagenet=0.6293,
        flickr30k=(0.617, 0.788),
        coco=(0.353, 0.526),
    ),
    "400m-ViT-B-16": B16_400M,
    "400m-ViT-B-16-plus-240": dataclasses.replace(
        B16_400M,
        model="ViT-B-16-plus-240",
        batch_size=35_840,
        imagenet=0.6919,
        flickr30k=None,
        coco=None,
    ),
    "400m-ViT-L-14": dataclasses.replace(
        B32,
        model="ViT-L-14",
        examples=13_216_000_000,
        batch_size=86_016,
        imagenet=0.7306,
        flickr30k=None,
        coco=None,
    ),
    "2b-ViT-B-32": B32,
    "2b-ViT-B-16": B16,
    # Its pixels have mean and deviation 0.5.
    "2b-ViT-L-14": dataclasses.replace(
        B16,
        model="ViT-L-14-laion2b",
        examples=32_000_000_000,
        batch_size=86_016,
        imagenet=0.7525,
        flickr30k=(0.755, 0.895),
        coco=(0.465, 0.634),
    ),
    "2b-ViT-H-14": H14,
    "2b-ViT-g-14": dataclasses.replace(
        H14,
        model="ViT-g-14",
        examples=12_208_147_020,
        batch_size=64_000,
        imagenet=0.7663,
        flickr30k=None,
        coco=None,
    ),
    # An average of three unmasked ends; the first of them, as here, has 0.7943 by itself.
    "2b-ViT-bigG-14": dataclasses.replace(
        H14,
        model="ViT-bigG-14",
        examples=34_000_000_000,
        batch_size=159_744,
        learning_rate=2e-3,
        warmup_steps=13_000,
        b2=0.95,
        clip_norm=1.0,
        fsdp=8,
        imagenet=0.8009,
        flickr30k=(0.796, 0.929),
        coco=(0.514, 0.674),
    ),
}
UNMASKED = 17  # one of so many parts of the run


def get_config(arg: str | None = None) -> ConfigDict:
    config = pair_config(arg, RECIPES, default="2b-ViT-B-32")
    if config.model.name == "ViT-bigG-14":
        examples = config.total_steps * config.batch_size
        last = max(config.batch_size, examples // UNMASKED)
        put_stages(config, {"examples": examples - last, "patch_dropout": 0.5}, {"examples": last})
    return config
