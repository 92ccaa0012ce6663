"""Cached ids: the same ones, for whatever the transforms make of a caption."""

import concurrent.futures
import tracemalloc

import numpy as np
import pytest
from worker_sources import tokens_of

from clipjax.data import Loader, make_source, make_transforms
from clipjax.data.images.preprocess import Preprocess
from clipjax.data.loading.rows import Finishing
from clipjax.data.loading.token_cache import TokenCache
from clipjax.tokenizers import ClipBPE, WordPiece

TEXTS = ["a cat", "A cat", "a cat ", "", "caf\u00e9", "cafe\u0301", "\ud83d", "x " * 200, "a cat"]


class Counting:
    """A tokenizer that notes what it was asked."""

    def __init__(self, context_length=8, vocab_size=49_408, change=None):
        self.tokenizer = ClipBPE(context_length=context_length)
        self.context_length, self.vocab_size = context_length, vocab_size
        self.asked, self._change = [], change

    def __call__(self, texts):
        self.asked += texts
        ids = self.tokenizer(texts)
        return ids if self._change is None else self._change(ids)


@pytest.mark.parametrize("tokenizer", [ClipBPE(context_length=16), WordPiece(context_length=9)])
def test_no_id_is_changed(tokenizer):
    cache, expected = TokenCache(1 << 20), tokenizer(TEXTS)
    for texts in (TEXTS[:3], TEXTS, TEXTS, TEXTS[::-1]):
        ids = cache.tokenize(0, tokenizer, texts)
        assert ids.dtype == np.int32
        np.testing.assert_array_equal(ids, tokenizer(texts))
    np.testing.assert_array_equal(cache.tokenize(0, tokenizer, TEXTS), expected)
    assert len(cache) == len(set(TEXTS))


def test_ids_beyond_16_bits():
    tokenizer = Counting(vocab_size=250_000, change=lambda ids: ids + 100_000)
    cache = TokenCache(1 << 20)
    for _ in range(2):
        np.testing.assert_array_equal(
            cache.tokenize(0, tokenizer, TEXTS), ClipBPE(context_length=8)(TEXTS) + 100_000
        )
    # In 16 bits they would be others.
    for change in (lambda ids: ids + 100_000, lambda ids: ids - 1, lambda ids: ids[:, :3]):
        with pytest.raises(ValueError, match="vocab_size is 50000, its context_length 8"):
            TokenCache(1 << 20).tokenize(0, Counting(vocab_size=50_000, change=change), TEXTS)


def test_a_caption_is_tokenized_once():
    tokenizer, cache = Counting(), TokenCache(1 << 20)
    for _ in range(3):
        cache.tokenize(0, tokenizer, TEXTS[:4])
    assert tokenizer.asked == TEXTS[:4]
    without = Counting()  # negative control
    for _ in range(3):
        TokenCache(0).tokenize(0, without, TEXTS[:4])
    assert without.asked == TEXTS[:4] * 3


def test_the_budget_holds():
    budget = 200_000
    texts = [f"caption {'x' * (i % 50)} of number {i}" for i in range(5000)]
    tokenizer = ClipBPE(context_length=77)
    tokenizer(texts)  # its own memory of words
    tracemalloc.start()
    cache = TokenCache(budget)
    for start in range(0, len(texts), 100):
        cache.tokenize(0, tokenizer, [text + "" for text in texts[start : start + 100]])
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 0 < cache.used <= budget and 300 < len(cache) < 1000
    assert held < 1.5 * budget
    np.testing.assert_array_equal(cache.tokenize(0, tokenizer, texts[-9:]), tokenizer(texts[-9:]))


def test_stages_do_not_share_rows():
    small, own = Counting(context_length=5), Counting(context_length=9)
    cache = TokenCache(1 << 20)
    for stage, tokenizer in ((0, small), (1, own), (0, small), (1, own)):
        ids = cache.tokenize(stage, tokenizer, TEXTS[:2])
        np.testing.assert_array_equal(ids, tokenizer.tokenizer(TEXTS[:2]))
    assert own.asked == TEXTS[:2] and small.asked == TEXTS[:2] * 2
    assert TokenCache(1 << 20).tokenize(0, tokens_of, ["a", "bc"]).shape == (2, 2)  # no Tokenizer


def test_threads_agree():
    cache, tokenizer = TokenCache(30_000), ClipBPE(context_length=16)
    texts = [f"caption number {i % 300}" for i in range(3000)]
    expected = tokenizer(texts)

    def part(low):
        stage = low // 1500
        return cache.tokenize(stage, tokenizer, texts[low : low + 30])

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(part, range(0, 3000, 30)))
    np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("workers, num_workers", [("threads", 0), ("threads", 2), ("processes", 2)])
def test_batches_are_those_without_it(workers, num_workers):
    """Over two epochs of captions that transforms change at random, across stages."""
    specs = (
        {"name": "drop_word", "probability": 0.5},
        {"name": "caption_template", "templates": ("a photo of {}", "{}, drawn")},
    )
    transforms = make_transforms(specs, image_size=4)

    def make(**options):
        small = Finishing(transforms, ClipBPE(context_length=6), Preprocess(4))
        return Loader(
            make_source("synthetic:40?side=4"),
            transforms,
            ClipBPE(context_length=12),
            batch_size=16,
            seed=0,
            preprocess=Preprocess(4),
            stages=[(2, small)],
            **options,
        )

    plain = make(num_workers=0, token_cache_bytes=0)
    with make(num_workers=num_workers, workers=workers) as loader:
        texts = set()
        for step in range(6):
            batch, expected = loader.batch(step), plain.batch(step)
            for name in expected:
                np.testing.assert_array_equal(batch[name], expected[name])
            texts |= set(map(bytes, batch["text"]))
        assert len(texts) > 50
        if workers == "threads":
            assert len(loader.workers.maker.tokens) > 10
