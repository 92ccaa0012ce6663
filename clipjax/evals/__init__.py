"""Evaluations of a model by what it can do without training: one table, one contract.

An eval is built from a source and the model's functions and has `run(params) -> dict[str, float]`;
what its numbers depend on it may say by `about() -> dict`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from clipjax.building import build
from clipjax.evals.bias import Bias
from clipjax.evals.caption_score import CaptionScore
from clipjax.evals.compositional import Compositional
from clipjax.evals.knn import KNN
from clipjax.evals.linear_probe import FewShot, LinearProbe
from clipjax.evals.naming import name_evals
from clipjax.evals.retrieval import Retrieval
from clipjax.evals.running import ScheduledEval
from clipjax.evals.winogavil import Winogavil
from clipjax.evals.zero_shot import ZeroShot

EVALS = {
    "zero_shot": ZeroShot,
    "retrieval": Retrieval,
    "compositional": Compositional,
    "knn": KNN,
    "linear_probe": LinearProbe,
    "few_shot": FewShot,
    "caption_score": CaptionScore,
    "bias": Bias,
    "winogavil": Winogavil,
}


def build_evals(
    specs: Mapping[str, Mapping[str, Any]],
    sources: Mapping[str, Any],
    *,
    path: str,
    plugins: Sequence[str] = (),
    **runtime: Any,
) -> tuple[ScheduledEval, ...]:
    """Builds evaluations on opened sources.

    Args:
        specs: key -> `name` (of EVALS; the key if there is none), `source`, perhaps `every_steps`,
            and the fields of that evaluation.
        sources: key -> the source of that spec, opened.
        path: where the specs stand, for messages.
        plugins: see `build`.
        **runtime: what every evaluation is given: encode functions, preprocessing, tokenizer, mesh.

    Raises:
        ValueError: an unknown evaluation or field, a value that does not fit, or the same twice.
    """
    specs = {key: {"name": key, **spec} for key, spec in specs.items()}
    names = name_evals([(spec["name"], spec["source"]) for spec in specs.values()])
    scheduled = []
    for (key, spec), name in zip(specs.items(), names, strict=True):
        made = build(
            {k: v for k, v in spec.items() if k not in ("source", "every_steps")},
            EVALS,
            path=f"{path}.{key}" if path else key,
            plugins=plugins,
            source=sources[key],
            name=f"{name.kind} on {name.spec}",
            **runtime,
        )
        every_steps = spec.get("every_steps", 0)
        scheduled.append(ScheduledEval(key=key, name=name, every_steps=every_steps, eval=made))
    return tuple(scheduled)
