"""`clipjax eval --checkpoint DIR --zero_shot SPEC[,SPEC] --retrieval SPEC[,SPEC] [--json FILE]`."""

import json
from pathlib import Path

from absl import flags

from clipjax import distributed
from clipjax.cli import opening
from clipjax.cli.main import no_positional, print_results

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A workdir, or one step's folder.")
_ZERO_SHOT = flags.DEFINE_list("zero_shot", [], "Datasets with labels: kind:where[:split].")
_RETRIEVAL = flags.DEFINE_list("retrieval", [], "Datasets of images and texts.")
_TEMPLATES = flags.DEFINE_string("templates", "", "Prompt templates: a name or a file.")
_CLASSES = flags.DEFINE_string("class_names", "", "Class names: a name or a file.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images, or texts, over all devices.")
_JSON = flags.DEFINE_string("json", None, "Also write the results to this file.")
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed", "auto", ["auto", "on", "off"], "Join the processes of a cluster."
)
flags.adopt_module_key_flags(opening)


def main(argv: list[str]) -> int:
    """Evaluates and prints a table."""
    no_positional(argv)
    if not _CHECKPOINT.value:
        raise ValueError("--checkpoint is missing: a workdir, or one step's folder")
    if not (_ZERO_SHOT.value or _RETRIEVAL.value):
        raise ValueError("nothing to evaluate: give --zero_shot SPEC or --retrieval SPEC")
    distributed.initialize(_DISTRIBUTED.value)
    from clipjax.evaluate import evaluate_checkpoint

    results = evaluate_checkpoint(
        _CHECKPOINT.value,
        zero_shot=_ZERO_SHOT.value,
        retrieval=_RETRIEVAL.value,
        templates=_TEMPLATES.value,
        class_names=_CLASSES.value,
        batch_size=_BATCH_SIZE.value,
        plugins=opening.plugins(),
        tokenizer=opening.tokenizer(),
    )
    if not distributed.is_lead():
        return 0
    print_results(results)
    if _JSON.value:
        text = json.dumps(results, indent=2, sort_keys=True) + "\n"
        Path(_JSON.value).write_text(text, encoding="utf-8")
    return 0
