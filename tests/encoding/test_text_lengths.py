"""Texts without the positions behind their ends: the same numbers, of few compiled lengths."""

import jax
import numpy as np
import pytest
from tiny import filled, inputs, tiny_spec

import clipjax
from clipjax.encoding import encode_fns
from clipjax.encoding.batches import RowLayout, run_batches
from clipjax.encoding.compiled import embed_fn
from clipjax.encoding.encode_fns import EncodeText
from clipjax.models import MODELS, build_model
from clipjax.models.text_transformer import BidirectionalTransformer, TextTransformer
from clipjax.partitioning import make_mesh

LENGTH, VOCAB = 77, 40
END = VOCAB - 1
SMALL = {"vocab_size": VOCAB, "context_length": LENGTH}
CUT = {
    "eot": {"pooling": "eot"},
    "end before added ids": {"pooling": "eot", "eot_id": END - 3},
    "mean": {"pooling": "mean"},
}
WHOLE = {
    "last": {"pooling": "last"},
    "bidirectional": {"name": "bidirectional_transformer", "pooling": "eot"},
}


def tower(text):
    """(model, variables, mesh) of a tiny model with such a text tower."""
    spec = tiny_spec(text=SMALL | text)
    model = build_model(spec)
    variables = filled(model, *inputs(spec, 1))
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return model, variables, mesh


def texts(ends, end_id=END):
    """Rows of random ids up to `end_id` at the positions `ends`, and zeros behind it."""
    random = np.random.default_rng(1)
    tokens = random.integers(1, END - 3, (len(ends), LENGTH)).astype(np.int32)
    for row, end in zip(tokens, ends, strict=True):
        row[end:] = 0
        row[end] = end_id
        if end_id < END and end + 1 < LENGTH:
            row[1] = row[end + 1] = END  # an added id on either side is no end
    return tokens


def encoded(encode, variables, mesh, tokens, cut=True):
    """Embeddings of the rows of one batch, as every reader makes them, or of all positions."""
    embed, layout = embed_fn(encode, mesh), RowLayout(mesh, len(tokens), len(tokens))
    if not cut:
        return np.asarray(embed(variables, tokens))
    ((found, _),) = run_batches(embed, variables, layout, lambda _: (tokens, None))
    return np.asarray(found)


@pytest.mark.parametrize("text", CUT.values(), ids=CUT)
def test_embeddings_are_the_same_without_what_is_behind_the_ends(text):
    model, variables, mesh = tower(text)
    encode = EncodeText(model)
    tokens = texts([2, 9, 15, 5], text.get("eot_id", END))
    assert encode.cut(tokens, mesh).shape == (4, 16)
    found = encoded(encode, variables, mesh, tokens)
    np.testing.assert_allclose(
        found, encoded(encode, variables, mesh, tokens, cut=False), atol=1e-6
    )
    if text == CUT["eot"]:  # negative control: a cut that takes an end with it is seen
        short = encoded(encode, variables, mesh, tokens[:, :15], cut=False)
        assert np.abs(short - found)[2].max() > 1e-3


@pytest.mark.parametrize("text", WHOLE.values(), ids=WHOLE)
def test_a_tower_that_reads_all_positions_is_given_all(text, monkeypatch):
    model, variables, mesh = tower(text)
    encode = EncodeText(model)
    tokens = texts([2, 9, 15, 5])
    assert encode.cut(tokens, mesh).shape == tokens.shape
    whole = encoded(encode, variables, mesh, tokens)
    # Negative control: cut all the same, it gives other numbers.
    monkeypatch.setattr(TextTransformer, "trims_behind_end_of_text", True)
    assert np.abs(encoded(EncodeText(model), variables, mesh, tokens) - whole).max() > 1e-3


def test_the_towers_of_the_zoo_that_are_cut_are_the_causal_ones():
    cut = set()
    for name, spec in MODELS.items():
        if getattr(build_model(spec).text_encoder, "trims_behind_end_of_text", False):
            cut.add(name)
    causal = {name for name, spec in MODELS.items() if spec["text"]["name"] == "causal_transformer"}
    assert {"ViT-B-32", "RN50", "ViT-bigG-14"} <= causal == cut
    assert not cut & {
        "siglip-b-16-224",
        "align-base",
        "xlm-roberta-base-ViT-B-32",
        "ViT-L-14-CLIPA",
    }


def test_a_tower_of_ones_own_says_for_itself_what_it_reads():
    class Own(TextTransformer):
        pass

    sizes = (VOCAB, LENGTH, 16, 1, 2, 32, "gelu")
    assert TextTransformer(*sizes).trims_behind_end_of_text
    assert not Own(*sizes).trims_behind_end_of_text
    assert not BidirectionalTransformer(*sizes).trims_behind_end_of_text


def test_few_lengths_are_compiled():
    traced = []

    class Counting(EncodeText):
        def __call__(self, variables, tokens):  # runs where a compilation begins
            traced.append(tokens.shape)
            return super().__call__(variables, tokens)

    model, variables, mesh = tower({"pooling": "eot", "depth": 1})
    encode = Counting(model)
    lengths = {encode.cut(texts([end]), mesh).shape[1] for end in range(1, LENGTH)}
    assert lengths == {16, 24, 32, 48, LENGTH}
    for end in (3, 15, 15, 16):
        encoded(encode, variables, mesh, texts([end]))
    assert traced == [(1, 16), (1, 24)]
    # A context that would lose less than a quarter keeps its one compilation.
    assert encode.cut(texts([3])[:, :20], mesh).shape[1] == 20
    assert encode.cut(texts([3])[:, :32], mesh).shape[1] == 16


@pytest.mark.slow
def test_a_model_cuts_texts_and_prompts(monkeypatch):
    spec = tiny_spec(text={"vocab_size": 49408, "context_length": LENGTH})
    variables = filled(build_model(spec), *inputs(spec, 1))
    model = clipjax.Model(spec, variables, batch_size=4)
    sentences = ["a cat", "a dog on a sofa", "one " * 20, "two " * 90, "", "last"]
    seen = []
    monkeypatch.setattr(
        RowLayout,
        "to_device",
        lambda self, rows, way=RowLayout.to_device: seen.append(rows) or way(self, rows),
    )

    def both():
        seen.clear()
        found = model.encode_text(sentences), model.zero_shot(["cat", "dog"], "openai_7").weights
        return found, [rows.shape[1] for rows in seen if rows.ndim == 2]

    cut, lengths = both()
    assert lengths == [LENGTH, 16] + 4 * [16]
    assert model.text_tokens(["a cat"]).shape[1] == LENGTH
    monkeypatch.setattr(encode_fns, "TEXT_LENGTHS", ())
    whole, lengths = both()
    assert set(lengths) == {LENGTH}
    for ours, wanted in zip(cut, whole, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-6)
