"""Token embeddings that are carried over to another vocabulary, row by row."""

import json

import numpy as np
import pytest
from checkpoints import write_checkpoint
from config_files import shipped
from tiny import tiny_spec
from vocabularies import OTHER_WORDS, WORDS, sentencepiece_model

from clipjax.checkpoint import make_contract
from clipjax.experiment import resolve
from clipjax.experiment.start import make_load_init
from clipjax.experiment.vocabulary import carry_over
from clipjax.models import abstract_variables
from clipjax.tokenizers import make_tokenizer
from clipjax.tokenizers.pieces import pieces_of

WIDTH = 16


def table_of(tokenizer):
    return np.random.default_rng(0).standard_normal((tokenizer.vocab_size, WIDTH)).astype("f")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabularies")
    (folder / "a.model").write_bytes(sentencepiece_model(WORDS))
    (folder / "b.model").write_bytes(sentencepiece_model((*WORDS, *OTHER_WORDS), 60))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "##s", "red", "circles", "zz"]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    return folder


def tokenizer(folder, file):
    name = "wordpiece" if file == "vocab.txt" else "sentencepiece"
    return make_tokenizer({"name": name, "model": str(folder / file)}, context_length=12)


def test_every_row_is_where_the_rule_says(folder):
    clip = make_tokenizer({"name": "clip_bpe"}, context_length=12)
    words, old = tokenizer(folder, "vocab.txt"), table_of(clip)
    found = carry_over(old, clip, words, 12)
    symbols = list(clip.symbols)
    # What is a word in one is a word in the other, what goes on goes on, and the ends are the ends.
    same = {"cat": "cat</w>", "##s": "s", "red": "red</w>", "[CLS]": "<|startoftext|>"}
    same["[SEP]"] = "<|endoftext|>"
    ids = words.backend.get_vocab()
    for piece, symbol in same.items():
        np.testing.assert_array_equal(found.table[ids[piece]], old[symbols.index(symbol)], piece)
    cut = clip.encode("circles")
    np.testing.assert_allclose(found.table[ids["circles"]], old[cut].mean(axis=0), rtol=1e-6)
    whole = [word for word in ("circles", "zz") if f"{word}</w>" in symbols]
    counts = (found.shared, found.composed, found.drawn)
    assert counts == (5 + len(whole), 2 - len(whole), 5)
    # [UNK], [MASK] and [PAD] are the words of nothing, and two rows have no token.
    rest = [found.table[ids[piece]] for piece in ("[UNK]", "[MASK]", "[PAD]")] + list(
        found.table[10:]
    )
    assert not any((row == old).all(axis=1).any() for row in rest)
    assert abs(np.mean(rest)) < 0.5 and 0.5 < np.std(rest) < 2
    assert f"{found.shared} of 12 rows" in str(found)


def test_the_same_vocabulary_keeps_every_row(folder):
    old = tokenizer(folder, "a.model")
    found = carry_over(table_of(old), old, old, old.vocab_size)
    np.testing.assert_array_equal(found.table, table_of(old))
    assert found.shared == old.vocab_size and found.composed == found.drawn == 0
    clip = make_tokenizer({"name": "clip_bpe"}, context_length=12)
    assert len(pieces_of(clip)) == clip.vocab_size


def test_a_larger_vocabulary_of_the_same_kind(folder):
    old, new = tokenizer(folder, "a.model"), tokenizer(folder, "b.model")
    known, wanted = pieces_of(old), pieces_of(new)
    found = carry_over(table_of(old), old, new, new.vocab_size)
    both = known.keys() & wanted.keys()
    assert 10 < len(both) < len(wanted) and found.shared == len(both)
    for piece in both:
        np.testing.assert_array_equal(found.table[wanted[piece]], table_of(old)[known[piece]])


class Words:
    """A tokenizer of one's own that does not say its pieces."""


def test_a_tokenizer_of_ones_own_is_asked_for_its_pieces(folder):
    old = tokenizer(folder, "a.model")
    with pytest.raises(ValueError, match=r"config.model.tokenizer.*Words .*a method pieces"):
        carry_over(table_of(old), old, Words(), 40)


SPEC = tiny_spec(text={"vocab_size": 49408, "depth": 1}, image={"depth": 1})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("base")
    write_checkpoint(workdir, SPEC)
    return workdir


def started(base, folder, **changes):
    """The parameters that a fine-tune with WordPiece starts from."""
    config = shipped("finetune", f"checkpoint={base},source=synthetic:16,batch_size=8,steps=1")
    with config.unlocked():
        config.model.tokenizer = {"name": "wordpiece", "model": str(folder / "vocab.txt")}
        config.model.text.vocab_size = 12
        config.update_from_flattened_dict(changes)
    resolved = resolve(config)
    made = make_tokenizer(resolved.spec["tokenizer"], context_length=8)
    load = make_load_init(resolved, make_contract(resolved.spec, made.contract()))
    shapes = abstract_variables(resolved.spec)["params"]

    class State:
        params, model_state = shapes, {}

        def replace(self, **changed):
            vars(self).update(changed)
            return self

    return load(State())[0].params


def test_a_fine_tune_starts_from_the_carried_table(base, folder):
    with pytest.raises(
        ValueError, match=r"largest id, .* set config\.model\.text\.eot_id = \d"
    ) as told:
        started(base, folder, **{"init.vocabulary": "carried"})
    end = int(str(told.value).rpartition("= ")[2])
    pooled = {"model.text.eot_id": end}
    found = started(base, folder, **{"init.vocabulary": "carried"}, **pooled)
    assert found["text_encoder"]["token_embedding"].shape == (12, 16)
    mean = {"model.text.pooling": "mean", "init.override": ("model.text.pooling",)}
    for other in (mean, {"model.text.eot_id": end + 1}):
        with pytest.raises(ValueError, match=rf"set config\.model\.text\.eot_id = {end}"):
            started(base, folder, **{"init.vocabulary": "carried"}, **other)
    with pytest.raises(ValueError, match=r"another model contract:(.|\n)*tokenizer.name"):
        started(base, folder, **pooled)
    manifest = json.loads((base / "checkpoints" / "1" / "manifest.json").read_text())
    assert manifest["contract"]["tokenizer"]["name"] == "clip_bpe"
