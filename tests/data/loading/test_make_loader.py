"""`clipjax.make_loader` with parts of one's own: what is wrong with them is named."""

import inspect

import numpy as np
import pytest
from worker_sources import Numbers, tokens_of

import clipjax
from clipjax.data import DataSource, TooManyBadExamples
from clipjax.data.images.preprocess import Preprocess
from clipjax.tokenizers import Tokenizer


class Own(Numbers):
    """Numbers whose examples are changed."""

    def __init__(self, **changes):
        super().__init__(200)
        self.changes = changes

    def __getitem__(self, index):
        changed = super().__getitem__(index) | self.changes
        return {name: value for name, value in changed.items() if value is not None}


def make(source=None, **options):
    how = {"preprocess": Preprocess(2), "tokenizer": tokens_of, "batch_size": 8, "num_workers": 0}
    return clipjax.make_loader(Own() if source is None else source, **{**how, **options})


def test_a_picture_of_the_size_that_is_not_uint8_is_none():
    with pytest.raises(TooManyBadExamples, match=r"float32\[2, 2, 3\], expected uint8"):
        make(Own(image=np.full((2, 2, 3), 0.7, np.float32))).batch(0)


def test_ids_are_whole_numbers_of_32_bits_whatever_the_tokenizer():
    expected = make().batch(0)["text"]
    for change in (np.int64, np.uint16):
        ids = make(tokenizer=lambda texts, dtype=change: tokens_of(texts).astype(dtype))
        assert ids.batch(0)["text"].dtype == np.int32
        np.testing.assert_array_equal(ids.batch(0)["text"], expected)
    for change, found in (
        (lambda ids: ids + 0.5, r"ndarray float64\[8, 2\] of 8 texts"),
        (lambda ids: ids[:, 0], r"int32\[8\]"),
        (lambda ids: ids[1:], r"int32\[7, 2\]"),
        (lambda ids: ids.astype(np.int64) + 2**40, r"int64\[8, 2\]"),
        (lambda ids: [[1] * (1 + row[0]) for row in ids.tolist()], "list object"),
    ):
        loader = make(tokenizer=lambda texts, change=change: change(tokens_of(texts)))
        with pytest.raises(ValueError, match=f"the tokenizer gave .*{found}"):
            loader.batch(0)
    longest = make(
        tokenizer=lambda texts: np.ones((len(texts), sum(map(len, texts))), np.int32),
        batch_size=128,
        num_workers=1,
    )
    with longest, pytest.raises(ValueError, match="one length whatever the texts"):
        longest.batch(0)


def nothing(example, rng):
    """A transform that forgets to return."""


@pytest.mark.parametrize(
    "options, message",
    [
        ({"source": 5}, "source is int, which has no __len__, __getitem__, fingerprint: expected"),
        ({"source": Own}, "source is type, which has no __len__"),
        ({"source": list(range(99))}, "source is list, which has no fingerprint"),
        ({"source": {"name": "synthetic"}}, 'write {"spec": "synthetic:where"}'),
        ({"source": Own(key=None)}, r"the data source, at \d+, gives dict without key; an example"),
        ({"source": Own(text=5)}, "the caption is int, expected text"),
        ({"transforms": [nothing]}, r"transforms\[0\] \(nothing\) gives NoneType without image"),
        ({"transforms": {"name": "random_flip"}}, "transforms is .* expected a list"),
        ({"transforms": nothing}, "transforms is .* expected a list"),
        ({"tokenizer": None}, "tokenizer is NoneType, expected model.tokenizer"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    with pytest.raises((ValueError, TooManyBadExamples), match=message):
        make(**options).batch(0)


def test_numbers_of_arrays_are_numbers():
    step, rest = np.int64(3), {"batch_size": np.int32(8), "seed": np.int64(1)}
    expected = make(batch_size=8, seed=1).batch(3)
    np.testing.assert_array_equal(make(**rest).batch(step)["text"], expected["text"])


def test_what_is_only_read_may_be_of_a_narrower_type():
    for protocol, name in ((DataSource, "class_names"), (Tokenizer, "pad_id")):
        assert isinstance(inspect.getattr_static(protocol, name), property)
