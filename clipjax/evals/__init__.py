"""Evaluations of a model by what it can do without training: one table, one contract.

An eval is built from a source and the model's functions and has `run(params) -> dict[str, float]`;
what its numbers depend on it may say by `about() -> dict`.
"""

from clipjax.encoding.batches import EncodeFns, make_encode_fns
from clipjax.encoding.templates import TEMPLATES, load_templates
from clipjax.evals.retrieval import Retrieval
from clipjax.evals.table import EVALS, build_evals
from clipjax.evals.zero_shot import Prediction, ZeroShot

__all__ = [
    "EVALS",
    "TEMPLATES",
    "EncodeFns",
    "Prediction",
    "Retrieval",
    "ZeroShot",
    "build_evals",
    "load_templates",
    "make_encode_fns",
]
