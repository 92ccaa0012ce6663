"""`clipjax classify --checkpoint DIR --labels "cat, dog" IMAGE...`.

Labels go into the templates; those that begin with an article, or are phrases or sentences, are
best given whole, by --templates plain. One that holds a comma is given by --label.
"""

from absl import flags

from clipjax.cli import hints
from clipjax.cli.main import given
from clipjax.cli.output import show
from clipjax.printable import printable

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A workdir, or one step's folder.")
_LABELS = flags.DEFINE_list("labels", [], "Names to choose from, separated by commas.")
_LABEL = flags.DEFINE_multi_string("label", [], "One name, commas and all; may be repeated.")
_TEMPLATES = flags.DEFINE_string(
    "templates", None, "Prompt templates: a name or a file; by default the run's, else simple."
)
_PREPROCESS = flags.DEFINE_enum(
    "preprocess", "clipjax", ["clipjax", "open_clip"], "Whose pixels; open_clip's to compare with."
)
_TOP = flags.DEFINE_integer("top", 5, "Names to show for each image.", lower_bound=1)
flags.adopt_module_key_flags(hints)


def main(argv: list[str]) -> int:
    """Prints a ranked table for each image."""
    images = argv[1:]
    labels = [label.strip() for label in (*_LABELS.value, *_LABEL.value) if label.strip()]
    checkpoint, _ = given(_CHECKPOINT.value, "--checkpoint DIR"), given(labels, "--labels 'a, b'")
    if not images:
        raise ValueError("name one or more image files behind the flags")
    from clipjax.inference.loading import read_model
    from clipjax.interop import Hints

    model = read_model(checkpoint, Hints(**hints.hints()), preprocess=_PREPROCESS.value)
    width = max(len(printable(label)) for label in labels)
    answers = model.classify(images, labels, _TEMPLATES.value or None)  # an empty flag gives none
    for image, ranked in zip(images, answers, strict=True):
        show(image)
        for label, probability in ranked[: _TOP.value]:
            bar = "#" * round(30 * probability)
            show(f"  {printable(label):<{width}}  {100 * probability:5.1f} %  {bar}")
    return 0
