"""What the published recipes of configs/ share: a row of a table, stages, a small copy.

A file of configs/ is one publication; its table `RECIPES` has what its recipes differ in.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from clipjax.config import default_config, iterate_leaves, parse_arg
from clipjax.ranges import hint

Row = TypeVar("Row")

CROP = {"name": "random_resized_crop", "scale": (0.9, 1.0)}
"""OpenAI's only augmentation, a random square of the resized image, as OpenCLIP writes it."""

CLIPA_IMAGES = (
    {"name": "random_resized_crop", "scale": (0.4, 1.0), "interpolation": "bilinear"},
    # Near SimCLR's jitter of strength 0.4 as CLIPA and OpenVision have it.
    {
        "name": "color_jitter",
        "probability": 0.8,
        "hue": 29.0,
        "saturation": (0.68, 1.32),
        "gain": 0.32,
        "channel_gain": 0.0,
        "offset": 0.0,
        "contrast": 0.32,
    },
    {"name": "random_grayscale", "probability": 0.2},
)
"""Crops down to 40 % of the area, colours and grayscale."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """One softmax recipe with AdamW and a cosine to 0.

    Attributes:
        model: a row of `clipjax models`.
        examples: seen in training, in all.
        batch_size: pairs a step.
        learning_rate: at the end of the warm-up.
        warmup_steps: of the schedule.
        b2, eps, weight_decay, decay_mask, clip_norm: of the optimizer.
        fsdp: devices that share one copy of the state, on the pod that it was planned for.
        imagenet: top-1 to reach, zero-shot.
        flickr30k, coco: recall at 1 to reach, text to image and image to text.
    """

    model: str
    examples: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    b2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    decay_mask: str = "openclip_legacy"
    clip_norm: float | None = None
    fsdp: int = 1
    imagenet: float | None = None
    flickr30k: tuple[float, float] | None = None
    coco: tuple[float, float] | None = None


def choose(
    arg: str | None, recipes: Mapping[str, Row], *, default: str, **defaults: Any
) -> tuple[ConfigDict, Row]:
    """Parses a config's arguments, of which `recipe` names a row of its table.

    Args:
        arg: what stands behind the colon, see `clipjax.config.parse_arg`.
        recipes: the table, by name.
        default: the row without `recipe=`.
        **defaults: the other arguments; those of which the row has a field of the same name take
            its value from there.

    Returns:
        The arguments, and the row.

    Raises:
        ValueError: no such row, or what `parse_arg` refuses.
    """
    named = [part for part in (arg or "").split(",") if part.partition("=")[0].strip() == "recipe"]
    name = named[-1].partition("=")[2] if named else default
    if name not in recipes:
        raise ValueError(
            f"config argument recipe={name}: this config has {', '.join(recipes)}"
            f"{hint(name, recipes)}"
        )
    row = recipes[name]
    own = {key: getattr(row, key, value) for key, value in defaults.items()}
    given = parse_arg(arg, recipe=name, **own)
    if given.get("batch_size", 1) < 1:  # examples are divided by it
        raise ValueError(
            f"config argument batch_size={given.batch_size}: expected a whole number from 1"
        )
    return given, row


def pair_config(arg: str | None, recipes: Mapping[str, Recipe], *, default: str) -> ConfigDict:
    """The config of a row: arguments recipe, source, batch_size, examples, fsdp, eval and smoke.

    Raises:
        ValueError: as `choose`.
    """
    given, recipe = choose(
        arg, recipes, default=default, source="", batch_size=0, examples=0, fsdp=1, eval="",
        smoke=False,
    )  # fmt: skip
    config = _config_of(given, recipe.model)
    config.data.transforms = (CROP,)
    config.optimizer.learning_rate = recipe.learning_rate
    config.optimizer.b2 = recipe.b2
    config.optimizer.eps = recipe.eps
    config.optimizer.weight_decay = recipe.weight_decay
    config.optimizer.decay_mask = recipe.decay_mask
    config.optimizer.clip_norm = recipe.clip_norm
    config.schedule.warmup_steps = recipe.warmup_steps
    config.checkpoint.keep_every = 50_000
    put_zero_shot(config, given.eval)
    put_target(config, recipe.imagenet, recipe.flickr30k, recipe.coco)
    if given.smoke:
        make_small(config)
    return config


def sigmoid_config(given: ConfigDict, model: str) -> ConfigDict:
    """The config of SigLIP's family, as arXiv:2303.15343 and arXiv:2502.14786 (SigLIP 2) have it.

    Both give batch, rate and decay; the first b2, the second warm-up and clipping: not known is
    what the other had, and eps and the decay's mask of either. Those are big_vision's defaults.

    Args:
        given: source, tokenizer, batch_size, examples, fsdp and smoke, of `choose`.
        model: a row of `clipjax models`.
    """
    config = _config_of(given, model)
    if given.tokenizer:
        config.model.tokenizer.model = given.tokenizer
    config.loss.name = "siglip"
    config.data.transforms = ({"name": "resize_and_crop", "resize": "squash"},)
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.95  # the paper's remedy for spikes at large batches
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 1e-4 / 1e-3  # there the rate does not multiply the decay
    config.optimizer.decay_mask = "kernels"
    config.optimizer.clip_norm = 1.0
    config.schedule.warmup_steps = 20_000
    config.checkpoint.keep_every = 100_000
    if given.smoke:
        make_small(config)
    return config


def _config_of(given: ConfigDict, model: str) -> ConfigDict:
    """What the arguments of either family say, beside the defaults."""
    config = default_config()
    config.model.name = model
    config.data.source = given.source
    config.batch_size = given.batch_size
    config.total_steps = given.examples // given.batch_size
    put_fsdp(config, given.fsdp)
    config.checkpoint.every_steps = 2000
    return config


def put_fsdp(config: ConfigDict, devices: int) -> None:
    """Lets so many devices share one copy of the state; 1 leaves the config's own sharding."""
    if devices > 1:
        config.mesh.fsdp = devices
        config.sharding = "fsdp"


