"""Small SentencePiece vocabularies, made of a few texts."""

import functools
import io

import sentencepiece

WORDS = ("a red circle", "a blue square", "two green dogs", "the cat and the hat")
OTHER_WORDS = ("seven pink pigs", "very fast jumps")


@functools.cache
def sentencepiece_model(texts=WORDS, vocab_size=40, **options):
    """The bytes of a model that was trained on texts, which have to be a tuple."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts * 20),
        model_writer=buffer,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return buffer.getvalue()
