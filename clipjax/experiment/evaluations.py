"""The evaluations of a run: config.evals."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from clipjax import evals
from clipjax.building import ANY_MODULE
from clipjax.config import to_plain
from clipjax.data.images.naflex import make_preprocess
from clipjax.encoding.prompts import stored_templates
from clipjax.evals.running import ScheduledEval
from clipjax.experiment.program import Program
from clipjax.tokenizers import Tokenizer


def build_evals(
    config: ConfigDict, program: Program, tokenizer: Tokenizer, sources: Mapping[str, Any]
) -> tuple[ScheduledEval, ...]:
    """Builds the evaluations of a config on opened sources."""
    encode = evals.make_encode_fns(program.model, program.spec["preprocess"], dtype=config.dtype)
    return evals.build_evals(
        {name: to_plain(config.evals[name]) for name in sources},
        sources,
        path="config.evals",
        plugins=ANY_MODULE,
        encode_image_fn=encode.image,
        encode_text_fn=encode.text,
        logit_scale_fn=encode.logit_scale,
        logit_bias_fn=encode.logit_bias,
        preprocess=make_preprocess(program.spec),
        tokenizer=tokenizer,
        mesh=program.mesh,
    )


def stored_evals(config_evals: Mapping[str, Any]) -> dict[str, Any]:
    """Writes config.evals as a checkpoint holds it: nothing in it is outside the checkpoint.

    Raises:
        ValueError: templates that are neither a known name nor in a file.
    """
    return {
        name: {**fields, "templates": stored_templates(fields["templates"])}
        if fields.get("templates") is not None
        else fields
        for name, fields in config_evals.items()
    }
