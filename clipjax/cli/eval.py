"""`clipjax eval --checkpoint DIR --zero_shot SPEC[,SPEC] --retrieval SPEC[,SPEC] [--json FILE]`.

Any other kind of evaluation: `--eval KIND=SPEC[,SPEC]`, its fields `--eval_field KIND.NAME=VALUE`.
A flag that takes SPECs may be given again instead: a comma inside braces, brackets or an option
belongs to its SPEC.
"""

import json
import os
from typing import Any

from absl import flags

from clipjax import compile_cache, distributed, process_log
from clipjax.cli import hints
from clipjax.cli.main import given, no_positional, print_results
from clipjax.cli.specs import split_specs
from clipjax.clusters import find_cluster

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "A workdir, one step's folder, or weights of another package, as `clipjax convert` reads them.",
)
_ZERO_SHOT = flags.DEFINE_multi_string("zero_shot", [], "Datasets with labels: kind:where[:split].")
_RETRIEVAL = flags.DEFINE_multi_string("retrieval", [], "Datasets of images and texts.")
_EVAL = flags.DEFINE_multi_string("eval", [], "Any evaluation, on datasets: KIND=SPEC[,SPEC].")
_FIELDS = flags.DEFINE_multi_string(
    "eval_field", [], "A field of the evaluations of a kind: KIND.NAME=VALUE, in JSON or as a text."
)
_TEMPLATES = flags.DEFINE_string(
    "templates",
    None,
    "Prompt templates: a name or a file; else the dataset's own, else the run's, else simple.",
)
_CLASS_NAMES = flags.DEFINE_string(
    "class_names", None, "Class names: a name or a file; by default the dataset's own."
)
_CLASSES = flags.DEFINE_enum(
    "classes",
    "all",
    ["all", "present", "listed"],
    "Which class names compete: all, or those that are present; and with `listed`, all, but only "
    "pictures count whose class is listed.",
)
_PREPROCESS = flags.DEFINE_enum(
    "preprocess", "clipjax", ["clipjax", "open_clip"], "Whose pixels; open_clip's to compare with."
)
_MAX_BAD = flags.DEFINE_integer(
    "max_bad",
    0,
    "Images of a dataset that may fail to decode; they are left out and counted.",
    lower_bound=0,
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 256, "Images, or texts, over all devices.", lower_bound=1
)
_JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "on", "off"], "Join the processes of a cluster."
)
flags.adopt_module_key_flags(hints)


def main(argv: list[str]) -> int:
    """Evaluates and prints a table."""
    no_positional(argv)
    checkpoint = given(
        _CHECKPOINT.value,
        "--checkpoint",
        ": a workdir, one step's folder, or a file or folder of weights",
    )
    zero_shot, retrieval = split_specs(_ZERO_SHOT.value), split_specs(_RETRIEVAL.value)
    others = [(kind, spec) for kind, text in _pairs(_EVAL) for spec in split_specs([text])]
    if not (zero_shot or retrieval or others):
        raise ValueError(
            "nothing to evaluate: give --zero_shot SPEC, --retrieval SPEC or --eval KIND=SPEC"
        )
    from clipjax import peers

    if _DISTRIBUTED.value != "off" and find_cluster(os.environ) is not None:
        process_log.start(None)  # dumps of several processes, of which one is lost
    peers.join(_DISTRIBUTED.value, distributed.Limits())
    from clipjax.data.storage.cache import cache_dir
    from clipjax.data.storage.files import write
    from clipjax.data.storage.paths import data_path
    from clipjax.evaluate import evaluate_checkpoint
    from clipjax.interop import Hints

    compile_cache.use(cache_dir() / "compiled")
    table = data_path(_JSON.value) if _JSON.value else None
    _check_table(table)
    results = evaluate_checkpoint(
        checkpoint,
        zero_shot=zero_shot,
        retrieval=retrieval,
        evals=others,
        fields=_fields(),
        templates=_TEMPLATES.value or None,  # an empty flag gives none
        class_names=_CLASS_NAMES.value or None,
        classes=_CLASSES.value,
        preprocess=_PREPROCESS.value,
        max_bad=_MAX_BAD.value,
        batch_size=_BATCH_SIZE.value,
        hints=Hints(**hints.hints()),
    )
    if not distributed.is_lead():
        return 0
    print_results(results)
    if table:
        text = json.dumps(results, indent=2, sort_keys=True) + "\n"
        write(table, text.encode("utf-8"))
    return 0


def _pairs(flag: flags.FlagHolder[list[str]]) -> list[tuple[str, str]]:
    """Splits the values of a flag, `NAME=VALUE`."""
    found = []
    for text in flag.value:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            form = "KIND=SPEC" if flag is _EVAL else "KIND.NAME=VALUE"
            raise ValueError(f"--{flag.name} {text}: expected {form}")
        found.append((name, value))
    return found


def _fields() -> dict[str, dict[str, Any]]:
    """Reads --eval_field: kind -> field -> value."""
    fields: dict[str, dict[str, Any]] = {}
    for name, text in _pairs(_FIELDS):
        kind, _, field = name.rpartition(".")
        if not kind or field in fields.setdefault(kind, {}):
            told = "is given twice" if kind else "expected KIND.NAME=VALUE"
            raise ValueError(f"--eval_field {name}={text}: {told}")
        try:
            fields[kind][field] = json.loads(text)
        except ValueError:
            fields[kind][field] = text
    return fields


def _check_table(table: Any) -> None:
    """Tries before the work whether the lead can write the table; all processes raise together."""
    from clipjax.data.storage.files import check_writable

    problem = None
    if table and distributed.is_lead():
        try:
            check_writable(table)
        except ValueError as error:
            problem = str(error)
    problem = distributed.gather(problem)[0]
    if problem:
        raise ValueError(problem)
