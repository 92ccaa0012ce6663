import collections
import json
import pickle
from fractions import Fraction

import numpy as np
import pytest
from archives import pairs, tar
from hypothesis import given, settings
from hypothesis import strategies as st

from clipjax.data import Loader, Preprocess, SampleError, make_source
from clipjax.data.source import draw
from clipjax.data.sources.mix import MAX_TOTAL, Mix, split_positions, whole_weights

weights_lists = st.lists(st.integers(1, 50), min_size=1, max_size=6)


class Letters:
    class_names = None

    def __init__(self, letter, count):
        self.letter, self.count = letter, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return {"image": b"", "text": self.letter, "key": f"{self.letter}{index}"}

    def fingerprint(self):
        return f"{self.letter}/{self.count}"


TWO = json.dumps([{"spec": letter, "weight": 1} for letter in "ab"])


def mix_of(*letters):
    """A mix of (letter, count, weight)."""
    sources = {letter: Letters(letter, count) for letter, count, _ in letters}
    specs = [{"spec": letter, "weight": weight} for letter, _, weight in letters]
    return Mix(json.dumps(specs), make=lambda spec, _: sources[spec["spec"]])


def slowly(weights, count):
    """The same rule without numpy, by counting: which source, and how often it came before."""
    seen, found = [0] * len(weights), []
    for position in range(count):
        place, rest = position, sum(weights)
        for source, weight in enumerate(weights):
            share = place * weight // rest
            if source == len(weights) - 1 or (place + 1) * weight // rest > share:
                break
            place, rest = place - share, rest - weight
        found.append((source, seen[source]))
        seen[source] += 1
    return found


@settings(deadline=None, max_examples=60)
@given(weights_lists)
def test_every_source_gets_its_share_everywhere(weights):
    total = sum(weights)
    sources, draws = split_positions(np.arange(4 * total), weights)
    assert list(zip(sources.tolist(), draws.tolist(), strict=True)) == slowly(weights, 4 * total)
    for source, weight in enumerate(weights):
        mine = sources == source
        assert mine.sum() == 4 * weight
        ideal = np.arange(1, 4 * total + 1) * weight / total
        assert np.abs(np.cumsum(mine) - ideal).max() <= len(weights)
        window = np.convolve(mine, np.ones(total, int), "valid")
        assert (window == weight).all()


@settings(deadline=None, max_examples=100)
@given(weights_lists, st.lists(st.integers(0, 10**16), min_size=1, max_size=20))
def test_any_position_costs_the_same_and_is_exact(weights, positions):
    sources, draws = split_positions(np.array(positions), weights)
    for position, source, number in zip(positions, sources, draws, strict=True):
        place, rest = position, sum(weights)  # in Python's whole numbers, which have no limit
        for other, weight in enumerate(weights):
            share = place * weight // rest
            if other == source:
                assert number == share and (place + 1) * weight // rest > share
                break
            assert (place + 1) * weight // rest == share
            place, rest = place - share, rest - weight


def test_large_weights_do_not_overflow():
    weights = (MAX_TOTAL // 2, MAX_TOTAL // 3)
    position = np.array([0, 5 * 10**15 + 3, 9 * 10**17])
    draws = split_positions(position, weights)[1]
    assert (draws >= 0).all() and (draws <= position).all()
    share = weights[0] / sum(weights)
    many = split_positions(np.arange(10**15, 10**15 + 30_000), weights)[0]
    assert (many == 0).mean() == pytest.approx(share, abs=1e-4)


def letters_of(mix, positions, seed=0):
    return [mix[int(i)]["key"] for i in draw(mix, np.asarray(positions), seed)]


def test_a_source_is_traversed_before_it_repeats():
    mix = mix_of(("a", 7, 3), ("b", 50, 1), ("c", 2, 0.5))
    stream = letters_of(mix, range(900))
    counts = collections.Counter(key[0] for key in stream)
    assert counts == {"a": 600, "b": 200, "c": 100}
    orders = collections.defaultdict(set)
    for letter, size in (("a", 7), ("b", 50), ("c", 2)):
        own = [key for key in stream if key[0] == letter]
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size])) == size
            orders[letter].add(tuple(own[start : start + size]))
    assert len(orders["a"]) > 80 and len(orders["b"]) == 4 and len(orders["c"]) == 2


