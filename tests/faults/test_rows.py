"""The fault matrix: some trials of its rows by default, each row's control, the rest nightly."""

import pytest

from tests.faults import page
from tests.faults.row import Trial, upper_bound
from tests.faults.rows import all_rows
from tests.faults.run import shared_folder

ROWS = all_rows()


def cases(first, last):
    """(row, index) of the trials between two limits that a row gives."""
    return [
        pytest.param(row, index, id=f"{row.name}-{index}")
        for row in ROWS.values()
        for index in range(first(row), last(row))
    ]


def strike(row, index, tmp_path, tmp_path_factory):
    row.run(Trial(index, tmp_path, shared_folder(row, tmp_path_factory.getbasetemp())))


@pytest.mark.parametrize(("row", "index"), cases(lambda row: 0, lambda row: row.default))
def test_default_trials(row, index, tmp_path, tmp_path_factory):
    strike(row, index, tmp_path, tmp_path_factory)


@pytest.mark.nightly
def test_all_other_trials(row, index, tmp_path, tmp_path_factory):
    strike(row, index, tmp_path, tmp_path_factory)


def pytest_generate_tests(metafunc):
    """Makes the other trials, which are thousands, where they are not left out anyhow."""
    if metafunc.definition.originalname == "test_all_other_trials":
        left_out = "not nightly" in metafunc.config.getoption("markexpr")
        others = [] if left_out else cases(lambda row: row.default, lambda row: row.trials)
        metafunc.parametrize(("row", "index"), others)


@pytest.mark.nightly
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_each_row_can_fail(row, tmp_path, tmp_path_factory):
    with pytest.raises(AssertionError):
        row.control(Trial(0, tmp_path, shared_folder(row, tmp_path_factory.getbasetemp())))


@pytest.mark.parametrize(
    ("failures", "trials", "rate"), [(0, 200, 0.0149), (0, 10_000, 0.0003), (1, 20, 0.2161)]
)
def test_upper_bound(failures, trials, rate):
    assert upper_bound(failures, trials) == pytest.approx(rate, rel=0.01)
    assert upper_bound(trials, trials) == 1


def test_the_page_holds_what_was_recorded():
    text, records = page.PAGE.read_text(), page.read_records(page.RESULTS)
    assert page.with_table(text, records) == text, "python -m tests.faults.page writes it again"
    changed = [{**records[0], "failures": [{"trial": 0, "error": "x"}], "date": "2999"}]
    assert page.with_table(text, records + changed) != text  # negative control
    for record in records:
        assert record["machine"].keys() == {"cpu", "cores", "memory_gib", "load_average", "gpus"}
        assert "/" not in record["commit"]


def test_parts_of_a_row_add_up_and_a_part_that_was_run_again_counts_once():
    part = {"first": 0, "trials": 4, "date": "1", "control_failed": True}
    other = part | {"first": 2, "strikes": 2}  # two trials
    again = part | {"date": "3"}
    assert page.newest([part, part | {"first": 4, "date": "2"}]) != [part]
    assert page.newest([again, part]) == [again]
    assert len(page.newest([part, other | {"first": 4}])) == 2
    assert page.newest([part, part | {"control_failed": False, "date": "9"}]) == [part]