def put_zero_shot(config: ConfigDict, source: str) -> None:
    """Asks a dataset with labels during the run, by OpenAI's 80 templates; "" asks none."""
    if source:
        config.evals.zero_shot = {
            "name": "zero_shot",
            "source": source,
            "templates": "openai_80",
            "every_steps": 10_000,
        }


def put_target(
    config: ConfigDict,
    imagenet: float | None,
    flickr30k: tuple[float, float] | None = None,
    coco: tuple[float, float] | None = None,
) -> None:
    """Writes what was published, as far as it is known: `--verify` of `clipjax eval` compares."""
    target = {
        "imagenet_top1": imagenet,
        "flickr30k_recall_at_1": flickr30k,
        "coco_recall_at_1": coco,
    }
    config.target.update({name: value for name, value in target.items() if value is not None})


def put_stages(config: ConfigDict, *stages: Mapping[str, Any]) -> None:
    """Writes the stages of a run into its config, the last one as the config's own values.

    Args:
        config: of `default_config`.
        *stages: in their order, each as an element of config.stages, with the number of its own
            `examples` in place of `until_step`; the last one ends the run.
    """
    until = itertools.accumulate(stage["examples"] for stage in stages)
    *earlier, own = (
        {"until_step": f"{end} examples", **{k: v for k, v in stage.items() if k != "examples"}}
        for stage, end in zip(stages, until, strict=True)
    )
    places = {
        "until_step": "total_steps",
        "image_size": "model.image_size",
        "context_length": "model.text.context_length",
        "patch_dropout": "model.image.patch_dropout",
    }
    config.stages = tuple(earlier)
    config.update_from_flattened_dict(
        {places.get(name, name): value for name, value in iterate_leaves(own)}
    )


def make_small(config: ConfigDict) -> None:
    """Makes a run of one stage small: four steps on generated pictures, on any machine."""
    make_towers_small(config)
    config.data.source = "synthetic:64"
    config.batch_size, config.total_steps, config.schedule.warmup_steps = 32, 4, 2
    config.mesh.fsdp = 1


def make_towers_small(config: ConfigDict) -> None:
    """Makes both towers of a block each, narrow: for a look at how a recipe runs."""
    small: dict[str, Any] = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64}
    config.model.text.update(small)
    if config.model.name.startswith("siglip"):  # its image tower ends without a projection
        config.model.embed_dim = small["width"]
    if config.model.name.startswith("RN"):
        small = {"layers": (1, 1, 1, 1), "width": 8, "num_heads": 2}
    config.model.image.update(small)
