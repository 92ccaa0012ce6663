"""The fault matrix: some trials of its rows by default, each row's control, the rest nightly."""

import pytest

from tests.faults.row import Trial, upper_bound
from tests.faults.rows import all_rows

ROWS = all_rows()


def shared(tmp_path_factory, name):
    return tmp_path_factory.getbasetemp() / f"faults_{name}"


def cases(first, last):
    """(row, index) of the trials between two limits that a row gives."""
    return [
        pytest.param(row, index, id=f"{row.name}-{index}")
        for row in ROWS.values()
        for index in range(first(row), last(row))
    ]


def strike(row, index, tmp_path, tmp_path_factory):
    folder = shared(tmp_path_factory, row.name)
    folder.mkdir(exist_ok=True)
    row.run(Trial(index, tmp_path, folder))


@pytest.mark.parametrize(("row", "index"), cases(lambda row: 0, lambda row: row.default))
def test_default_trials(row, index, tmp_path, tmp_path_factory):
    strike(row, index, tmp_path, tmp_path_factory)


@pytest.mark.nightly
@pytest.mark.parametrize(("row", "index"), cases(lambda row: row.default, lambda row: row.trials))
def test_all_other_trials(row, index, tmp_path, tmp_path_factory):
    strike(row, index, tmp_path, tmp_path_factory)


@pytest.mark.nightly
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_each_row_can_fail(row, tmp_path, tmp_path_factory):
    folder = shared(tmp_path_factory, row.name)
    folder.mkdir(exist_ok=True)
    with pytest.raises(AssertionError):
        row.control(Trial(0, tmp_path, folder))


@pytest.mark.parametrize(
    ("failures", "trials", "rate"), [(0, 200, 0.0149), (0, 10_000, 0.0003), (1, 20, 0.2161)]
)
def test_upper_bound(failures, trials, rate):
    assert upper_bound(failures, trials) == pytest.approx(rate, rel=0.01)
    assert upper_bound(trials, trials) == 1
