"""Leaves by name."""

import numpy as np
import pytest

from clipjax import trees


def test_names_go_there_and_back():
    tree = {"a": {"b": np.zeros((2, 3)), "c": np.ones(4)}, "d": np.zeros(())}
    leaves = dict(trees.flatten_with_names(tree))
    assert sorted(leaves) == ["a/b", "a/c", "d"]
    back = trees.unflatten_names(leaves)
    assert back["a"]["b"] is tree["a"]["b"] and back["d"] is tree["d"]
    assert trees.count_parameters(tree) == 11
    assert trees.count_bytes(tree) == 88


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_leaf_is_no_folder(names):
    with pytest.raises(ValueError, match="'a"):
        trees.unflatten_names(dict.fromkeys(names, 0))
