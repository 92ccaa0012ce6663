"""Tables of a classification, by class, against what was counted by hand."""

import numpy as np

from clipjax.evals import class_tables
from clipjax.evals.class_tables import tables_of


def test_classes_and_answers_are_counted(monkeypatch):
    labels, answers = np.array([0, 0, 0, 2, 2]), np.array([0, 2, -1, 2, 1])  # -1: no answer
    tables = tables_of(("a", "b", "c"), labels, answers)
    found = {row.pop("name"): tuple(row.values()) for row in tables["per_class"]}
    # Examples, answers, hits, recall, precision.
    assert found == {
        "a": (3, 1, 1, 1 / 3, 1.0),
        "b": (0, 1, 0, None, 0.0),
        "c": (2, 2, 1, 0.5, 0.5),
    }
    assert tables["confusion"] == {"0": {"0": 1, "2": 1}, "2": {"1": 1, "2": 1}}
    monkeypatch.setattr(class_tables, "MAX_CONFUSION", 2)
    assert "confusion" not in tables_of(("a", "b", "c"), labels, answers)
