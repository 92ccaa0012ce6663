"""LAION's ladder of CLIPs on DataComp-1.4B, for comparing models and data (arXiv:2506.04598).

    clipjax train --config 'configs/laion_ladder.py:recipe=ViT-B-32-128M,source=SPEC' --workdir DIR
    clipjax plan --config configs/laion_ladder.py:recipe=ViT-L-14-1280M --topology v5e:8x8

Each result is the best of a sweep over batch size, learning rate and warm-up of which we have not
read the choice. So not known are batch, rate and warm-up, which are those of DataComp's scale of as
many examples here (configs/datacomp.py), and b2, which is that of its largest; `clipjax sweep`
tries others:

    clipjax sweep --config 'configs/laion_ladder.py:recipe=ViT-S-32-12.8M,source=SPEC' \
        --workdir DIR --grid optimizer.learning_rate=5e-4,1e-3,2e-3

Arguments: recipe (ViT-B-32-12.8M; a name of the table), source (a SPEC, see docs/data.md),
batch_size, examples (seen in training, in all), fsdp (devices that share one copy of the state),
eval (a SPEC with labels, for zero-shot accuracy during the run), smoke (a flag: small, on generated
pictures).
"""

from ml_collections import ConfigDict

from clipjax.recipes import Recipe, pair_config

# Examples, batch size.
SIZES = {"12.8M": (12_800_000, 4096), "128M": (128_000_000, 4096), "1280M": (1_280_000_000, 8192)}
# ImageNet-1k top-1 at these, LAION-AI/scaling-laws-for-comparison, overview.ipynb, cosine.
RESULTS = {
    "ViT-S-32": (0.102, 0.354, 0.531),
    "ViT-B-32": (0.112, 0.404, 0.608),
    "ViT-L-14": (0.156, 0.518, 0.732),
    "ViT-H-14": (0.154, 0.534, 0.752),
}
RECIPES = {
    f"{model}-{name}": Recipe(
        model=model,
        examples=examples,
        batch_size=batch_size,
        learning_rate=5e-4,
        warmup_steps=500,
        b2=0.95,
        imagenet=result,
    )
    for model, results in RESULTS.items()
    for (name, (examples, batch_size)), result in zip(SIZES.items(), results, strict=True)
}


def get_config(arg: str | None = None) -> ConfigDict:
    return pair_config(arg, RECIPES, default="ViT-B-32-12.8M")
