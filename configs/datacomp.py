"""The four scales of DataComp, each the training that a filter is judged by (arXiv:2304.14108).

    clipjax train --config 'configs/datacomp.py:source=tar:/data/*.tar' --workdir DIR
    clipjax plan --config configs/datacomp.py:recipe=xlarge --topology v5p:8x8x4

The settings are fixed (mlfoundations/datacomp, scale_configs.py): what differs is the data. The
results are those of the best filter of the paper, DataComp-1B at xlarge. A filter is written as
`?filter=FILE` of the SPEC, see docs/data.md.
Arguments: recipe (small, medium, large, xlarge), source (a SPEC, see docs/data.md), batch_size,
examples (seen in training, in all), fsdp (devices that share one copy of the state), eval (a SPEC
with labels, for zero-shot accuracy during the run), smoke (a flag: small, on generated pictures).
"""

import dataclasses

from ml_collections import ConfigDict

from clipjax.recipes import Recipe, pair_config

SMALL = Recipe(
    model="ViT-B-32",
    examples=12_800_000,
    batch_size=4096,
    learning_rate=5e-4,
    warmup_steps=500,
    imagenet=0.039,
)
# Results are of the released weights, as open_clip measured them (docs/openclip_results.csv).
RECIPES = {
    "small": SMALL,
    "medium": dataclasses.replace(SMALL, examples=128_000_000, imagenet=0.297),
    "large": dataclasses.replace(
        SMALL, model="ViT-B-16", examples=1_280_000_000, batch_size=8192, imagenet=0.631
    ),
    "xlarge": dataclasses.replace(
        SMALL,
        model="ViT-L-14",
        examples=12_800_000_000,
        batch_size=90_112,
        learning_rate=1e-3,
        warmup_steps=10_000,
        b2=0.95,
        imagenet=0.792,
        flickr30k=(0.734, 0.890),
        coco=(0.457, 0.633),
    ),
}


def get_config(arg: str | None = None) -> ConfigDict:
    return pair_config(arg, RECIPES, default="small")
