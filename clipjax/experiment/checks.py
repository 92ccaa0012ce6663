"""What can be known of a config before data is opened or a device is touched."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from clipjax import partitioning
from clipjax.building import ANY_MODULE, check_spec
from clipjax.config import to_plain
from clipjax.config_fields import EVAL_FIELDS
from clipjax.data.images.naflex import make_preprocess
from clipjax.data.transforms import make_transforms
from clipjax.evals import EVALS, load_templates
from clipjax.experiment.stages import StageSpec
from clipjax.losses import PAIR_RULES
from clipjax.ranges import named
from clipjax.tokenizers import TOKENIZERS

# What an evaluation is given besides its fields in the config.
EVAL_RUNTIME = (
    "name",
    "source",
    "encode_image_fn",
    "encode_text_fn",
    "logit_scale_fn",
    "logit_bias_fn",
    "run_prompts",
    "preprocess",
    "tokenizer",
    "mesh",
)


def check_parts(
    config: ConfigDict, stages: Sequence[StageSpec], *, plugins: Sequence[str] = ()
) -> None:
    """Checks the parts that a config names, up to what their data and the devices say.

    Args:
        config: validated.
        stages: of `stage_specs`; the last one is the model's own size.
        plugins: modules that the model's names may import.

    Raises:
        ValueError: names the config path, what was found and what is allowed.
    """
    spec = stages[-1].spec
    check_spec(
        spec["tokenizer"],
        TOKENIZERS,
        path="config.model.tokenizer",
        plugins=plugins,
        runtime=("context_length",),
    )
    try:
        make_preprocess(spec)
    except ValueError as error:
        raise ValueError(f"config.model.{error}") from error
    partitioning.rules_of(config.sharding, to_plain(config.logical_axes))
    for stage in stages:
        make_transforms(
            to_plain(config.data.transforms),
            image_size=stage.spec["image_size"],
            path="config.data.transforms",
            plugins=ANY_MODULE,
        )
    for name in config.evals:
        eval_spec = {"name": name, **to_plain(config.evals[name])}
        eval_spec = {key: v for key, v in eval_spec.items() if key not in EVAL_FIELDS}
        path = f"config.evals.{name}"
        check_spec(
            eval_spec,
            EVALS,
            path=path,
            plugins=ANY_MODULE,
            runtime=EVAL_RUNTIME,
            beside=("name", *EVAL_FIELDS),
        )
        if eval_spec.get("templates") is not None:
            with named(f"{path}.templates"):
                load_templates(eval_spec["templates"])
    check_bias(config, spec)


def check_bias(config: ConfigDict, spec: Mapping[str, Any]) -> None:
    """Refuses a loss that has a bias on a model that has none: it would stay 0 without a word.

    Raises:
        ValueError: names the fields to set.
    """
    rule = PAIR_RULES.get(config.loss.name)
    if rule is not None and rule.uses_bias and spec["logit_bias"] is None:
        raise ValueError(
            f"config.loss.name = {config.loss.name!r} has a bias and config.model.logit_bias is "
            "None: set config.model.logit_bias = -10.0 and config.model.logit_scale = "
            "{'init': 10.0, 'max': None}, the start of arXiv:2303.15343, or config.loss.name = "
            "'clip'"
        )