def test_the_stream_depends_on_position_and_seed_alone():
    mix = mix_of(("a", 70, 2), ("b", 30, 1))
    whole = letters_of(mix, range(240))
    for parts in (2, 3, 4, 7, 8, 16):
        pieces = np.array_split(np.arange(240), parts)
        assert [key for piece in pieces for key in letters_of(mix, piece)] == whole
    assert letters_of(mix, range(239, -1, -1)) == whole[::-1]
    assert letters_of(mix, range(240), seed=1) != whole
    assert [k[0] for k in letters_of(mix, range(240), seed=1)] == [k[0] for k in whole]
    # Sources of one size are not in step with one another.
    twins = mix_of(("a", 20, 1), ("b", 20, 1))
    stream = letters_of(twins, range(40))
    assert [k[1:] for k in stream[::2]] != [k[1:] for k in stream[1::2]]


def test_a_source_without_an_order_is_permuted_anew_every_epoch():
    """Negative control: what a mix would be without its own order."""
    letters = Letters("a", 30)
    first, second = (draw(letters, np.arange(30) + start, 0).tolist() for start in (0, 30))
    assert sorted(first) == sorted(second) == list(range(30)) and first != second


def test_as_a_sequence_it_holds_every_example_once():
    mix = mix_of(("a", 3, 1), ("b", 2, 9))
    assert [mix[i]["key"] for i in range(len(mix))] == ["a0", "a1", "a2", "b0", "b1"]
    with pytest.raises(IndexError):
        mix[5]


def test_fingerprint():
    base = mix_of(("a", 3, 1), ("b", 2, 2)).fingerprint()
    assert mix_of(("a", 3, 0.5), ("b", 2, 1)).fingerprint() == base
    for other in (
        (("a", 3, 1), ("b", 2, 1)),
        (("b", 2, 2), ("a", 3, 1)),
        (("a", 4, 1), ("b", 2, 2)),
    ):
        assert mix_of(*other).fingerprint() != base


def test_weights():
    def whole(*weights):
        return whole_weights([Fraction(str(weight)) for weight in weights])

    assert whole(0.7, 0.2, 0.1) == (7, 2, 1)
    assert whole(12_000_000, 400_000_000) == (3, 100)
    assert whole(5) == (1,) and whole(1e-3, 1) == (1, 1000)
    with pytest.raises(ValueError, match="round them"):
        whole(0.123456789012, 0.876543210987)


def test_by_a_spec(tmp_path, cache):
    tar(tmp_path / "a.tar", [*pairs(4), ("00000.npy", b"1")])
    specs = [
        {"spec": f"tar:{tmp_path}/a.tar?ignore=npy", "weight": 3},
        {"spec": "synthetic:10", "weight": 1, "side": 32},
    ]
    inline = make_source(f"mix:{json.dumps(specs)}")
    assert len(inline) == 14 and inline[4]["image"].shape == (32, 32, 3)
    assert inline.class_names is None and "label" not in inline[4]
    (tmp_path / "mix.json").write_text(json.dumps(specs))
    source = make_source(f"mix:{tmp_path}/mix.json")
    assert source.fingerprint() == inline.fingerprint() and source.weights == (3, 1)
    assert pickle.loads(pickle.dumps(source))[2]["key"] == "a.tar/00002"
    same = [{"spec": "synthetic:10", "weight": 1}, {"spec": "synthetic:20", "weight": 1}]
    labelled = make_source(f"mix:{json.dumps(same)}")
    assert labelled.class_names is not None and labelled[12]["label"] == 2


@pytest.mark.parametrize(
    "where, message",
    [
        ("/no/such/file.json", "no file"),
        ("[", "no JSON"),
        ("[" * 10**5, "no JSON"),
        (f"[{'9' * 5000}]", "no JSON"),
        ("{}", "no file"),
        ("[1]", "no list of objects"),
        ('[{"weight": 1}]', "no list of objects"),
        ("[]", "no sources"),
        ('[{"spec": "synthetic:10"}]', "source 0 .* weight None"),
        ('[{"spec": "synthetic:10", "weight": 0}]', "weight 0"),
        ('[{"spec": "synthetic:10", "weight": true}]', "weight True"),
        ('[{"spec": "synthetic:10", "weight": NaN}]', "weight nan"),
        ('[{"spec": "nonsense:10", "weight": 1}]', r"data.source\[0\].*unknown kind"),
        ('[{"spec": "synthetic:10", "weight": 1, "sides": 3}]', "sides"),
    ],
)
def test_wrong_mixes(where, message):
    with pytest.raises(ValueError, match=message):
        make_source(f"mix:{where}")


