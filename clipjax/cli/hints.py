"""Flags of the verbs that read weights of any kind: what a file cannot say itself."""

from typing import Any

from absl import flags

from clipjax.cli import opening

_FROM_FORMAT = flags.DEFINE_string(
    "from_format", None, "Format of the weights, where the files do not say: module:Name of yours."
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
    "which",
    None,
    "Key of the weights, in a file that holds several sets: state_dict_ema; of a run, params, "
    "ema_params or the name of an average.",
)
_STRIP_PREFIX = flags.DEFINE_string("strip_prefix", None, "What the names of tensors start with.")
_RENAME = flags.DEFINE_multi_string(
    "rename", [], "PATTERN=>NAME: other names for tensors; may be given several times, in order."
)
_IGNORE = flags.DEFINE_multi_string(
    "ignore", [], "PATTERN: tensors that are left out; may be given several times."
)
_LORA = flags.DEFINE_string(
    "lora", None, "peft's directory or file of LoRA that is added, or an adapter of clipjax."
)
_LORA_ALPHA = flags.DEFINE_float(
    "lora_alpha", None, "Alpha of LoRA, where no adapter_config.json says it."
)
_FROM_TEXT = flags.DEFINE_string(
    "from_text", None, "Directory of Hugging Face's whose text tower completes that of the weights."
)
_LOGIT_SCALE = flags.DEFINE_float(
    "logit_scale", None, "Scale of the logits, where two towers come without it."
)
flags.adopt_module_key_flags(opening)


def hints() -> dict[str, Any]:
    """What the flags say, as the fields of `clipjax.interop.Hints`."""
    return {
        "model": _MODEL.value,
        "activation": _ACTIVATION.value,
        "which": _WHICH.value,
        "strip_prefix": _STRIP_PREFIX.value,
        "rename": tuple(map(_rename_pair, _RENAME.value)),
        "ignore": tuple(_IGNORE.value),
        "lora": _LORA.value,
        "lora_alpha": _LORA_ALPHA.value,
        "text_from": _FROM_TEXT.value,
        "logit_scale": _LOGIT_SCALE.value,
        "plugins": opening.plugins(),
        "tokenizer": opening.tokenizer(),
        "format": _FROM_FORMAT.value,
    }


def _rename_pair(text: str) -> tuple[str, str]:
    pattern, arrow, name = text.rpartition("=>")
    if not arrow:
        raise ValueError(f"--rename {text!r}: expected PATTERN=>NAME")
    return pattern, name
