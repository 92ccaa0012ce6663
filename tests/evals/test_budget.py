"""How long evaluations at intervals may take of a run's time."""

import dataclasses

from clipjax.data.sources import make_source
from clipjax.evals.budget import EvalBudget
from clipjax.evals.naming import name_evals
from clipjax.evals.running import EvalResult, ScheduledEval, flat_metrics, list_metrics, run_evals
from clipjax.goodput import Goodput


class Took:
    """An evaluation that takes its time by the run's clock."""

    def __init__(self, clock, seconds, **values):
        self.clock, self.seconds, self.values = clock, seconds, values

    def run(self, params):
        self.clock.now += self.seconds
        return self.values


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def scheduled(clock, seconds, *specs, every_steps=100):
    names = name_evals([("zero_shot", spec) for spec in specs])
    return [
        ScheduledEval(
            key=n.spec, name=n, every_steps=every_steps, eval=Took(clock, seconds, top1=i)
        )
        for i, n in enumerate(names)
    ]


def ran(monkeypatch, evals, clock, fraction, *, rounds=40, between=10.0):
    """Which SPECs ran in each round, and the share of the time that all of them took."""
    monkeypatch.setattr("clipjax.evals.running.time.monotonic", clock)
    budget, spent, found = EvalBudget(evals, fraction, clock, {}), 0.0, []
    for number in range(rounds):
        clock.now += between
        due = budget.choose(number, evals)
        before = clock.now
        results = run_evals(due, None, of=evals)
        spent += clock.now - before
        budget.took(results)
        found.append([e.key for e in due])
    return found, spent / clock.now


def of_one_clock(*, slow):
    """What a process chooses by its own clock; run by test_processes.py."""
    clock = Clock()
    evals = scheduled(clock, 1.0, "a", "b")
    budget = EvalBudget(evals, 0.2, clock, {})
    found = []
    for number in range(8):
        clock.now += 3.0 if slow else 10.0
        due = budget.choose(number, evals)
        budget.took(EvalResult(name=e.name, metrics={}, seconds=2.0) for e in due)
        found.append([e.key for e in due])
    return found


def test_evaluations_stay_within_their_share_of_the_time(monkeypatch):
    clock = Clock()
    evals = scheduled(clock, 4.0, "a") + scheduled(clock, 0.1, "b")
    found, share = ran(monkeypatch, evals, clock, 0.1)
    of_a = sum("a" in names for names in found)
    assert share <= 0.1 and 3 <= of_a < 40 * 0.05 * 10 / 4 + 1
    assert all("b" in names for names in found)  # has a part of its own, which it does not use up
    assert found[0] == ["a", "b"]  # before one has run, nobody knows what it takes
    clock.now = 0.0
    assert ran(monkeypatch, evals, clock, 1.0)[0] == [["a", "b"]] * 40
    assert ran(monkeypatch, evals, clock, 0.0)[0] == [[]] * 40


def test_a_restart_does_not_begin_the_budget_anew(tmp_path):
    clock = Clock()
    evals = scheduled(clock, 1.0, "a")
    first = Goodput(tmp_path)
    before = EvalBudget(evals, 0.1, clock, first.evaluations)
    clock.now = 100.0
    for _ in range(2):
        before.took([EvalResult(name=evals[0].name, metrics={}, seconds=4.0)])
    assert before.choose(1, evals) == []  # 8 + 4 of 10 s
    first.save()
    again = Goodput(tmp_path).evaluations
    assert EvalBudget(evals, 0.1, clock, again).choose(1, evals) == []
    assert EvalBudget(evals, 0.1, clock, {}).choose(1, evals) == evals  # negative control
    clock.now = 121.0
    assert EvalBudget(evals, 0.1, clock, again).choose(2, evals) == evals


def test_a_dataset_has_all_of_its_languages_or_none_and_so_its_mean(monkeypatch):
    clock = Clock()
    evals = scheduled(clock, 3.0, *(f"names?language={code}" for code in ("de", "fr", "ja")))
    found, share = ran(monkeypatch, evals, clock, 0.2)
    assert {len(names) for names in found} == {0, 3} and share <= 0.2
    means = "zero_shot/names_language_mean/top1"
    assert flat_metrics(run_evals(evals, None, of=evals))[means] == 1.0
    # Two of the three, as where they are due at other steps: the mean would be another number.
    assert means not in flat_metrics(run_evals(evals[:2], None, of=evals))


def test_what_is_measured_how_often_is_known_before():
    clock = Clock()
    evals = scheduled(clock, 1.0, "names?language=de", every_steps=4)
    evals += scheduled(clock, 1.0, "names?language=fr", every_steps=6)
    evals += scheduled(clock, 1.0, "other?language=de", "other?language=fr", every_steps=0)
    for each in evals:
        each.eval.metric_names = ("top1",)
    evals[-1] = dataclasses.replace(evals[-1], every_steps=5)
    every, unknown = list_metrics(evals)
    assert unknown == [] and every == {
        "zero_shot/names_language_de/top1": 4,
        "zero_shot/names_language_fr/top1": 6,
        "zero_shot/names_language_mean/top1": 12,  # where both are due
        "zero_shot/other_language_de/top1": 0,
        "zero_shot/other_language_fr/top1": 5,
        "zero_shot/other_language_mean/top1": 0,  # at the end alone
    }


def test_a_number_over_a_part_says_so(cache):
    mapping = {"spec": "synthetic:64", "examples": 8}
    assert name_evals([("zero_shot", mapping)]) == name_evals(
        [("zero_shot", "synthetic:64?examples=8")]
    )
    source = make_source(mapping, path="x")
    (name,) = name_evals([("zero_shot", mapping)])
    about = ScheduledEval(
        key="x", name=name, every_steps=0, eval=type("E", (), {"source": source})()
    ).about
    assert name.prefix == "zero_shot/synthetic_64_examples_8"
    assert about["subset"] == {"examples": 8, "of": 64}
