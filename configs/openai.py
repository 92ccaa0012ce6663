"""CLIP as OpenAI trained it on 400 million pairs (arXiv:2103.00020, appendix F).

    clipjax train --config 'configs/openai.py:source=tar:/data/{0000..4145}.tar' --workdir DIR
    clipjax train --config 'configs/openai.py:recipe=RN50,source=SPEC,eval=SPEC' --workdir DIR
    clipjax plan --config configs/openai.py:recipe=ViT-L-14 --topology v5e:16x16

ViT-L-14-336 is ViT-L-14 and another epoch at 336 pixels, in one run; not known are the batch and
the warm-up of that epoch, which are those before it and none here.
Arguments: recipe (ViT-B-16; a name of the table), source (a SPEC, see docs/data.md), batch_size,
examples (seen in training, in all), fsdp (devices that share one copy of the state), eval (a SPEC
with labels, for zero-shot accuracy during the run), smoke (a flag: small, on generated pictures).
"""

import dataclasses

from ml_collections import ConfigDict

from clipjax.recipes import Recipe, pair_config, put_stages

VIT = Recipe(
    model="ViT-B-32-quickgelu",
    examples=12_800_000_000,
    batch_size=32_768,
    learning_rate=5e-4,
    warmup_steps=2000,
    decay_mask="openai",
    imagenet=0.6332,
    flickr30k=(0.588, 0.789),
    coco=(0.304, 0.501),
)
RN = dataclasses.replace(VIT, b2=0.999, eps=1e-8)
# Results are of the released weights, with OpenAI's preprocessing (bicubic) and 80 templates, as
# open_clip measured them (docs/openclip_results.csv).
RECIPES = {
    "RN50": dataclasses.replace(
        RN, model="RN50", imagenet=0.5982, flickr30k=(0.574, 0.800), coco=(0.285, 0.488)
    ),
    "RN101": dataclasses.replace(
        RN, model="RN101", imagenet=0.6228, flickr30k=(0.580, 0.790), coco=(0.307, 0.498)
    ),
    "RN50x4": dataclasses.replace(
        RN, model="RN50x4", imagenet=0.6627, flickr30k=(0.626, 0.821), coco=(0.334, 0.530)
    ),
    "RN50x16": dataclasses.replace(
        RN,
        model="RN50x16",
        learning_rate=4e-4,
        imagenet=0.7072,
        flickr30k=(0.653, 0.857),
        coco=(0.354, 0.554),
    ),
    "RN50x64": dataclasses.replace(
        RN,
        model="RN50x64",
        learning_rate=3.6e-4,
        imagenet=0.7391,
        flickr30k=(0.690, 0.869),
        coco=(0.352, 0.584),
    ),
    "ViT-B-32": VIT,
    "ViT-B-16": dataclasses.replace(
        VIT,
        model="ViT-B-16-quickgelu",
        imagenet=0.6834,
        flickr30k=(0.622, 0.822),
        coco=(0.331, 0.524),
    ),
    "ViT-L-14": dataclasses.replace(
        VIT,
        model="ViT-L-14-quickgelu",
        learning_rate=4e-4,
        imagenet=0.7554,
        flickr30k=(0.650, 0.852),
        coco=(0.365, 0.563),
    ),
    "ViT-L-14-336": dataclasses.replace(
        VIT,
        model="ViT-L-14-336-quickgelu",
        examples=13_200_000_000,
        learning_rate=4e-4,
        imagenet=0.7656,
        flickr30k=(0.669, 0.877),
        coco=(0.371, 0.579),
    ),
}
LAST_EPOCH = 33  # one of so many epochs


def get_config(arg: str | None = None) -> ConfigDict:
    config = pair_config(arg, RECIPES, default="ViT-B-16")
    if config.model.name == "ViT-L-14-336-quickgelu":
        examples = config.total_steps * config.batch_size
        last = max(config.batch_size, examples // LAST_EPOCH)
        put_stages(
            config,
            {
                "examples": examples - last,
                "image_size": 224,
                "schedule": {"warmup_steps": config.schedule.warmup_steps},
            },
            {
                "examples": last,
                "optimizer": {"learning_rate": 2e-5},
                "schedule": {"warmup_steps": 0},
            },
        )
    return config
