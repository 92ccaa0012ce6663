"""CLIP's byte-pair encoding as the files of transformers' CLIPTokenizer."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import RobertaProcessing

from clipjax.interop.hugging_face.added_tokens import added_tokens, decoder_entry
from clipjax.interop.section import read_json, write_json
from clipjax.interop.tensors import WeightFileError
from clipjax.tokenizers.clip_bpe import END_OF_WORD, load_merges, own_symbols

FILES = ("tokenizer.json", "vocab.json", "merges.txt")
START, END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def read_clip_tokenizer(path: Path) -> dict[str, Any]:
    """Gives the tokenizer's spec, after checking that the files are those of CLIP's BPE.

    A directory without any of the files gets OpenAI's.

    Raises:
        WeightFileError: another vocabulary, other merges, or files that contradict each other.
    """
    found = set()
    if (path / "vocab.json").is_file():
        found.add(_special_tokens(read_json(path / "vocab.json"), f"{path / 'vocab.json'}"))
    if (path / "merges.txt").is_file():
        _check_merges(_read_lines(path / "merges.txt"), f"{path / 'merges.txt'}")
    if (path / "tokenizer.json").is_file():
        where = f"{path / 'tokenizer.json'}: model"
        model = read_json(path / "tokenizer.json").get("model")
        if not isinstance(model, dict):
            raise WeightFileError(f"{where} is {model!r:.80}, expected an object")
        found.add(_special_tokens(model.get("vocab"), f"{where}.vocab"))
        merges = model.get("merges")
        # Older files write a merge as one string, newer ones as a pair.
        lines = [x if isinstance(x, str) else " ".join(map(str, x)) for x in merges or ()]
        _check_merges(lines, f"{where}.merges")
    if len(found) > 1:
        raise WeightFileError(f"{path}: vocab.json and tokenizer.json spell the two ends otherwise")
    start, end = found.pop() if found else (START, END)
    spec: dict[str, Any] = {"name": "clip_bpe"}
    if (start, end) != (START, END):
        spec |= {"start_token": start, "end_token": end}
    added = added_tokens(path, (*own_symbols(), start, end))
    return {**spec, "added_tokens": added} if added else spec


def write_clip_tokenizer(path: Path, spec: dict[str, Any], context_length: int) -> None:
    """Writes the files that CLIPTokenizer and CLIPTokenizerFast load.

    Raises:
        ValueError: an id between the vocabulary's and those of added tokens is nobody's.
    """
    start, end = spec.get("start_token", START), spec.get("end_token", END)
    vocabulary = {piece: i for i, piece in enumerate([*own_symbols(), start, end])}
    write_json(path / "vocab.json", vocabulary)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in load_merges())]
    (path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    backend = _backend(vocabulary, start, end)
    added = sorted(spec.get("added_tokens", ()), key=lambda entry: entry[1])
    if [number for _, number, _ in added] != list(
        range(len(vocabulary), len(vocabulary) + len(added))
    ):
        raise ValueError(
            "transformers has no such model: tokenizer.added_tokens skips an id; write "
            "target_format='clipjax'"
        )
    for token, _, normalized in added:
        token = AddedToken(token, normalized=normalized, special=not normalized)
        (backend.add_tokens if normalized else backend.add_special_tokens)([token])
    (path / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    decoder: dict[str, Any] = {}
    if added:  # how the slow tokenizer is told of them, and then of the two ends as well
        entries = [*((token, vocabulary[token], False) for token in (start, end)), *added]
        told = {str(i): decoder_entry(token, normalized) for token, i, normalized in entries}
        decoder = {"added_tokens_decoder": told}
    # Padding with the end token, as OpenAI's directory does: made special, "!" (id 0) would be cut
    # out of words. Pooling reads the first end token, so that padding changes no embedding.
    tokens = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    write_json(path / "special_tokens_map.json", tokens)
    write_json(
        path / "tokenizer_config.json",
        {
            **tokens,
            **decoder,
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": context_length,
            "do_lower_case": True,
            "errors": "replace",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
        },
    )


def _backend(vocabulary: dict[str, int], start: str, end: str) -> Tokenizer:
    backend = Tokenizer(
        models.BPE(
            vocabulary,
            list(load_merges()),
            unk_token=end,
            continuing_subword_prefix="",
            end_of_word_suffix=END_OF_WORD,
        )
    )
    backend.add_special_tokens([start, end])
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    # By position: the names of these arguments differ between versions. The last two are whether
    # to trim offsets and to add a space in front.
    last, first = ((token, vocabulary[token]) for token in (end, start))
    backend.post_processor = RobertaProcessing(last, first, False, False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _special_tokens(vocabulary: Any, where: str) -> tuple[str, str]:
    """How the two ends are spelled in a vocabulary that is CLIP's otherwise."""
    pieces = own_symbols()
    if isinstance(vocabulary, dict) and len(vocabulary) == len(pieces) + 2:
        ends = {i: piece for piece, i in vocabulary.items() if i in (len(pieces), len(pieces) + 1)}
        same = all(vocabulary.get(piece) == i for i, piece in enumerate(pieces))
        if same and len(ends) == 2:
            return ends[len(pieces)], ends[len(pieces) + 1]
    raise WeightFileError(
        f"{where} is not CLIP's vocabulary of {len(pieces) + 2} pieces; other ones are not "
        "supported for CLIPModel"
    )


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightFileError(f"{path} cannot be read: {error}") from error
    return lines[1:] if "#version" in lines[0] else lines


def _check_merges(lines: list[str], where: str) -> None:
    merges = load_merges()
    if lines != [" ".join(pair) for pair in merges]:
        raise WeightFileError(f"{where} are not the {len(merges)} merges of CLIP's BPE, in order")
