"""Small references, on CC3M and CC12M: FastCLIP's setting, the plain loss (arXiv:2407.01445).

    clipjax train --config 'configs/conceptual_captions.py:source=tar:/cc3m/*.tar' --workdir DIR
    clipjax plan --config configs/conceptual_captions.py --topology v5e:2x4

Settings are those of Optimization-AI/fast_clip's scripts, where OpenCLIP's loss is the baseline:
the loss of FastCLIP itself, over the whole data set, is not here. That repository has its results
in figures alone, so the targets are of others: of cc3m-RN50 what is reported to open_clip for
batches of 1,024 and 30 epochs (mlfoundations/open_clip, issue 448), of cc12m-RN50 open_clip's
released weights (docs/PRETRAINED.md), whose settings are not known: here they are those of
cc12m-ViT-B-32.
Arguments: recipe (cc3m-RN50; a name of the table), source (a SPEC, see docs/data.md), batch_size,
examples (seen in training, in all), fsdp (devices that share one copy of the state), eval (a SPEC
with labels, for zero-shot accuracy during the run), smoke (a flag: small, on generated pictures).
"""

import dataclasses

from ml_collections import ConfigDict

from clipjax.recipes import Recipe, pair_config

CC3M = Recipe(
    model="RN50",
    examples=37 * 2_723_840,
    batch_size=1024,
    learning_rate=1e-3,
    warmup_steps=10_000,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.1,
    imagenet=0.19,
)
CC12M = dataclasses.replace(
    CC3M, examples=33 * 9_187_328, batch_size=2048, learning_rate=4e-4, imagenet=0.3645
)
RECIPES = {
    "cc3m-RN50": CC3M,
    "cc12m-RN50": CC12M,
    "cc12m-ViT-B-32": dataclasses.replace(
        CC12M, model="ViT-B-32", b2=0.98, eps=1e-6, imagenet=None
    ),
}


def get_config(arg: str | None = None) -> ConfigDict:
    config = pair_config(arg, RECIPES, default="cc3m-RN50")
    if config.model.name == "RN50":
        config.model.text.activation = "gelu"  # OpenCLIP's RN50; OpenAI's has the quick one
    return config
