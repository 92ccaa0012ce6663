"""`clipjax fit`: laws of a sweep's runs, what it expects of a config, and what it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clipjax.config import default_config
from clipjax.experiment import resolve
from clipjax.plan import Assumptions
from clipjax.plan.chips import CHIPS
from clipjax.plan.model_flops import flops_of, forward_size
from clipjax.plan.roofline import run_cost
from clipjax.plan.topology import Topology
from clipjax.scaling import expect, fit_scaling, read_sweep, scaling_page, to_json, to_text
from clipjax.sweep import FINISHED, Outcome, Point, Run
from clipjax.sweep import to_json as sweep_json

ROOT = Path(__file__).parents[2]
SIZES, SAMPLES = (7.4, 20.6, 87.7), (1e9, 3e9, 1e10)


def outcome(place, gmac, samples, value, state=FINISHED):
    run = Run(
        Point((("model.name", f"m{gmac:g}"), ("total_steps", str(place)))),
        Path("runs") / str(place),
        ("x",),
        {},
        True,
        int(samples),
        gmac * 2e9,
    )
    metrics = {} if value is None else {"zero_shot/x/top1": value, "loss": 3 * (1 - value)}
    return Outcome(run, state, "", place, metrics, ())


def law(gmac, samples):
    return 1 - 4.0 * gmac**-0.12 * samples**-0.1


def grid(sizes=SIZES, samples=SAMPLES):
    pairs = [(g, s) for g in sizes for s in samples]
    return [outcome(n, g, s, law(g, s)) for n, (g, s) in enumerate(pairs, 1)]


@pytest.fixture
def sweep(tmp_path):
    def write(outcomes, **changes):
        document = sweep_json(outcomes, ["zero_shot/x/top1", "-loss"])
        for run in document["runs"]:
            run.update(changes)
        (tmp_path / "sweep.json").write_text(json.dumps(document))
        return tmp_path

    return write


def small(**changes):
    config = default_config()
    config.model.name = "ViT-B-32"
    config.batch_size, config.total_steps, config.schedule.warmup_steps = 32768, 10_000, 100
    config.update(changes)
    return resolve(config, to_run=False).stages


def test_the_law_of_a_sweep(sweep):
    folder = sweep(
        [
            *grid(),
            outcome(10, 7.4, 1e9, 0.1),  # the same size and samples by a worse rate
            outcome(11, 7.4, 2e9, None, "failed"),
            outcome(12, 7.4, 5e9, 1.0),
        ]
    )
    evidence = read_sweep(folder)
    assert evidence.left_out == {
        "not finished": ("model.name=m7.4__total_steps=11",),
        "no error left": ("model.name=m7.4__total_steps=12",),
        "not the best of its size and samples": ("model.name=m7.4__total_steps=10",),
    }
    assert len(read_sweep(folder, best=False).observations) == 10
    fit = fit_scaling(evidence, num_resamples=100)
    both = fit.laws[1].fitted.law
    assert both.exponents == pytest.approx((-0.12, -0.1)) and both.coefficient == pytest.approx(4)
    text = to_text(fit)
    assert "E = 4 G^-0.120 S^-0.100" in text and "left out, not finished: 1" in text
    by_loss = fit_scaling(read_sweep(folder, "-loss"), num_resamples=100)
    assert by_loss.laws[1].fitted.law.coefficient == pytest.approx(12)
    assert "E = loss;" in to_text(by_loss)


def test_a_config_beside_its_cost(sweep):
    fit = fit_scaling(read_sweep(sweep(grid())), num_resamples=100)
    stages = small()
    found = expect(fit, "c.py", stages, "v5e:4x4", Assumptions(mfu=0.3, price=1.5))
    samples, flops = forward_size(stages)
    assert (found.samples, found.gmac) == (327_680_000, pytest.approx(flops / 2e9))
    assert samples == 32768 * 10_000
    both = found.expected[1]
    assert 1 - both.error == pytest.approx(law(found.gmac, samples))
    assert "3.05 times below the least that was fitted, 1e+09 pairs" in both.outside
    topology = Topology("v5e:4x4", CHIPS["v5e"], 16, (), 2)

    cost = run_cost(
        stages, [flops_of(s) for s in stages], topology, Assumptions(mfu=0.3, price=1.5)
    )
    assert found.cost["chip_hours"] == pytest.approx(cost["chip_hours"])
    assert found.cost["cost_usd"] == pytest.approx(cost["cost_usd"])
    assert "EXTRAPOLATED: " in to_text(fit, found)
    page = scaling_page(fit, found)
    assert page.count("<svg") == 2 and "beyond its runs" in page
    inside = expect(fit, "c.py", small(total_steps=100_000))
    assert inside.expected[1].outside == "" and "EXTRAPOLATED" not in to_text(fit, inside)


def test_a_law_that_leaves_what_an_error_can_be(sweep):
    fit = fit_scaling(read_sweep(sweep(grid())), num_resamples=100)
    found = expect(fit, "c.py", small(batch_size=8, total_steps=200))
    assert not found.expected[1].is_possible
    text = to_text(fit, found)
    assert re.search(r"nothing: the law gives an error of \d\.\d+, above 1", text)
    json.dumps(to_json(fit, found), allow_nan=False)
    assert scaling_page(fit, found).count("<svg") == 2


@pytest.mark.parametrize(
    ("outcomes", "changes", "message"),
    [
        (grid(SIZES[:1]), {}, r"3 runs have zero_shot/x/top1 \(model.name=m7.4__total_steps=3, "),
        (
            [*grid(SIZES[:1]), outcome(4, 7.4, 1e11, 0.5, "stopped")],
            {},
            r"takes at least 4 \(1 left out, not finished\)",
        ),
        (
            [outcome(n, 5.0 * 2**n, 2e9 / 2**n, 0.1 * n) for n in range(1, 6)],
            {},
            "all 5 runs took the same compute",
        ),
        (grid(), {"samples": 0}, "run its command again"),
        (grid(), {"metrics": {"loss": 1.0}}, "no run has it; there are loss"),
        (grid(), {"metrics": {"zero_shot/x/top1": 1.5}}, "write --metric=-zero_shot/x/top1"),
    ],
)
def test_runs_that_show_no_law(sweep, outcomes, changes, message):
    with pytest.raises(ValueError, match=message):
        fit_scaling(read_sweep(sweep(outcomes, **changes)))


@pytest.mark.parametrize(("parts", "found"), [(2, 2), (3, 3)])
def test_parts_with_too_few_runs(sweep, parts, found):
    evidence = read_sweep(sweep(grid()))
    with pytest.raises(ValueError, match=f"--parts {parts}: only {found} of them have a run, of 4"):
        fit_scaling(evidence, parts=parts)
    assert len(fit_scaling(evidence, parts=5, num_resamples=100).laws[0].names) >= 4


def test_one_size_has_no_law_of_sizes(sweep):
    fit = fit_scaling(read_sweep(sweep(grid(SIZES[:1], (1e9, 2e9, 4e9, 8e9)))), num_resamples=100)
    assert len(fit.laws) == 1
    assert fit.missing == {
        "size and samples": "all 4 runs have the same size: by samples it is that of compute"
    }
    assert "size and samples: no law, all 4 runs" in to_text(fit)


def test_the_command(command, tmp_path):
    paths = [tmp_path / "fit.json", tmp_path / "fit.html"]
    done = command(
        *("fit", "--ladder", "laion", "--config", ROOT / "configs" / "openai.py"),
        *("--topology", "v5e:16x16", "--resamples=100", "--json", paths[0], "--page", paths[1]),
    )
    assert done.code == 0, done.err
    assert "openai.py: 12,800,000,000 pairs x 20.5 GMAC" in done.out
    found = json.loads(paths[0].read_text())
    by_law = found["expectation"]["by_law"]["size and samples, LAION-2B"]
    assert by_law["outside"] == ""
    low, high = by_law["interval"]
    assert low < 1 - 0.68134 < high  # the ladder's own B/16 of 13 B pairs
    assert "arXiv 2212.07143" in paths[1].read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give one of --sweep DIR and --ladder laion"),
        (("--sweep=nowhere",), "there is no sweep.json"),
        (("--ladder=laion", "--level=90"), "--level=90.0"),
        (("--ladder=laion", "--topology=v5e:4x4"), "--config configs/x.py"),
        (("--ladder=laion", "--parts=40", "--metric=loss"), "the ladder laion has"),
    ],
)
def test_flags_that_do_not_go_together(command, flags, message):
    done = command("fit", *flags)
    assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err


@pytest.mark.slow
def test_the_law_of_a_real_sweep(tmp_path):
    """Four lengths of the smoke run: more samples, less loss."""

    def clipjax(*words):
        argv = [sys.executable, "-m", "clipjax", *map(str, words)]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=1800)

    folder = tmp_path / "sweep"
    flags = ("--config", "configs/smoke.py", "--config.schedule.warmup_steps=4")
    done = clipjax("sweep", *flags, "--workdir", folder, "--grid", "total_steps=8,16,32,64")
    assert done.returncode == 0, done.stdout + done.stderr
    done = clipjax("fit", "--sweep", folder, "--metric=-loss", "--json", tmp_path / "fit.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "fit.json").read_text())
    assert len(found["runs"]) == 4
    assert found["laws"][0]["exponents"]["compute"]["value"] < 0
