"""`clipjax convert --from PATH --to PATH --format clipjax|hf|open_clip|stablehlo|adapter`.

Reads weights of any kind that is known, which is told from the files: OpenAI's archives, OpenCLIP's
files, directories of Hugging Face's transformers, big_vision's .npz, and checkpoints of clipjax.
"""

from absl import flags

from clipjax.cli import hints, opening
from clipjax.cli.main import given, no_positional
from clipjax.cli.output import show

_FROM = flags.DEFINE_string("from", None, "A file or directory of weights.")
_TO = flags.DEFINE_string("to", None, "What to write; must not exist.")
_FORMAT = flags.DEFINE_string(
    "format",
    "clipjax",
    "Format to write: clipjax, hf, open_clip, stablehlo; adapter, of a run of LoRA; or module:Name "
    "of your own.",
)
flags.adopt_module_key_flags(hints)


def main(argv: list[str]) -> int:
    """Converts and prints what was found."""
    no_positional(argv)
    source, target = given(_FROM.value, "--from PATH"), given(_TO.value, "--to PATH")
    from clipjax.interop import Hints
    from clipjax.interop.converting import convert_weights

    done = convert_weights(
        source,
        target,
        _FORMAT.value,
        hints=Hints(**hints.hints()),
        tokenizer=opening.tokenizer(),
    )
    rows = [("format", done.source_format), ("model", done.model)]
    rows += [("taken", note) for note in done.notes]
    rows += [(f"SHA-256 of {name}", digest) for name, digest in done.sha256.items()]
    rows += [("parameters", f"{done.parameters:,}")]
    rows += [("running statistics", f"{done.statistics:,}")] if done.statistics else []
    rows += [("ignored", _listed(done.ignored))] if done.ignored else []
    rows += [(f"written as {_FORMAT.value}", f"{done.target} ({done.target_bytes:,} bytes)")]
    if done.lacks_tokenizer:
        rows += [("no texts", "the tokenizer's file is not here: add --tokenizer FILE for it")]
    for name, value in rows:
        show(f"{name}: {value}")
    return 0


def _listed(names: tuple[str, ...], most: int = 8) -> str:
    # A training checkpoint of big_vision has thousands of leaves of its optimizer.
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
