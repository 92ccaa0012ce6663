"""`clipjax classify --checkpoint DIR --labels "cat, dog" PICTURE_OR_FOLDER...`.

The probabilities of a picture are as the model was trained: by the softmax they add up to one; by
the sigmoid (SigLIP) each label is a question of its own. Labels go into the templates; those that
begin with an article, or are phrases or sentences, are best given whole, by --templates plain. One
that holds a comma is given by --label. Pictures that cannot be used are left out, counted by their
reason, and an error once the others are answered, unless --max_bad allows for so many.
"""

import json
from collections import Counter

from absl import flags

from clipjax.cli import hints
from clipjax.cli.main import given
from clipjax.cli.output import show
from clipjax.printable import printable

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Whatever `clipjax.load` reads.")
_LABELS = flags.DEFINE_list("labels", [], "Names to choose from, separated by commas.")
_LABEL = flags.DEFINE_multi_string("label", [], "One name, commas and all; may be repeated.")
_LABELS_FROM = flags.DEFINE_string(
    "labels_from", None, "Names too: a file of one a line, or a set of class names (`food101`)."
)
_TEMPLATES = flags.DEFINE_string(
    "templates", None, "Prompt templates: a name or a file; by default the run's, else simple."
)
_PREPROCESS = flags.DEFINE_enum(
    "preprocess", "clipjax", ["clipjax", "open_clip"], "Whose pixels; open_clip's to compare with."
)
_TOP = flags.DEFINE_integer("top", 5, "Names to show for each picture.", lower_bound=1)
_MAX_BAD = flags.DEFINE_integer(
    "max_bad",
    0,
    "Pictures that may be unusable; more are an error, once the others are answered.",
    lower_bound=0,
)
_JSON = flags.DEFINE_string("json", None, "Also write the answers to this file.")
flags.adopt_module_key_flags(hints)


def main(argv: list[str]) -> int:
    """Prints a ranked table for each picture."""
    checkpoint, labels = given(_CHECKPOINT.value, "--checkpoint DIR"), _labels()
    if len(argv) < 2:
        raise ValueError("name one or more pictures, or folders of them, behind the flags")
    from clipjax.data.storage.files import check_writable, write
    from clipjax.data.storage.paths import data_path
    from clipjax.inference.loading import read_model
    from clipjax.inference.pictures import PictureFiles
    from clipjax.inference.scoring import embed_source
    from clipjax.interop import Hints

    if _JSON.value:
        check_writable(data_path(_JSON.value))
    source = PictureFiles(argv[1:])
    model = read_model(checkpoint, Hints(**hints.hints()), preprocess=_PREPROCESS.value)
    head = model.zero_shot(labels, _TEMPLATES.value or None)  # an empty flag gives none
    head.check_labels(labels)
    width = max(len(printable(label)) for label in labels)
    unusable: Counter[str] = Counter()
    answers = []
    for part in embed_source(model, source):
        unusable += part.bad
        ranked = head.scores_of(part.embeds).top(_TOP.value)
        for example, ranks in zip(part.examples, ranked, strict=True):
            answers.append({"picture": example["key"], "labels": dict(ranks)})
            show(example["key"])
            for label, probability in ranks:
                bar = "#" * round(30 * probability)
                show(f"  {printable(label):<{width}}  {100 * probability:5.1f} %  {bar}")
    for reason, number in sorted(unusable.items()):
        show(f"left out, {reason}: {number:,}")
    if _JSON.value:
        told = {
            "model": model.spec["name"],
            "probabilities": "softmax" if head.bias is None else "sigmoid",
            "templates": head.prompts.about(),
            "pictures": answers,
            "left_out": dict(sorted(unusable.items())),
        }
        text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
        write(data_path(_JSON.value), text.encode("utf-8"))
    if unusable.total() > _MAX_BAD.value:
        raise ValueError(
            f"{unusable.total()} of {len(source)} pictures cannot be used ({dict(unusable)}), the "
            f"{len(answers)} others are answered; remove them, or allow for so many by "
            f"max_bad={unusable.total()}"
        )
    return 0


def _labels() -> list[str]:
    labels = [label.strip() for label in (*_LABELS.value, *_LABEL.value) if label.strip()]
    if _LABELS_FROM.value:
        from clipjax.data.classes.named_lists import load_class_names

        labels += load_class_names(_LABELS_FROM.value)
    return given(labels, "--labels 'a, b', --label or --labels_from FILE")