def test_mixes_are_flat():
    inner = "mix:" + json.dumps([{"spec": "synthetic:9", "weight": 1}])
    with pytest.raises(ValueError, match="a mix holds a mix"):
        make_source("mix:" + json.dumps([{"spec": inner, "weight": 1}]))


def test_it_says_of_itself_what_its_sources_say():
    def mixed(*said):
        sources = [Letters(letter, 4) for letter in "ab"]
        for source, facts in zip(sources, said, strict=True):
            vars(source).update(facts)
        return Mix(TWO, make=lambda spec, number: sources[number])

    named = {"first_label": 1, "numbered_from": 1, "templates": ("a {}",)}
    mix = mixed(named | {"matched": "name"}, named | {"matched": "order", "task": "retrieval"})
    assert {fact: getattr(mix, fact) for fact in named} == named
    assert (mix.matched, mix.task) == ("order", "retrieval")
    other = mixed(named, {"first_label": 0, "task": None})
    assert {getattr(other, fact) for fact in (*named, "matched", "task")} == {None}


def test_options_belong_to_the_sources():
    with pytest.raises(ValueError, match="side belong"):
        make_source({"spec": 'mix:[{"spec": "synthetic:10", "weight": 1}]', "side": 3})


def test_batches_keep_the_shares():
    sizes = {"a": 40, "b": 60}
    mix = mix_of(("a", 40, 3), ("b", 60, 1))
    source = Pictures(mix)
    seen = collections.defaultdict(list)
    with Loader(
        source, (), tokens_of, batch_size=20, seed=5, preprocess=Preprocess(2), num_workers=0
    ) as loader:
        for step in range(20):
            letters = [chr(code) for code in loader.batch(step)["text"][:, 0]]
            assert collections.Counter(letters) == {"a": 15, "b": 5}
        expected = letters_of(mix, range(20, 40), seed=5)
        numbers = loader.batch(1)["image"][:, 0, 0, 0].tolist()
        assert numbers == [int(key[1:]) for key in expected]
        for step in range(40):
            batch = loader.batch(step)
            pairs_ = zip(batch["text"][:, 0], batch["image"][:, 0, 0, 0], strict=True)
            for code, number in pairs_:
                seen[chr(code)].append(int(number))
    for letter, numbers in seen.items():
        size = sizes[letter]
        for start in range(0, len(numbers) - size + 1, size):
            assert sorted(numbers[start : start + size]) == list(range(size))


def test_what_is_left_out_of_a_source_is_replaced_from_it():
    """Half of b is unusable; weights 1:9 stay 1:9, and a batch depends on its step alone."""
    mix = mix_of(("a", 90, 1), ("b", 10, 9))
    source = Pictures(mix, bad=[f"b{i}" for i in range(5)])

    def make(**options):
        options = {"num_workers": 0, "max_bad_fraction": 1.0, **options}
        return Loader(
            source, (), tokens_of, batch_size=50, seed=3, preprocess=Preprocess(2), **options
        )

    walked = []
    with make() as loader:
        for step, batch in loader.iterate():
            letters = [chr(code) for code in batch["text"][:, 0]]
            assert collections.Counter(letters) == {"a": 5, "b": 45}
            walked.append(batch["image"])
            if step == 9:
                break
        assert loader.counts()["filtered_planted"] > 200
    parts = [make(process_index=i, process_count=2).batch(7)["image"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), walked[7])
    numbers = np.concatenate(walked)[:, 0, 0, 0]
    assert set(range(5, 10)) <= set(numbers.tolist())


class Pictures:
    """A mix whose examples are pictures of their numbers; some may be left out."""

    class_names = None

    def __init__(self, mix, bad=()):
        self.mix, self.bad = mix, set(bad)
        self.draw, self.alternatives, self.fingerprint = mix.draw, mix.alternatives, mix.fingerprint

    def __len__(self):
        return len(self.mix)

    def __getitem__(self, index):
        example = self.mix[index]
        if example["key"] in self.bad:
            raise SampleError("filtered_planted", "it is left out", example["key"])
        image = np.full((2, 2, 3), int(example["key"][1:]), np.uint8)
        return {**example, "image": image}


def tokens_of(texts):
    return np.array([[ord(text)] for text in texts], np.int32)
