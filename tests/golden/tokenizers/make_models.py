"""Writes the small vocabularies that the goldens of captions.json are made with.

pip install sentencepiece==0.2.3 transformers==4.57.6 && python make_models.py

They are trained on messy captions, in the manner of the published ones: c4_en (SigLIP), Gemma's
with bytes for what is unknown (SigLIP 2) and XLM-RoBERTa's.
"""

import gzip
import io
import sys
import tempfile
from pathlib import Path

import sentencepiece
from transformers import XLMRobertaTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[2] / "tokenizers"))
from messy_captions import captions

HERE = Path(__file__).parent

MODELS = {
    "c4": {"vocab_size": 1000, "model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2},
    "gemma": {
        "vocab_size": 1200,
        "model_type": "bpe",
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "eos_piece": "<eos>",
        "bos_piece": "<bos>",
        "split_digits": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "byte_fallback": True,
    },
    "xlm_roberta": {
        "vocab_size": 800,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 0,
        "normalization_rule_name": "identity",
    },
}


def train(**options) -> bytes:
    # The trainer takes no NUL and no line break.
    texts = (" ".join(text.replace("\0", " ").split()) for text in captions(3000, seed=5))
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text for text in texts if text),
        model_writer=out,
        **{"bos_id": -1, "character_coverage": 0.98, **options},
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return out.getvalue()


def write(name: str, data: bytes) -> None:
    (HERE / name).write_bytes(gzip.compress(data, mtime=0))


def main() -> None:
    models = {name: train(**options) for name, options in MODELS.items()}
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(models.pop("xlm_roberta"))
        file.flush()
        tokenizer = XLMRobertaTokenizerFast(vocab_file=file.name)
    write("xlm_roberta.json.gz", tokenizer.backend_tokenizer.to_str().encode())
    for name, data in models.items():
        write(f"{name}.model.gz", data)


if __name__ == "__main__":
    main()
