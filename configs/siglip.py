"""SigLIP: the sigmoid loss (arXiv:2303.15343).

    clipjax train --config configs/siglip.py:source=SPEC,tokenizer=MODEL --workdir DIR
    clipjax plan --config configs/siglip.py:recipe=so400m-14-224 --topology v5p:8x8x4

The data of the paper, WebLI, is not public. so400m-14-384 is what was released as that; not known
is how long it had smaller images before, and here it has none.
Arguments: recipe (b-16-224; a name of the table), source (a SPEC, see docs/data.md), tokenizer
(path of a SentencePiece model with 32,000 pieces), batch_size, examples (seen in training, in all),
fsdp (devices that share one copy of the state), smoke (a flag: small, on generated pictures; it
needs the tokenizer, too).
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from clipjax.recipes import choose, put_target, sigmoid_config


class Siglip(NamedTuple):
    """Devices that share a copy of the state; top-1, and recall at 1 of Flickr30k and COCO."""

    fsdp: int
    imagenet: float
    flickr30k: tuple[float, float] | None = None
    coco: tuple[float, float] | None = None


# Results are of the released weights, zero-shot, squashed, mean and deviation 0.5, as open_clip
# measured them (docs/openclip_results.csv); text to image and image to text.
RECIPES = {
    "b-16-224": Siglip(1, 0.7604, (0.747, 0.891), (0.478, 0.657)),
    "b-16-256": Siglip(1, 0.7653),
    "l-16-256": Siglip(1, 0.8045, (0.790, 0.918), (0.523, 0.708)),
    "so400m-14-224": Siglip(4, 0.8203, (0.753, 0.910), (0.518, 0.697)),
    "so400m-14-384": Siglip(4, 0.8308, (0.830, 0.943), (0.542, 0.724)),
}


def get_config(arg: str | None = None) -> ConfigDict:
    arg, recipe = choose(
        arg, RECIPES, default="b-16-224", source="", tokenizer="", batch_size=32_768,
        examples=40_000_000_000, fsdp=1, smoke=False,
    )  # fmt: skip
    config = sigmoid_config(arg, f"siglip-{arg.recipe}")
    put_target(config, recipe.imagenet, recipe.flickr30k, recipe.coco)
    return config
