"""The best step by a metric is kept beside the newest, and a run that goes on compares with it."""

import shutil

import pytest

from clipjax.checkpoint import check_best, read_manifest

TOP1 = "zero_shot/toy/top1"


def go_on(kit, directory, values, *, best=TOP1, first=1):
    """Saves a step a value, each a run's own decision; returns the steps that were best."""
    state, found = kit.make_state(0), []
    with kit.manager(directory, keep=1, best=best) as manager:
        for step, value in enumerate(values, first):
            if value is not None and manager.measured(step, {TOP1: value, "zero_shot/toy/top5": 1}):
                found.append(step)
            manager.save(step, state)
    return found


def steps_in(directory):
    return sorted(int(path.name) for path in directory.iterdir())


@pytest.mark.parametrize(
    ("best", "values", "were_best", "left"),
    [
        (TOP1, [0.2, 0.5, None, 0.4, 0.3], [1, 2], [2, 5]),
        (f"-{TOP1}", [0.2, 0.5, None, 0.1, 0.3], [1, 4], [4, 5]),
        (TOP1, [0.2, 0.2, float("nan"), 0.2], [1], [1, 4]),
        (TOP1, [0.1, 0.2, 0.3], [1, 2, 3], [3]),
        ("", [0.5, 0.2, 0.1], [], [3]),
    ],
)
def test_the_best_step_stays(tmp_path, kit, best, values, were_best, left):
    assert go_on(kit, tmp_path, values, best=best) == were_best
    assert steps_in(tmp_path) == left
    metrics = read_manifest(tmp_path / str(left[0])).metrics
    assert metrics == ({TOP1: values[left[0] - 1]} if best else {})


def test_a_run_that_goes_on_compares_with_what_was_before(tmp_path, kit):
    go_on(kit, tmp_path, [0.2, 0.5, 0.3])
    assert steps_in(tmp_path) == [2, 3]
    assert go_on(kit, tmp_path, [0.4], first=4) == []
    assert steps_in(tmp_path) == [2, 4]
    other = shutil.copytree(tmp_path, tmp_path.with_name("other"))
    assert go_on(kit, other, [0.39], first=5, best="-" + TOP1) == [5]  # the other way round
    shutil.rmtree(tmp_path / "2")  # negative control: nothing is left to compare with
    assert go_on(kit, tmp_path, [0.41], first=5) == [5]
    assert steps_in(tmp_path) == [5]


def test_a_value_that_comes_after_the_save_is_written_too(tmp_path, kit):
    state = kit.make_state(0)
    with kit.manager(tmp_path, best=TOP1) as manager:
        manager.save(7, state, block=True)
        assert read_manifest(tmp_path / "7").metrics == {}
        assert manager.measured(7, {TOP1: 0.25})
        assert read_manifest(tmp_path / "7").metrics == {TOP1: 0.25}
    restored, step = kit.manager(tmp_path).restore_latest(kit.abstract_of(state))
    assert step == 7
    kit.assert_equal(restored, state)


def test_a_metric_that_is_none_is_an_error(kit, tmp_path):
    known = {TOP1: 100, "zero_shot/end/top1": 0}
    for good in ("", TOP1, f"-{TOP1}", "mine/x/anything"):
        check_best(good, known, ["mine/x/"])
    with pytest.raises(ValueError, match=f"'zero_shot/toy/top2'.* measures .*{TOP1}.*mine/x/"):
        check_best("zero_shot/toy/top2", known, ["mine/x/"])
    with pytest.raises(ValueError, match=r"at the end only.*every_steps"):
        check_best("-zero_shot/end/top1", known, [])
    with (
        kit.manager(tmp_path, best="mine/x/loss") as manager,
        pytest.raises(ValueError, match=r"'mine/x/loss'.* measures mine/x/error"),
    ):
        manager.measured(1, {"mine/x/error": 1.0, TOP1: 0.5})
