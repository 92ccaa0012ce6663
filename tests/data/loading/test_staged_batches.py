"""Batches of a run in stages of other sizes and other data: a function of the step alone."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipjax.data.images.preprocess import Preprocess
from clipjax.data.loading.loader import Loader
from clipjax.data.loading.rows import Finishing
from clipjax.data.source import draw
from clipjax.data.sources.mix import Mix


class Numbers:
    """Example i has the caption str(first + i)."""

    class_names = None

    def __init__(self, size, first=0):
        self.size, self.first = size, first

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        number = self.first + index
        return {"image": np.zeros((2, 2, 3), np.uint8), "text": str(number), "key": str(number)}

    def fingerprint(self):
        return hashlib.sha256(f"{self.size} {self.first}".encode()).hexdigest()


def mix_of(*weights):
    listed = [{"spec": "", "weight": weight} for weight in weights]
    return Mix(json.dumps(listed), make=lambda _, number: Numbers(30 + number, 1000 * number))


def tokens_of(texts):
    return np.array([[int(text)] for text in texts], np.int32)


SOURCES = [Numbers(96), mix_of(1, 3), mix_of(5, 2, 1)]


def loader_of(stages, **options):
    """A loader of stages, each (steps, batch size, source); the last one is the run's own."""
    ends = np.cumsum([steps for steps, _, _ in stages[:-1]]).tolist()
    how = [
        Finishing((), tokens_of, Preprocess(2), batch_size=size, source=source)
        for _, size, source in stages[:-1]
    ]
    _, size, source = stages[-1]
    return Loader(
        source,
        (),
        tokens_of,
        batch_size=size,
        seed=3,
        preprocess=Preprocess(2),
        stages=list(zip(ends, how, strict=True)),
        num_workers=0,
        **options,
    )


def drawn_in_turn(stages):
    """What a loop would draw that goes through the stages and counts what it has of each source."""
    taken = dict.fromkeys(map(id, SOURCES), 0)
    for steps, size, source in stages:
        for _ in range(steps):
            positions = taken[id(source)] + np.arange(size)
            taken[id(source)] += size
            yield [int(source[i]["text"]) for i in draw(source, positions, 3)]


STAGES = st.lists(
    st.tuples(st.integers(1, 4), st.sampled_from([4, 8, 12, 24]), st.sampled_from(SOURCES)),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=20)
@given(stages=STAGES, hosts=st.sampled_from([1, 2, 4]), order=st.randoms())
def test_a_batch_is_a_function_of_the_step_whatever_the_stages_and_the_hosts(stages, hosts, order):
    wanted = list(drawn_in_turn(stages))
    loaders = [loader_of(stages, process_index=i, process_count=hosts) for i in range(hosts)]
    steps = list(range(len(wanted)))
    order.shuffle(steps)  # nothing is remembered from step to step
    for step in steps:
        found = [loader.batch(step)["text"][:, 0] for loader in loaders]
        assert np.concatenate(found).tolist() == wanted[step]
        assert len(loaders[0].indices(step)) == len(wanted[step])


def test_a_stage_goes_on_in_its_source_where_the_last_one_with_it_ended():
    """Each of the 96 examples comes once, in batches of 24, 8 and 16, others between them."""
    one, other, _ = SOURCES
    stages = [(2, 24, one), (3, 12, other), (2, 8, one), (2, 16, one)]
    loader = loader_of(stages)
    of_one = [loader.batch(step)["text"][:, 0] for step in (0, 1, 5, 6, 7, 8)]
    assert sorted(np.concatenate(of_one).tolist()) == list(range(96))


def test_the_oracle_sees_a_stage_that_is_a_step_longer():
    """Negative control."""
    stages = [(2, 24, SOURCES[0]), (3, 12, SOURCES[0])]
    wanted = list(drawn_in_turn([(3, 24, SOURCES[0]), (2, 12, SOURCES[0])]))
    loader = loader_of(stages)
    same = [loader.batch(step)["text"][:, 0].tolist() == wanted[step] for step in range(5)]
    assert same == [True, True, False, False, False]


def test_the_fingerprint_tells_the_data_of_a_stage():
    one, other, _ = SOURCES
    plain = loader_of([(2, 24, one)]).fingerprint()
    assert loader_of([(3, 8, one), (2, 24, one)]).fingerprint() == plain
    assert loader_of([(3, 8, other), (2, 24, one)]).fingerprint() != plain


@pytest.mark.parametrize(
    ("stage", "options", "words"),
    [
        ((2, 97, SOURCES[0]), {}, "batch_size is 97, the data source holds 96"),
        ((2, 62, SOURCES[1]), {}, "batch_size is 62, the data source holds 61"),
        ((2, 9, SOURCES[0]), {"process_count": 4}, "is 9: it has to be a multiple of .* 4"),
        ((2, 8, Numbers(0)), {}, "the data source is empty"),
    ],
)
def test_a_stage_that_cannot_be_made_is_refused(stage, options, words):
    with pytest.raises(ValueError, match=words):
        loader_of([stage, (2, 8, SOURCES[0])], **options)
