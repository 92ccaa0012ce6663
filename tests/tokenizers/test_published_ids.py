"""The tokenizers of the zoo's rows give the reference implementations' ids for messy captions."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from messy_captions import BLOCK, captions, hashes

from clipjax.checkpoint import needs_file
from clipjax.models.zoo import MODELS
from clipjax.tokenizers import cleaning, clip_bpe, make_tokenizer
from clipjax.tokenizers.wordpiece import VOCABULARY

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/tokenizers/captions.json").read_text())
# reference: (row of the zoo, vocabulary where it is not shipped)
CASES = {
    "clip_bpe": ("ViT-B-32", None),
    "align": ("align-base", None),
    "clipa": ("ViT-H-14-CLIPA", None),
    "siglip": ("siglip-b-16-224", "c4.model"),
    "siglip2": ("siglip2-b-16-224", "gemma.model"),
    "xlm_roberta": ("xlm-roberta-base-ViT-B-32", "xlm_roberta.json"),
}
TIES = {int(number): ids for number, ids in GOLDEN["ties"].items()}


@pytest.fixture(scope="module")
def texts():
    return captions()


@pytest.fixture
def make(vocabulary):
    def make(case, **options):
        row, file = CASES[case]
        files = {"model": vocabulary(file)} if file else {}
        spec = {**MODELS[row]["tokenizer"], **files, **options}
        return make_tokenizer(spec, context_length=MODELS[row]["text"]["context_length"])

    return make


def wrong_blocks(case, rows):
    """Thousands of captions whose ids are not the reference's."""
    pairs = zip(hashes(rows), GOLDEN["hashes"][case], strict=False)
    return [number for number, (ours, theirs) in enumerate(pairs) if ours != theirs]


@pytest.mark.parametrize("number", [3_000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [case for case in CASES if case != "siglip"])
def test_ids_are_the_reference_s(case, number, make, texts):
    assert len(GOLDEN["hashes"][case]) * BLOCK == len(texts) == 20_000
    assert wrong_blocks(case, make(case)(texts[:number])) == []


def test_siglip_s_ids_are_the_reference_s_but_for_ties(make, texts, vocabulary):
    """transformers' rounding takes another of two segmentations of one score, 4 times."""
    rows = make("siglip")(texts)
    assert 0 < len(TIES) <= 4
    processor = sentencepiece.SentencePieceProcessor(model_file=vocabulary("c4.model"))
    for number, theirs in TIES.items():
        ours = rows[number].tolist()
        assert ours != theirs and processor.decode(ours) == processor.decode(theirs)
        scores = [sum(map(processor.get_score, ids)) for ids in (ours, theirs)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)
        rows[number] = theirs
    assert wrong_blocks("siglip", rows) == []


def test_every_row_of_the_zoo_has_its_tokenizer(vocabulary):
    files = {
        "sentencepiece": vocabulary("gemma.model"),
        "tokenizer_json": vocabulary("xlm_roberta.json"),
        "wordpiece": str(VOCABULARY),  # of Chinese-CLIP's own, the special tokens alone matter here
    }
    built = {}
    for name, row in MODELS.items():
        spec, text = dict(row["tokenizer"]), row["text"]
        length = text["context_length"]
        shipped = not needs_file(spec)
        if not shipped:
            spec["model"] = files[spec["name"]]
        key = (json.dumps(spec), length)
        if key not in built:
            tokenizer = make_tokenizer(spec, context_length=length)
            built[key] = tokenizer, tokenizer(["a photo of a cat", "word " * 200])
        tokenizer, rows = built[key]
        assert rows.shape == (2, length) and rows[0, -1] == tokenizer.pad_id, name
        assert not shipped or tokenizer.vocab_size <= text["vocab_size"], name
        # BERT's tower masks its padding, and has to know it.
        assert text["name"] != "bert" or tokenizer.pad_id == text.get("pad_id", 0), name


@pytest.mark.parametrize(
    "case, fault",
    [
        ("clip_bpe", "no second unescaping"),
        ("clip_bpe", "end lost when cut"),
        ("align", {"lower_case": False}),
        ("align", {"end_token": "none"}),
        ("clipa", {"end_token": "kept"}),
        ("clipa", {"end_token": "none"}),
        ("clipa", {"cleaning": ()}),
        ("siglip", {"cleaning": ("lower", "collapse_whitespace")}),
        ("siglip", {"pad_id": 0}),
        ("siglip2", {"cleaning": ()}),
        ("siglip2", {"cleaning": ("lower",)}),
        ("siglip2", {"start_id": 2}),
        ("xlm_roberta", {"pad_id": 0}),
        ("xlm_roberta", {"cleaning": ("fix_text", "collapse_whitespace", "lower")}),
    ],
    ids=str,
)
def test_a_changed_rule_is_seen(case, fault, make, texts, monkeypatch):
    """Negative control: each rule that is changed changes the hash of a thousand captions."""
    texts = texts[:BLOCK]
    if fault == "no second unescaping":
        monkeypatch.setattr(clip_bpe, "fix_text", cleaning.ftfy.fix_text)
    tokenizer = make(case, **(fault if isinstance(fault, dict) else {}))
    rows = tokenizer(texts)
    if fault == "end lost when cut":
        cut = rows[:, -1] == tokenizer.end_id
        rows[cut, -1] = rows[cut, -2]
    assert wrong_blocks(case, rows) == [0]


@pytest.mark.interop
@pytest.mark.parametrize("case", CASES)
def test_live(case, make, texts):
    import reference_tokenizers

    rows, theirs = make(case)(texts), reference_tokenizers.encode(case, texts)
    different = np.flatnonzero((rows != theirs).any(axis=1)).tolist()
    assert different == (sorted(TIES) if case == "siglip" else [])


@pytest.mark.interop
def test_live_bert_in_python(make, texts):
    import reference_tokenizers

    np.testing.assert_array_equal(make("align")(texts), reference_tokenizers.align_python(texts))


@pytest.mark.interop
def test_live_siglip_with_bytes_for_what_is_unknown(texts, tmp_path):
    """As mC4's vocabulary of the multilingual models, which falls back to bytes."""
    import reference_tokenizers

    path = tmp_path / "mc4.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(" ".join(x.replace("\0", " ").split()) or "x" for x in texts[:3000]),
            model_writer=file,
            vocab_size=1500,
            byte_fallback=True,
            character_coverage=0.98,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    spec = {**MODELS["siglip-b-16-256-i18n"]["tokenizer"], "model": str(path)}
    rows = make_tokenizer(spec, context_length=64)(texts)
    theirs = reference_tokenizers.siglip(texts, str(path))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for ours, reference in zip(rows.tolist(), theirs.tolist(), strict=True):
        if ours != reference:  # only where two segmentations have the same score
            scores = [sum(map(processor.get_score, ids)) for ids in (ours, reference)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-3)
    assert (rows != theirs).any(axis=1).sum() < 20


@pytest.mark.interop
def test_live_clip_of_transformers(make, texts):
    """The same ids up to the end token, where no HTML entity is resolved a second time.

    transformers fills the rest of a row with the end token instead of 0.
    """
    import reference_tokenizers

    texts = [text for text in texts if "&" not in text]
    tokenizer = make("clip_bpe")
    rows = tokenizer(texts)
    theirs = reference_tokenizers.hugging_face_clip(
        texts, tokenizer.symbols, clip_bpe.load_merges()
    )
    after_end = np.cumsum(rows == tokenizer.end_id, axis=1) - (rows == tokenizer.end_id)
    np.testing.assert_array_equal(np.where(after_end, tokenizer.end_id, rows), theirs)
    assert len(texts) > 12_000
