"""A SentencePiece model of byte-pair kind as a tokenizer.json: SigLIP 2's vocabulary, Gemma's.

The slow tokenizers of transformers that read such a `.model` file do not lower-case captions, as
SigLIP 2 was trained; a tokenizer.json says by itself what is done to a caption.
"""

from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing

_SPACE = "\u2581"
_CONTROL, _USER_DEFINED = 3, 4
# What the two implementations are compared on before the file is written.
SAMPLES = (
    "a photo of a cat",
    "A Photo, of 2 CATS & 1 dog!!",
    "  two  spaces \t a tab\nand a line ",
    "caf\u00e9 na\u00efve \u00dcbung \u0130stanbul",
    "\u65e5\u672c\u8a9e\u306e\u5199\u771f \u0444\u043e\u0442\u043e \u0635\u0648\u0631\u0629",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 1234567890 x^2 <b>bold</b>",
    "\u2581 \x00 \ufffd",
    "",
)


def build_tokenizer(model: bytes, end_id: int) -> Tokenizer:
    """Builds the tokenizer that lower-cases, encodes and ends a text, and compares the two.

    Raises:
        ValueError: the two give different ids, as for unigram models or ones that normalise.
    """
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model)
    backend = _backend(sentencepiece_model_pb2.ModelProto.FromString(model), end_id)
    for text in SAMPLES:
        lower = "".join(character.lower() for character in text)
        wanted = [*processor.encode(lower), end_id]
        found = backend.encode(text).ids
        if found != wanted:
            raise ValueError(
                "this SentencePiece model cannot be written as a tokenizer.json: "
                f"{text!r} gives {wanted} there and {found} here. Supported are byte-pair models "
                "without rules of normalization, as Gemma's; write target_format='clipjax'"
            )
    return backend


def _backend(proto: Any, end_id: int) -> Tokenizer:
    pieces = list(proto.pieces)
    vocabulary = {piece.piece: i for i, piece in enumerate(pieces)}
    unknown = next((piece.piece for piece in pieces if piece.type == piece.UNKNOWN), None)
    backend = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(pieces, vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    control = [x.piece for x in pieces if x.type == _CONTROL]
    backend.add_special_tokens([AddedToken(x, normalized=False, special=True) for x in control])
    defined = [x.piece for x in pieces if x.type == _USER_DEFINED]
    backend.add_tokens([AddedToken(x, normalized=False) for x in defined])
    backend.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(" ", _SPACE)]
    )
    end = pieces[end_id].piece
    backend.post_processor = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, end_id)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return backend


def _merges(pieces: list[Any], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, the best-scored piece first."""
    found = []
    for piece in pieces:
        if piece.type != piece.NORMAL:
            continue
        text = piece.piece
        for i in range(1, len(text)):
            left, right = vocabulary.get(text[:i]), vocabulary.get(text[i:])
            if left is not None and right is not None:
                found.append((-piece.score, left, right, text[:i], text[i:]))
    return [(left, right) for *_, left, right in sorted(found)]
