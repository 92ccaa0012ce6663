import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipjax.data.permutation import example_index, permute


@settings(deadline=None, max_examples=150)
@given(n=st.integers(1, 3000), key=st.integers(0, 2**63))
def test_each_index_exactly_once(n, key):
    assert sorted(permute(np.arange(n), n, key)) == list(range(n))


@settings(deadline=None, max_examples=100)
@given(n=st.integers(1, 10**10), seed=st.integers(0, 2**32), data=st.data())
def test_one_index_at_a_time_or_many_is_the_same(n, seed, data):
    places = data.draw(st.lists(st.integers(0, 2 * n), min_size=1, max_size=6))
    epochs, index = example_index(np.array(places), n, seed)
    assert epochs.tolist() == [place // n for place in places]
    assert ((index >= 0) & (index < n)).all()
    assert index.tolist() == [int(example_index(place, n, seed)[1]) for place in places]


def test_ten_thousand_million_examples():
    n = 10**10
    index = permute(np.arange(200_000), n, 7)
    assert len(np.unique(index)) == 200_000
    # Uniform over the range: chi-square over 100 bins, 99 degrees of freedom.
    counts = np.histogram(index, bins=100, range=(0, n))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 160


def test_epochs_and_seeds_differ():
    n = 1000
    orders = [tuple(permute(np.arange(n), n, (seed, e))) for seed in range(3) for e in range(3)]
    assert len(set(orders)) == 9
    # No more fixed points or kept neighbours than chance (mean 1).
    for order in orders:
        order = np.array(order)
        assert (order == np.arange(n)).sum() < 8
        assert (np.diff(order) == 1).sum() < 8


def test_small_permutations_are_all_found():
    """Negative control of the mixing: every order of 4 elements occurs, none far too often."""
    orders = [tuple(permute(np.arange(4), 4, key)) for key in range(2400)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24 and counts.min() > 50 and counts.max() < 160


GOLDEN = [int(i) for i in permute(np.arange(8), 1000, (0, 0))]


def test_the_same_in_another_process_and_for_ever():
    code = "import numpy as np; from clipjax.data.permutation import permute; "
    code += "print(permute(np.arange(8), 1000, (0, 0)).tolist())"
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.strip() == str(GOLDEN), out.stderr
    # A resumed run of an older version continues its order only if this never changes.
    assert GOLDEN == PINNED


PINNED = [977, 921, 683, 838, 622, 29, 523, 626]


def test_bad_input():
    with pytest.raises(ValueError, match="n is 0"):
        permute(0, 0, 1)
    with pytest.raises(ValueError, match="outside"):
        permute(np.array([5]), 5, 1)
    with pytest.raises(ValueError, match="negative"):
        example_index(-1, 5, 1)
