"""The evaluations of a run: config.evals."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from clipjax.building import ANY_MODULE, build
from clipjax.config import to_plain
from clipjax.data.naflex import make_preprocess
from clipjax.data.source import spec_name
from clipjax.evals import EVALS, make_encode_fns
from clipjax.evals.running import ScheduledEval
from clipjax.experiment.program import Program
from clipjax.tokenizers import Tokenizer


def build_evals(
    config: ConfigDict, program: Program, tokenizer: Tokenizer, sources: Mapping[str, Any]
) -> tuple[ScheduledEval, ...]:
    """Builds the evaluations of a config on opened sources."""
    spec = program.spec
    encode = make_encode_fns(program.model, spec["preprocess"], dtype=config.dtype)
    preprocess = make_preprocess(spec)
    scheduled = []
    for name, source in sources.items():
        eval_spec = to_plain(config.evals[name])
        every_steps = eval_spec.pop("every_steps", 0)
        where = eval_spec.pop("source")
        where = where if isinstance(where, str) else where["spec"]
        eval_spec.setdefault("name", name)
        prefix = f"{eval_spec['name']}/{spec_name(where)}"
        scheduled.append(
            ScheduledEval(
                name=name,
                metric_prefix=prefix,
                every_steps=every_steps,
                eval=build(
                    eval_spec,
                    EVALS,
                    path=f"config.evals.{name}",
                    plugins=ANY_MODULE,
                    source=source,
                    encode_image_fn=encode.image,
                    encode_text_fn=encode.text,
                    logit_scale_fn=encode.logit_scale,
                    preprocess=preprocess,
                    tokenizer=tokenizer,
                    mesh=program.mesh,
                ),
            )
        )
    prefixes = [s.metric_prefix for s in scheduled]
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise ValueError(f"two of config.evals write {prefix!r}; keep one of them")
    return tuple(scheduled)
