"""A JSON object that is read field by field; what nobody asked for is an error."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from clipjax import strict_json
from clipjax.data.storage.retrying import is_missing
from clipjax.interop.tensors import WeightFileError
from clipjax.ranges import RATE, Number, whole

# Gemma's tokenizer.json is the largest of the files that come with published weights: 34 MB.
MAX_BYTES = 256 << 20
MAX_SIZE = 1 << 24
_SIZE = whole(1, MAX_SIZE)
_POSITIVE = Number(0, 1e9, open_low=True, open_high=True)

# Fields that transformers writes into every config and that no encoder computes with.
_IGNORED = """
    _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures
    attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label is_decoder is_encoder_decoder label2id length_penalty
    max_length min_length model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams
    num_labels num_return_sequences output_attentions output_hidden_states output_scores
    pad_token_id prefix problem_type pruned_heads remove_invalid_values repetition_penalty
    return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    attention_dropout attention_probs_dropout_prob dropout hidden_dropout_prob initializer_factor
    initializer_range
"""
IGNORED = frozenset(_IGNORED.split())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        WeightFileError: it cannot be read, is too large, or holds something else.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise WeightFileError(f"{path} has {size} bytes; at most {MAX_BYTES} are read")
        found = strict_json.read_json(path, max_bytes=MAX_BYTES)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and not is_missing(error):
            raise  # of the storage, which says nothing about the file
        raise WeightFileError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise WeightFileError(f"{path} holds {type(found).__name__}, expected a JSON object")
    return found


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON object, two spaces deep, in the order of its keys."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class Section:
    """One object of a JSON file, with the values that absent fields stand for.

    Args:
        values: the object.
        where: file and field, for messages: `config.json: text_config`.
        defaults: values of fields that the file may leave out.

    Raises:
        WeightFileError: from any method: the field, what it holds, what is allowed.
    """

    def __init__(self, values: Any, where: str, defaults: Mapping[str, Any] | None = None):
        self.where = where
        if not isinstance(values, Mapping):
            raise WeightFileError(f"{where} is {values!r:.80}, expected an object")
        self._values = {**(defaults or {}), **values}
        self._asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The field as it is."""
        self._asked.add(name)
        return self._values.get(name, default)

    def integer(self, name: str) -> int:
        """A field that counts something: at least 1."""
        value = self.get(name)
        if not _SIZE.accepts(value):
            raise self.error(name, f"an integer from 1 to {MAX_SIZE}")
        return value

    def side(self, name: str) -> int:
        """The pixels of a square's side, which may be written as two equal numbers."""
        value = self.get(name)
        if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if not _SIZE.accepts(value):
            raise self.error(name, f"one number from 1 to {MAX_SIZE}: images here are square")
        return value

    def number(self, name: str) -> float:
        """A positive number."""
        value = self.get(name)
        if not _POSITIVE.accepts(value):
            raise self.error(name, "a positive number")
        return float(value)

    def fraction(self, name: str) -> float:
        """A number from 0 to below 1."""
        value = self.get(name)
        if not RATE.accepts(value):
            raise self.error(name, "a number in [0, 1)")
        return float(value)

    def choice(self, name: str, table: Mapping[Any, Any]) -> Any:
        """What a table says for the field's value."""
        value = self.get(name)
        if not isinstance(value, (str, int)) or value not in table:
            raise self.error(name, " or ".join(map(repr, table)))
        return table[value]

    def must_be(self, name: str, *allowed: Any) -> None:
        """A field that the models here have one value for."""
        if self.get(name) not in allowed:
            raise self.error(name, " or ".join(map(repr, allowed)))

    def ignore(self, names: Iterable[str]) -> None:
        """Fields that are of no consequence."""
        self._asked.update(names)

    def close(self, *, falsy: bool = False) -> None:
        """Refuses fields that nobody asked for: they may change what the model computes.

        Args:
            falsy: fields that are null, false, 0 or empty are how the file says "without it".
        """
        unknown = sorted(self._values.keys() - self._asked - IGNORED)
        unknown = [name for name in unknown if self._values[name] or not falsy]
        if unknown:
            raise WeightFileError(
                f"{self.where}.{unknown[0]} = {self._values[unknown[0]]!r:.80} is not a field that "
                "is known here, and it may change what the model computes; if it does not, "
                "remove it from the file"
            )

    def error(self, name: str, allowed: str) -> WeightFileError:
        """The error of a field."""
        return WeightFileError(
            f"{self.where}.{name} is {self._values.get(name)!r:.80}; supported is {allowed}"
        )
