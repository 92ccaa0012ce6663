"""Classifiers that are kept: the same numbers without encoding a text, and never another's."""

import numpy as np
import pytest
from stand_ins import Source, encode_text, evaluation, make_params, mesh_of, picture, tokenize

from clipjax.data.storage.cache import cache_dir
from clipjax.evals import ZeroShot

pytestmark = pytest.mark.usefixtures("cache")
NAMES = tuple(f"{c} thing" for c in range(5))


class Tokenizer:
    """One that says what it is."""

    def __init__(self, name="a"):
        self.name, self.texts = name, 0

    def __call__(self, texts):
        self.texts += len(texts)
        return tokenize(texts)

    def contract(self):
        return {"name": self.name}


class InBfloat16:
    """An encode function that says what it computes in."""

    dtype = "bfloat16"

    def __call__(self, params, tokens):
        return encode_text(params, tokens)


def run(params, **changes):
    """Evaluates; gives the metrics, and how many texts were encoded."""
    examples = [{"image": picture(row), "label": row % 5} for row in range(9)]
    tokenizer = changes.pop("tokenizer", None) or Tokenizer()
    given = {"templates": ("{}", "1{}"), "weights_sha256": "w", "tokenizer": tokenizer} | changes
    source = Source(examples, given.pop("names", NAMES))
    metrics = evaluation(ZeroShot, source, mesh_of(2), **given).run(params)
    return metrics, tokenizer.texts


def kept():
    return sorted((cache_dir() / "heads").glob("*.npz"))


def test_a_second_evaluation_encodes_no_text_and_gives_the_same():
    params = make_params()
    first, encoded = run(params)
    assert encoded > 0 and len(kept()) == 1
    assert run(params) == (first, 0)
    # The control: what is kept is what is taken.
    np.savez(kept()[0], weights=np.zeros((5, 8), np.float32))
    assert run(params)[0] != first


@pytest.mark.parametrize(
    "change",
    [
        {"weights_sha256": "v"},
        {"names": (*NAMES[:4], "7 thing")},
        {"templates": ("{}", "2{}")},
        {"tokenizer": Tokenizer("b")},
        {"encode_text_fn": InBfloat16()},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_belongs_to_others_is_not_taken(change):
    run(make_params())
    assert run(make_params(), **change)[1] > 0 and len(kept()) == 2


def test_without_a_hash_of_the_weights_nothing_is_kept():
    run(make_params(), weights_sha256=None)
    assert kept() == []


@pytest.mark.parametrize("damage", ["cut", "flip", "shape"])
def test_a_damaged_file_is_made_anew(damage, caplog):
    params = make_params()
    first, encoded = run(params)
    (path,) = kept()
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        np.savez(path, weights=np.zeros((4, 8), np.float32))
    assert run(params) == (first, encoded)
    assert "is damaged and is made anew" in caplog.text
    assert run(params) == (first, 0)
