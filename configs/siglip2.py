"""SigLIP 2, its contrastive stage: the sigmoid loss on texts of many languages (arXiv:2502.14786).

    clipjax train --config configs/siglip2.py:source=SPEC,tokenizer=MODEL --workdir DIR
    clipjax plan --config configs/siglip2.py:recipe=so400m-16-256 --topology v5p:8x8x4

Not as published: there a decoder learns captions and boxes beside the pairs (LocCa,
arXiv:2403.19596) all along, and in the last fifth of the run the image tower learns from itself
(SILC, TIPS); no code of these was released, and the data, WebLI, is not public. So the targets are
of the whole recipe.
Arguments: recipe (b-16-256; a name of the table), source (a SPEC, see docs/data.md), tokenizer
(path of Gemma's SentencePiece model), batch_size, examples (seen in training, in all), fsdp
(devices that share one copy of the state), smoke (a flag: small, on generated pictures; it needs
the tokenizer, too).
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from clipjax.recipes import choose, put_target, sigmoid_config


class Siglip2(NamedTuple):
    """Devices that share a copy of the state; top-1; recall at 1 of COCO."""

    fsdp: int
    imagenet: float
    coco: tuple[float, float]


# Results are of big_vision's README_siglip2.md; text to image and image to text.
RECIPES = {
    "b-32-256": Siglip2(1, 0.740, (0.472, 0.637)),
    "b-16-256": Siglip2(1, 0.791, (0.532, 0.697)),
    "l-16-256": Siglip2(1, 0.825, (0.547, 0.715)),
    "so400m-16-256": Siglip2(4, 0.834, (0.554, 0.715)),
    "g-opt-16-256": Siglip2(8, 0.845, (0.557, 0.725)),
}


def get_config(arg: str | None = None) -> ConfigDict:
    arg, recipe = choose(
        arg, RECIPES, default="b-16-256", source="", tokenizer="", batch_size=32_768,
        examples=40_000_000_000, fsdp=1, smoke=False,
    )  # fmt: skip
    config = sigmoid_config(arg, f"siglip2-{arg.recipe}")
    put_target(config, recipe.imagenet, coco=recipe.coco)
    return config
