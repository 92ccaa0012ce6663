"""Optimizers on the quickstart for a third of its steps: two seeds, rates tuned alike.

    python benchmarks/optimizers.py --workdir runs/optimizers --json curves.json      about 25 runs

Each optimizer has its rate chosen by the mean top-1 of the validation drawings (as drawn, filled,
in lines) in shorter runs: three rates a factor of two apart, and further ones as long as the best
is at an end, five in all. With it the quickstart itself is trained with two seeds, and asked for
unseen names as it goes. All runs are of `clipjax sweep`: started again, it goes on where it was.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import ROOT, read_lines, setting_lines

# Optimizer -> the middle rate that the search begins with, and what else is its own: of Lion the
# paper's second beta and a decay that makes up for the smaller rate (arXiv:2302.06675).
OPTIMIZERS: dict[str, tuple[float, dict[str, Any]]] = {
    "adamw": (2e-3, {}),
    "stableadamw": (2e-3, {}),
    "lamb": (8e-3, {}),
    "lion": (2e-4, {"b2": 0.99, "weight_decay": 2.0}),
    "muon": (2e-3, {}),
}
MOST_RATES = 5
EVAL_EVERY = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/optimizers"))
    parser.add_argument("--optimizers", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--steps", type=int, default=280)
    parser.add_argument("--tune_steps", type=int, default=100, help="of a run that tries a rate")
    parser.add_argument("--json", type=Path, help="file for all that the tables are made of")
    options = parser.parse_args()
    print("\n".join(setting_lines("jax", "optax")), flush=True)
    found = {}
    for name in options.optimizers:
        rates = tune(name, options.tune_steps, options.workdir / name / "rates")
        best = max(rates, key=rates.__getitem__)
        runs = sweep(
            f"steps={options.steps}",
            options.workdir / name / "seeds",
            "seed=0,1",
            [*flags_of(name), f"--config.optimizer.learning_rate={best}", *evaluated()],
        )
        curves = {run["values"]["seed"]: curve(Path(run["workdir"])) for run in runs}
        found[name] = {"rates": rates, "best": best, "curves": curves}
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n".join(["", *rate_table(found), "", *curve_table(found)]))


def flags_of(name: str) -> list[str]:
    """What an optimizer changes in the quickstart."""
    fields = {"name": name, **OPTIMIZERS[name][1]}
    return [f"--config.optimizer.{field}={value}" for field, value in fields.items()]


def evaluated() -> list[str]:
    """Unseen names are asked for as a run goes; nothing else is written that takes time."""
    return [f"--config.evals.zero_shot.every_steps={EVAL_EVERY}", "--config.report=false"]


def tune(name: str, steps: int, workdir: Path) -> dict[float, float]:
    """Mean top-1 on the validation drawings by rate."""
    middle = OPTIMIZERS[name][0]
    found = dict.fromkeys((middle / 2, middle, 2 * middle), 0.0)
    while True:
        grid = "optimizer.learning_rate=" + ",".join(map(str, sorted(found)))
        arguments = f"steps={steps},validation"
        for run in sweep(arguments, workdir, grid, [*flags_of(name), "--config.report=false"]):
            found[float(run["values"]["optimizer.learning_rate"])] = top1(run["metrics"])
        further = next_rate(found)
        if further is None:
            return found
        found[further] = 0.0


def next_rate(found: Mapping[float, float]) -> float | None:
    """The rate beyond an end that is the best so far; None if that is inside, or at the limit."""
    rates = sorted(found)
    best = max(rates, key=found.__getitem__)
    if len(rates) >= MOST_RATES or best not in (rates[0], rates[-1]):
        return None
    return best / 2 if best == rates[0] else 2 * best


def top1(metrics: Mapping[str, float | None]) -> float:
    """Mean top-1 of all evaluations; 0 of a run that has none, as one that diverged."""
    shares = [
        value or 0.0
        for name, value in metrics.items()
        if name.startswith("zero_shot/") and name.endswith("/top1")
    ]
    return statistics.fmean(shares) if shares else 0.0


def sweep(arguments: str, workdir: Path, grid: str, flags: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of one `clipjax sweep` of the quickstart; a run that failed is among them."""
    command = [sys.executable, "-m", "clipjax", "sweep"]
    command += [f"--config=configs/quickstart.py:{arguments}", f"--workdir={workdir}"]
    command += [f"--grid={grid}", *flags]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr)
    if done.returncode not in (0, 1):  # 1: a run failed
        raise SystemExit(done.returncode)
    return json.loads((workdir / "sweep.json").read_text(encoding="utf-8"))["runs"]


def curve(workdir: Path) -> dict[str, dict[int, float]]:
    """The training loss, and top-1 on unseen names, by step."""
    rows, evals = (read_lines(workdir / f"{name}.jsonl") for name in ("metrics", "evals"))
    return {
        "loss": {row["step"]: row["loss"] for row in rows},
        "top1": {row["step"]: top1(row) for row in evals if "step" in row},
    }


def rate_table(found: Mapping[str, Any]) -> list[str]:
    """The mean validation top-1 of every rate that was tried."""
    lines = ["| optimizer | rates: validation top-1, % | chosen |", "|---|---|---|"]
    for name, row in found.items():
        tried = ", ".join(
            f"{rate:g}: {100 * row['rates'][rate]:.1f}" for rate in sorted(row["rates"])
        )
        lines.append(f"| {name} | {tried} | {row['best']:g} |")
    return lines


def curve_table(found: Mapping[str, Any]) -> list[str]:
    """Top-1 on unseen names at each evaluation, in percent, and the loss there, both seeds."""
    steps = sorted(
        {step for row in found.values() for c in row["curves"].values() for step in c["top1"]}
    )
    lines = ["| optimizer, seed | " + " | ".join(f"step {step}" for step in steps) + " |"]
    lines.append(f"|{'---|' * (len(steps) + 1)}")
    for name, row in found.items():
        for seed, measured in sorted(row["curves"].items()):
            cells = [_cell(measured, step) for step in steps]
            lines.append(f"| {name}, {seed} | {' | '.join(cells)} |")
    return lines


def _cell(measured: Mapping[str, Mapping[int, float]], step: int) -> str:
    """`top-1 (loss)`, the loss of the last logged step up to there."""
    share = measured["top1"].get(step)
    logged = [at for at in measured["loss"] if at <= step]
    loss = f"{measured['loss'][max(logged)]:.2f}" if logged else "-"
    return f"{'-' if share is None else f'{100 * share:.1f}'} ({loss})"


if __name__ == "__main__":
    main()
