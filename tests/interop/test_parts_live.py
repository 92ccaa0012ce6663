"""Models with added tokens, and towers alone, as transformers itself writes them."""

import numpy as np
import pytest
from hugging_face_case import edit, inputs, make_directory, read, run
from small_weights import assert_same, leaves_of

from clipjax.interop import Hints, hugging_face
from clipjax.interop.converting import convert_weights
from clipjax.tokenizers import make_tokenizer

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

TEXTS = ["a <S1> of a cat", "<S1><Dog>x", "the newword dogs", "no news, a Newwordy <dog>", "x <s1>"]


@pytest.fixture
def reference():
    import transformers_reference

    return transformers_reference


@pytest.fixture
def whole(tmp_path):
    """A directory with all its files."""
    make_directory(tmp_path / "start", "clip")
    hugging_face.write(tmp_path / "whole", read(tmp_path / "start"))
    edit(tmp_path / "whole", "config.json", "text_config", "eos_token_id", value=49407)
    return tmp_path / "whole"


@pytest.mark.parametrize("kind", ["CLIPTokenizerFast", "CLIPTokenizer"])
def test_added_tokens(reference, whole, tmp_path, kind):
    torch = reference.torch
    tokenizer = getattr(reference.transformers, kind).from_pretrained(whole)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<S1>"]})
    tokenizer.add_tokens(["<Dog>", "newword"])
    model, _ = reference.load("CLIPModel", whole)
    torch.manual_seed(0)
    # resize_token_embeddings, which CLIPModel does not have.
    old = model.text_model.embeddings.token_embedding.weight.data
    table = torch.nn.Embedding(len(tokenizer), old.shape[1])
    table.weight.data[: len(old)] = old
    model.text_model.embeddings.token_embedding = table
    model.config.text_config.vocab_size = len(tokenizer)
    tokenizer.save_pretrained(tmp_path / "theirs")
    model.save_pretrained(tmp_path / "theirs")
    edit(tmp_path / "theirs", "config.json", "clipjax", value=None)

    weights = read(tmp_path / "theirs")
    assert weights.spec["text"]["vocab_size"] == 49411
    ours = make_tokenizer(weights.spec["tokenizer"], context_length=16)(TEXTS)
    theirs = [tokenizer(text, truncation=True, max_length=16)["input_ids"] for text in TEXTS]
    if kind == "CLIPTokenizer":
        # The slow one looks for normalized tokens in the text as it is; ours is the fast one.
        fast = reference.transformers.CLIPTokenizerFast.from_pretrained(tmp_path / "theirs")
        theirs = [fast(text, truncation=True, max_length=16)["input_ids"] for text in TEXTS]
    assert [row[: len(ids)].tolist() for row, ids in zip(ours, theirs, strict=True)] == theirs
    assert any(number > 49407 for ids in theirs for number in ids)
    features = model.get_text_features(torch.tensor(ours, dtype=torch.long)).detach().numpy()
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    images, _ = inputs(weights.spec)
    found = np.concatenate([run(weights, images, ours[i : i + 1])[1] for i in range(len(ours))])
    assert np.abs(found - features).max() <= 2e-6


def test_towers_that_transformers_saves(reference, whole, tmp_path):
    for name in ("CLIPVisionModelWithProjection", "CLIPTextModelWithProjection", "CLIPVisionModel"):
        reference.load(name, whole)[0].save_pretrained(tmp_path / name)
    convert_weights(whole, tmp_path / "wanted", "clipjax")
    wanted = leaves_of(tmp_path / "wanted")
    scale = float(np.exp(wanted["logit_scale"].astype(np.float64)))
    image, text = (tmp_path / f"CLIP{part}ModelWithProjection" for part in ("Vision", "Text"))
    pairs = {
        "both": (image, Hints(text_from=text, logit_scale=scale)),
        "image": (image, Hints(text_from=whole)),
        "text": (whole, Hints(text_from=text)),
        "plain": (tmp_path / "CLIPVisionModel", Hints(text_from=whole)),
    }
    for name, (source, hints) in pairs.items():
        convert_weights(source, tmp_path / name, "clipjax", hints=hints)
        found = leaves_of(tmp_path / name)
        np.testing.assert_allclose(found.pop("logit_scale"), wanted["logit_scale"], rtol=1e-6)
        assert_same(found, {n: x for n, x in wanted.items() if n != "logit_scale"})
