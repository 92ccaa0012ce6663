"""`clipjax soup A B ... --to DIR [--method uniform|greedy|between] [--zero_shot SPEC]`.

Mixes the weights of checkpoints of one model and writes a checkpoint: their mean; those that help
by an evaluation, from the best one on; or the best point of the line between two (WiSE-FT), whose
curve is shown. What chooses is to be data that is not reported on.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from clipjax import compile_cache
from clipjax.cli import hints
from clipjax.cli.main import given
from clipjax.cli.output import show
from clipjax.cli.specs import split_specs

_TO = flags.DEFINE_string("to", None, "Folder to write; must not exist.")
_METHOD = flags.DEFINE_enum(
    "method",
    "uniform",
    ["uniform", "greedy", "between"],
    "The mean of all; greedy, by --metric; or between two, (1 - alpha) A + alpha B.",
)
_ALPHA = flags.DEFINE_float("alpha", None, "Of --method between; else the best of --alphas.")
_ALPHAS = flags.DEFINE_list(
    "alphas", [f"{number / 10:g}" for number in range(11)], "The points of the line to evaluate."
)
_ZERO_SHOT = flags.DEFINE_multi_string("zero_shot", [], "Datasets with labels: kind:where[:split].")
_RETRIEVAL = flags.DEFINE_multi_string("retrieval", [], "Datasets of images and texts.")
_METRIC = flags.DEFINE_string(
    "metric", None, "What is chosen by, KIND/DATASET/METRIC; by default the first one's top1."
)
_KEEP = flags.DEFINE_multi_string(
    "keep",
    [],
    "METRIC=SHARE: of --method between, chosen is the best of the points that keep this share of "
    "the first checkpoint's; may be given several times.",
)
_TEMPLATES = flags.DEFINE_string("templates", None, "Prompt templates, as for `eval`.")
_CLASS_NAMES = flags.DEFINE_string("class_names", None, "Class names: a name or a file.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images over all devices.", lower_bound=1)
_PAGE = flags.DEFINE_string("page", None, "Also write the curve and the table to this file, HTML.")
_JSON = flags.DEFINE_string("json", None, "Also write what was found to this file.")
flags.adopt_module_key_flags(hints)


def main(argv: list[str]) -> int:
    """Mixes, and prints what was tried and what was written."""
    target = given(_TO.value, "--to DIR")
    from clipjax.data.storage.cache import cache_dir
    from clipjax.data.storage.files import check_writable, write
    from clipjax.data.storage.paths import data_path
    from clipjax.interop import Hints
    from clipjax.report.mixtures import mixture_page
    from clipjax.soup import make_soup

    try:
        alphas = [float(text) for text in _ALPHAS.value]
    except ValueError as error:
        raise ValueError(f"--alphas {','.join(_ALPHAS.value)}: {error}") from error
    compile_cache.use(cache_dir() / "compiled")
    for file in filter(None, (_JSON.value, _PAGE.value)):
        check_writable(data_path(file))
    naming = {"templates": _TEMPLATES.value, "class_names": _CLASS_NAMES.value}
    asked = [("zero_shot", spec) for spec in split_specs(_ZERO_SHOT.value)]
    asked += [("retrieval", spec) for spec in split_specs(_RETRIEVAL.value)]
    done = make_soup(
        argv[1:],
        target,
        method=_METHOD.value,
        evals=asked,
        fields={name: value for name, value in naming.items() if value},
        metric=_METRIC.value,
        alpha=_ALPHA.value,
        alphas=alphas,
        keep=dict(map(_keep_pair, _KEEP.value)),
        hints=Hints(**hints.hints()),
        batch_size=_BATCH_SIZE.value,
    )
    if _JSON.value:
        told = {"shares": done.shares, "metric": done.metric, "tried": done.tried}
        told |= {"metrics": done.metrics, "keep": done.keep, "target": str(done.target)}
        text = json.dumps(told, indent=2, sort_keys=True) + "\n"
        write(data_path(_JSON.value), text.encode("utf-8"))
    if _PAGE.value:
        title = f"Mixture {done.target.name}"
        text = mixture_page(title, done.tried, done.shares, done.metric, done.keep)
        write(data_path(_PAGE.value), text.encode("utf-8"))
        show(f"page: {_PAGE.value}")
    _show_tried(done.tried, done.metric)
    for path, share in done.shares.items():
        show(f"share {share:.4g} of {path}")
    for name, value in done.metrics.items():
        show(f"{name}  {value:.4f}")
    show(f"written: {done.target}")
    return 0


def _keep_pair(text: str) -> tuple[str, float]:
    name, equals, share = text.rpartition("=")
    try:
        if equals:
            return name, float(share)
    except ValueError:
        pass
    raise ValueError(f"--keep {text!r}: expected METRIC=SHARE, zero_shot/synthetic_64/top1=0.8")


def _show_tried(tried: Sequence[Mapping[str, Any]], metric: str | None) -> None:
    """Shows every mixture that was evaluated, by the main numbers of each dataset."""
    from clipjax.report.mixtures import main_metrics

    names = main_metrics(tried, *([metric] if metric else []))
    for entry in tried:
        values = {name: entry["metrics"][name] for name in names}
        what = " + ".join(f"{share:.4g} x {path}" for path, share in entry["shares"].items())
        what = f"alpha {entry['alpha']:.4g}" if "alpha" in entry else what
        show(f"{what}: {', '.join(f'{name} {value:.4f}' for name, value in values.items())}")
