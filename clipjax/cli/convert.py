"""`clipjax convert --from PATH --to PATH --format clipjax|hf|open_clip|stablehlo`.

Reads weights of any kind that is known, which is told from the files: OpenAI's archives, OpenCLIP's
files, directories of Hugging Face's transformers, big_vision's .npz, and checkpoints of clipjax.
"""

from absl import flags

from clipjax.cli import opening
from clipjax.cli.main import given, no_positional
from clipjax.cli.output import show

_FROM = flags.DEFINE_string("from", None, "A file or directory of weights.")
_TO = flags.DEFINE_string("to", None, "What to write; must not exist.")
_FORMAT = flags.DEFINE_string(
    "format",
    "clipjax",
    "Format to write: clipjax, hf, open_clip, stablehlo, or module:Name of your own.",
)
_FROM_FORMAT = flags.DEFINE_string(
    "from_format", None, "Format of --from, where the files do not say: module:Name of your own."
)
_MODEL = flags.DEFINE_string(
    "model", None, "Name of the zoo (`clipjax models`), where the file alone cannot say."
)
_ACTIVATION = flags.DEFINE_enum(
    "activation",
    None,
    ["quick_gelu", "gelu", "gelu_tanh"],
    "Activation, where the file alone cannot say.",
)
_WHICH = flags.DEFINE_string(
    "which", None, "Key of the weights, in a file that holds several sets: state_dict_ema."
)
_STRIP_PREFIX = flags.DEFINE_string("strip_prefix", None, "What the names of tensors start with.")
_RENAME = flags.DEFINE_multi_string(
    "rename", [], "PATTERN=>NAME: other names for tensors; may be given several times, in order."
)
_IGNORE = flags.DEFINE_multi_string(
    "ignore", [], "PATTERN: tensors that are left out; may be given several times."
)
_LORA = flags.DEFINE_string("lora", None, "peft's directory or file of LoRA that is added.")
_LORA_ALPHA = flags.DEFINE_float(
    "lora_alpha", None, "Alpha of LoRA, where no adapter_config.json says it."
)
flags.adopt_module_key_flags(opening)
_FROM_TEXT = flags.DEFINE_string(
    "from_text", None, "Directory of Hugging Face's whose text tower completes that of --from."
)
_LOGIT_SCALE = flags.DEFINE_float(
    "logit_scale", None, "Scale of the logits, where two towers come without it."
)


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
        hints=Hints(
            _MODEL.value,
            _ACTIVATION.value,
            which=_WHICH.value,
            strip_prefix=_STRIP_PREFIX.value,
            rename=tuple(map(_rename_pair, _RENAME.value)),
            ignore=tuple(_IGNORE.value),
            lora=_LORA.value,
            lora_alpha=_LORA_ALPHA.value,
            text_from=_FROM_TEXT.value,
            logit_scale=_LOGIT_SCALE.value,
            plugins=opening.plugins(),
            format=_FROM_FORMAT.value,
        ),
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


def _rename_pair(text: str) -> tuple[str, str]:
    pattern, arrow, name = text.rpartition("=>")
    if not arrow:
        raise ValueError(f"--rename {text!r}: expected PATTERN=>NAME")
    return pattern, name


def _listed(names: tuple[str, ...], most: int = 8) -> str:
    # A training checkpoint of big_vision has thousands of leaves of its optimizer.
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
