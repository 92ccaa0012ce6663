"""`clipjax eval --checkpoint DIR --zero_shot SPEC[,SPEC] --retrieval SPEC[,SPEC] [--json FILE]`.

Any other kind of evaluation: `--eval KIND=SPEC[,SPEC]`, its fields `--eval_field KIND.NAME=VALUE`.
A flag that takes SPECs may be given again instead: a comma inside braces, brackets or an option
belongs to its SPEC.
The sets of a published table, as far as they are in a folder: `--suite datacomp --data_root DIR`.
"""

import json
from typing import Any

from absl import flags

from clipjax import compile_cache
from clipjax.cli import config_flag, hints, joining
from clipjax.cli.main import given, no_positional, print_results
from clipjax.cli.output import show
from clipjax.cli.specs import split_specs
from clipjax.config import validate
from clipjax.processes import distributed

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
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
_SUITE = flags.DEFINE_string(
    "suite",
    None,
    "Sets of a table: datacomp, imagenet_robustness, retrieval, or a file of yours.",
)
_DATA_ROOT = flags.DEFINE_string("data_root", None, "Folder that --suite looks for its sets in.")
_RESULTS = flags.DEFINE_string(
    "results", None, "Folder that keeps the result of each set of --suite; else one in the cache."
)
_SKIP = flags.DEFINE_list("skip", [], "Sets of --suite that are left out.")
_JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")
_PAGE = flags.DEFINE_string(
    "page", None, "Also write the results to this file, as a page with tables and pictures."
)
_PICTURES = flags.DEFINE_string(
    "pictures", None, "Also write each picture of the page to this folder, as SVG."
)
_FORMAT = flags.DEFINE_enum(
    "format",
    "clipjax",
    ["clipjax", "clip_benchmark"],
    "Of --json: clip_benchmark writes a file of its keys for each evaluation; the name may hold "
    "{dataset}, {pretrained}, {model}, {language} and {task}.",
)
_VERIFY = flags.DEFINE_bool(
    "verify",
    False,
    "Compare with the target of the run, or of --config; exit 1 where the interval of what was "
    "measured lies below it.",
)
_CONFIG = config_flag.define()
flags.adopt_module_key_flags(hints)
flags.adopt_module_key_flags(joining)


def main(argv: list[str]) -> int:
    """Evaluates and prints a table."""
    no_positional(argv)
    checkpoint = given(
        _CHECKPOINT.value,
        "--checkpoint",
        ": a workdir, one step's folder, or a file or folder of weights",
    )
    asked, target = _asked(), _target()
    joining.join()
    from clipjax.data.storage.cache import cache_dir
    from clipjax.data.storage.files import write
    from clipjax.data.storage.paths import data_path
    from clipjax.evals.record_lines import check_output

    compile_cache.use(cache_dir() / "compiled")
    check_output(_JSON.value, "--json")
    check_output(_PAGE.value, "--page")
    check_output(_PICTURES.value and f"{_PICTURES.value}/a.svg", "--pictures")
    results, failed = _evaluate(checkpoint, asked, target)
    verified = results.get("verified", [])
    code = int(any(not verdict["is_met"] for verdict in verified))
    if not distributed.is_lead():
        return code
    _show_suite(results.get("suite"))
    print_results(results)
    for path, text in _files(results, checkpoint).items():
        write(data_path(path), text.encode("utf-8"))
    _write_page(results, checkpoint)
    if failed:
        told = "\n  ".join(f"{name}: {why}" for name, why in failed.items())
        raise ValueError(f"{len(failed)} sets could not be evaluated:\n  {told}")
    for verdict in verified:
        show(
            f"{'met' if verdict['is_met'] else 'MISSED'}: {verdict['target']} is to be "
            f"{verdict['wanted']:.4f}; {verdict['metric']} is {verdict['measured']:.4f}, "
            f"{verdict['low']:.4f} to {verdict['high']:.4f} ({verdict['interval']}, "
            f"n = {verdict['count']:,.0f})"
        )
    return code


def _files(results: dict[str, Any], checkpoint: str) -> dict[str, str]:
    """What --json and --format write, by path."""
    from clipjax.evals.clip_benchmark import clip_benchmark_results, files_of
    from clipjax.evals.running import results_in

    if not _JSON.value:
        return {}
    if _FORMAT.value == "clipjax":
        return {_JSON.value: json.dumps(results, indent=2, sort_keys=True) + "\n"}
    documents = clip_benchmark_results(
        results_in(results), model=results["model"], pretrained=checkpoint
    )
    return files_of(documents, _JSON.value)


