"""BERT's WordPiece."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from clipjax.files import sha256
from clipjax.tokenizers.cleaning import contract_of
from clipjax.tokenizers.tokenizer_json import BackedTokenizer, read_tokenizer_file

VOCABULARY = Path(__file__).parent / "vocabularies" / "bert_base_uncased.txt"
VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
END_TOKENS = ("kept", "blank", "none")


class WordPiece(BackedTokenizer):
    """BERT's tokenizer; by default with the vocabulary of BERT-base-uncased, which is shipped.

    A row is `[[CLS], words..., [SEP], 0, ...]`. The spelled special tokens, such as `[MASK]`, are
    recognized in a caption, as the reference does.

    Args:
        model: path of a `vocab.txt`, one piece a line; None for BERT-base-uncased's.
        shipped: False where the vocabulary is another one, so that `model` has to be given.
        context_length: tokens in a row.
        end_token: `kept`: `[SEP]` ends the words, also when they are cut (BERT, ALIGN).
            `blank`: its place is filled with padding (CLIPA and OpenVision in OpenCLIP).
            `none`: there is no place for it, so that a caption that is cut has one word more
            (CLIPA and OpenVision in the JAX code that trained them).
        start_token: whether `[CLS]` starts a row (FLIP has none).
        lower_case: whether captions are lower-cased and lose their accents.
        cleaning: steps of `clipjax.tokenizers.cleaning` before that.

    Raises:
        ValueError: if there is no such file, it lacks a special token or holds a piece twice, the
            shipped one is damaged, or an option is wrong.

    Reference: arXiv:1810.04805; rules of CLIPA as in arXiv:2306.15658.
    """

    def __init__(
        self,
        *,
        model: str | None = None,
        shipped: bool = True,
        context_length: int = 64,
        end_token: str = "kept",
        start_token: bool = True,
        lower_case: bool = True,
        cleaning: Sequence[str] = (),
    ):
        if end_token not in END_TOKENS:
            raise ValueError(
                f"tokenizer.end_token is {end_token!r}; allowed are {', '.join(END_TOKENS)}"
            )
        if shipped and model is None:
            model = str(VOCABULARY)
        data = read_tokenizer_file(model, "vocab.txt")
        self._sha256 = sha256(data)
        if model == str(VOCABULARY) and self._sha256 != VOCABULARY_SHA256:
            raise ValueError(
                f"{VOCABULARY} is damaged: its SHA-256 is {self._sha256}, expected "
                f"{VOCABULARY_SHA256}. Install clipjax again."
            )
        ids = _read_pieces(data, str(model))
        self.start_id, self.end_id = ids["[CLS]"], ids["[SEP]"]
        self.start_token, self.end_token, self.lower_case = start_token, end_token, lower_case
        template = "[CLS] " * start_token + "$A" + " [SEP]" * (end_token != "none")
        super().__init__(
            _backend(ids, lower_case, template),
            context_length=context_length,
            pad_id=ids["[PAD]"],
            cleaning=cleaning,
        )

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Encodes captions `[batch]` to ids `[batch, length]`, int32."""
        tokens = super().__call__(texts)
        if self.end_token == "blank":
            tokens[tokens == self.end_id] = self.pad_id
        return tokens

    def contract(self) -> dict:
        """What a checkpoint records, so that it is never fed ids of another tokenizer."""
        fields = ("start_id", "end_id", "end_token", "lower_case")
        known = contract_of(self, "wordpiece", self._sha256, *fields)
        if not self.start_token:  # unsaid in checkpoints of before
            known["start_token"] = False
        return {**known, "cleaning": list(self._clean.steps)}


def _read_pieces(data: bytes, where: str) -> dict[str, int]:
    try:
        pieces = data.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not a vocab.txt: it is not UTF-8") from error
    pieces = [piece.removesuffix("\r") for piece in pieces]
    ids = {piece: number for number, piece in enumerate(pieces)}
    missing = [token for token in SPECIAL_TOKENS if token not in ids]
    if missing or len(ids) != len(pieces):
        raise ValueError(
            f"{where} is not a vocab.txt of WordPiece: "
            + (f"without {', '.join(missing)}" if missing else "a piece is there twice")
            + ". It holds one piece a line, the special tokens among them"
        )
    return ids


def _backend(ids: dict[str, int], lower_case: bool, template: str) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    backend.add_special_tokens([AddedToken(x, normalized=False) for x in SPECIAL_TOKENS])
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    specials = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing(single=template, special_tokens=specials)
    return backend