def _write_page(results: dict[str, Any], checkpoint: str) -> None:
    """What --page and --pictures write."""
    from clipjax.data.sources import make_source
    from clipjax.data.storage.files import write
    from clipjax.data.storage.paths import data_path
    from clipjax.redaction import redact
    from clipjax.report.writing import results_page, results_pictures

    if _PAGE.value:
        flags_of = (_ZERO_SHOT.value, _RETRIEVAL.value, [text for _, text in _pairs(_EVAL)])
        # Results name a SPEC without its credentials.
        specs = {redact(spec): spec for texts in flags_of for spec in split_specs(texts)}
        page = results_page(
            results, checkpoint, lambda spec: make_source(specs[spec], path="--page")
        )
        write(data_path(_PAGE.value), page.encode("utf-8"))
    if _PICTURES.value:
        for name, text in results_pictures(results).items():
            write(data_path(_PICTURES.value) / f"{name}.svg", text.encode("utf-8"))


def _asked() -> dict[str, Any]:
    """What is to be evaluated, as arguments of `evaluate_checkpoint`; nothing with --suite."""
    zero_shot, retrieval = split_specs(_ZERO_SHOT.value), split_specs(_RETRIEVAL.value)
    evals = [(kind, spec) for kind, text in _pairs(_EVAL) for spec in split_specs([text])]
    asked = {"zero_shot": zero_shot, "retrieval": retrieval, "evals": evals}
    naming = {
        "templates": _TEMPLATES.value or None,  # an empty flag gives none
        "class_names": _CLASS_NAMES.value or None,
        "classes": _CLASSES.value,
    }
    of_suite = {f"--{f.name}": f.value for f in (_DATA_ROOT, _RESULTS, _SKIP) if f.value}
    if not _SUITE.value:
        if of_suite:
            raise ValueError(f"{', '.join(of_suite)}: for --suite, which is not given")
        if not any(asked.values()):
            raise ValueError(
                "nothing to evaluate: give --zero_shot SPEC, --retrieval SPEC, --eval KIND=SPEC or "
                "--suite NAME"
            )
        return {**asked, **naming, "fields": _fields()}
    given_too = {**asked, **naming, "classes": _CLASSES.value != "all", "eval_field": _FIELDS.value}
    if idle := [f"--{name}" for name, value in given_too.items() if value]:
        raise ValueError(
            f"{', '.join(idle)} with --suite: its sets and their fields stand in its file; copy "
            "that, and give the path of the copy"
        )
    given(_DATA_ROOT.value, "--data_root", ": the folder that the sets of --suite are in")
    return {}


def _target() -> dict[str, Any] | None:
    """The target of --config; None where it is that of the run."""
    if _FORMAT.value != "clipjax" and (_EVAL.value or not _JSON.value):
        raise ValueError(
            f"--format {_FORMAT.value} is for --json, and for zero-shot and retrieval alone"
        )
    if _CONFIG.value is None:
        return None
    if not _VERIFY.value:
        raise ValueError("--config: its target is for --verify, which is not given")
    # No epoch is counted for it: of this config nothing but the target is read.
    return dict(validate(_CONFIG.value, needs_data=False, count_examples=lambda *_: 10**6).target)


def _evaluate(
    checkpoint: str, asked: dict[str, Any], target: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Gives the document of results, and sets of a suite that failed with why."""
    from clipjax.data.storage.cache import cache_dir
    from clipjax.data.storage.files import local_path
    from clipjax.evals.suite import load_suite
    from clipjax.evaluate import evaluate_checkpoint
    from clipjax.evaluate_suite import evaluate_suite
    from clipjax.interop import Hints

    common: dict[str, Any] = {
        "preprocess": _PREPROCESS.value,
        "max_bad": _MAX_BAD.value,
        "batch_size": _BATCH_SIZE.value,
        "dtype": _DTYPE.value,
        "hints": Hints(**hints.hints()),
        "verify": _VERIFY.value,
        "target": target,
    }
    if not _SUITE.value:
        kept = bool(_PAGE.value)
        return evaluate_checkpoint(checkpoint, **asked, **common, keep_examples=kept), {}
    folder = local_path(_RESULTS.value) if _RESULTS.value else cache_dir() / "evaluations"
    run = evaluate_suite(
        checkpoint,
        load_suite(_SUITE.value),
        _DATA_ROOT.value or "",
        results=folder,
        skip=[name.strip() for name in _SKIP.value if name.strip()],
        **common,
    )
    return run.document, dict(run.failed)


def _show_suite(suite: dict[str, Any] | None) -> None:
    """Shows which sets have no number, how to come by them, and of how many the averages are."""
    if suite is None:
        return
    others: dict[tuple[str, str], list[str]] = {}
    for name, entry in suite["sets"].items():
        if entry["state"] != "measured":
            told = entry["state"], entry.get("why") or entry["obtain"]
            others.setdefault(told, []).append(name)
    for (state, why), names in others.items():
        show(f"{state}: {', '.join(names)}")
        show(f"  {why}")
    for name, average in suite["averages"].items():
        value = "none" if average["value"] is None else f"{average['value']:.4f}"
        show(f"{suite['name']} {name}: {value}, of {average['measured']} of {average['of']} sets")


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
