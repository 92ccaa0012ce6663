"""Fine-tuning the quickstart on Fashion-MNIST: what is learned, what is kept, what it takes.

    apt-get install dataset-fashion-mnist
    python benchmarks/finetune.py --checkpoint runs/quickstart --to runs/finetune

Trains by configs/fashion_mnist.py in each mode, each in a process of its own, chooses a mixture of
each with the checkpoint, and prints the rows of a table. By hash, a fifth of the test pictures and
half of the unseen emoji choose the mixture; the figures are of the others, and of all.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

DATA = "/usr/share/datasets/fashion-mnist"
MODES = ("image", "full", "lit", "last", "lora")
KEEP = 0.85  # of the emoji's top-1, on the part that chooses


def run(*command: object, log: Path) -> dict[str, float]:
    """Runs clipjax to its end; gives seconds by the clock and of the cores, and GiB at most."""
    words = [sys.executable, "-m", "clipjax", *map(str, command)]
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(words)} ended with {code}: see {log}")
    return {
        "seconds": time.monotonic() - began,
        "core_seconds": used.ru_utime + used.ru_stime,
        "gib": used.ru_maxrss / 2**20,
    }


def accuracies(file: Path) -> dict[str, float]:
    """Top-1 of the clothes and of the emoji, in a JSON file of results."""
    return of_results(json.loads(file.read_text()))


def of_results(found: dict[str, Any]) -> dict[str, float]:
    values = {name: value for name, value in found.items() if name.endswith("/top1")}
    (clothes,) = (value for name, value in values.items() if "fashion" in name)
    (emoji,) = (value for name, value in values.items() if "openmoji" in name)
    return {"clothes": clothes, "emoji": emoji}


def trained_parameters(log: Path) -> int:
    """How many numbers a run changed, by the first line of what its optimizer does."""
    line = re.search(r"parameters: (.*)", log.read_text())
    assert line is not None
    parts = (part.split(" ", 1) for part in line[1].split(", "))
    return sum(int(count.replace(",", "")) for count, what in parts if what != "frozen")


def parts(spec: str, folder: Path, share: float) -> tuple[str, str, str]:
    """A dataset's two parts by hash, as SPECs: a share that chooses, and the others; and all."""
    if not folder.exists():
        run("data", "split", spec, f"--holdout={share}", "--out", folder,
            log=folder.with_suffix(".log"))  # fmt: skip
    join = "&" if "?" in spec else "?"
    chosen, others = (folder / f"{part}.parquet" for part in ("holdout", "train"))
    return f"{spec}{join}filter={chosen}:min=1", f"{spec}{join}filter={others}:min=1", spec


def show(name: str, **cells: object) -> None:
    print(f"| {name} | {' | '.join(map(str, cells.values()))} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="runs/quickstart", type=Path)
    parser.add_argument("--to", default="runs/finetune", type=Path)
    parser.add_argument("--data", default=DATA)
    parser.add_argument("--modes", nargs="*", default=MODES)
    parser.add_argument("--steps", default=900, type=int)
    parser.add_argument("--probe", action="store_true", help="also a linear probe of the features")
    asked = parser.parse_args()
    asked.to.mkdir(parents=True, exist_ok=True)
    clothes, emoji = f"idx:{asked.data}:test?class_names=fashion_mnist", "openmoji:unseen"

    start = _evaluate(asked.checkpoint, clothes, emoji, asked.to / "start")
    head = ("trained", "clothes", "emoji", "core minutes", "minutes", "GiB")
    print(f"| | {' | '.join(head)} |\n|{'---|' * (len(head) + 1)}")
    show("zero-shot start", trained=0, **start, rest="| |")
    for mode in asked.modes:
        workdir, log = asked.to / mode, asked.to / f"{mode}.log"
        config = f"configs/fashion_mnist.py:checkpoint={asked.checkpoint},data={asked.data}"
        config += f",mode={mode},steps={asked.steps}"
        used = run("train", "--config", config, "--workdir", workdir, log=log)
        found = accuracies(workdir / "results.json")
        show(
            mode,
            trained=f"{trained_parameters(log):,}",
            **_percents(found),
            core=f"{used['core_seconds'] / 60:.1f}",
            minutes=f"{used['seconds'] / 60:.1f}",
            gib=f"{used['gib']:.2f}",
        )
    of_clothes = parts(clothes, asked.to / "clothes", 0.2)
    of_emoji = parts(emoji, asked.to / "emoji", 0.5)
    of_start = _evaluate(asked.checkpoint, of_clothes[1], of_emoji[1], asked.to / "start_others")
    print(f"start: others {of_start}")
    for mode in asked.modes:
        _mix(asked, mode, of_clothes, of_emoji)
    if asked.probe:
        train = f"idx:{asked.data}:train?class_names=fashion_mnist"
        test = f"--eval=linear_probe={clothes}"
        field = f"--eval_field=linear_probe.train={train}"
        file = asked.to / "probe.json"
        used = run("eval", "--checkpoint", asked.checkpoint, test, field, f"--json={file}",
                   log=asked.to / "probe.log")  # fmt: skip
        probed = json.loads(file.read_text())
        (top1,) = (value for name, value in probed.items() if name.endswith("/top1"))
        spent = f"{used['core_seconds'] / 60:.1f} core minutes, {used['seconds'] / 60:.1f} minutes"
        print(f"probe: {100 * top1:.2f} %, {spent}, {used['gib']:.2f} GiB")
    print(f"children at most: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f}")


def _mix(
    asked: argparse.Namespace, mode: str, clothes: tuple[str, ...], emoji: tuple[str, ...]
) -> None:
    """Chooses a mixture on the first parts and shows it on the others, and on all."""
    target, file = asked.to / f"{mode}_mixed", asked.to / f"{mode}_mixed.json"
    # What the evaluations are called is known once they have run: ask the one that exists.
    listed = asked.to / "listed.json"
    choosing = (f"--zero_shot={clothes[0]}", f"--zero_shot={emoji[0]}", "--templates", "plain")
    if not listed.exists():
        run("eval", "--checkpoint", asked.checkpoint, *choosing, f"--json={listed}",
            log=asked.to / "listed.log")  # fmt: skip
    known = json.loads(listed.read_text())
    (kept,) = (name for name in known if name.endswith("/top1") and "openmoji" in name)
    page = f"--page={asked.to / f'{mode}_mixed.html'}"
    used = run("soup", asked.checkpoint, asked.to / mode, "--method=between", *choosing,
        f"--keep={kept}={KEEP}", page, f"--json={file}", "--to", target,
        log=asked.to / f"{mode}_mixed.log")  # fmt: skip
    spent = f"{used['core_seconds'] / 60:.1f} core minutes to choose"
    told = json.loads(file.read_text())
    alpha = 1 - told["shares"][str(asked.checkpoint)]
    found = []
    for number, specs in enumerate(zip(clothes[1:], emoji[1:], strict=True)):
        found.append(_evaluate(target, *specs, asked.to / f"{mode}_mixed_{number}"))
    print(f"{mode}: alpha {alpha:g}, others {found[0]}, all {found[1]}, {spent}", flush=True)


def _evaluate(checkpoint: Path, clothes: str, emoji: str, to: Path) -> dict[str, str]:
    """Top-1 of both; results and log go beside one another."""
    of = (f"--zero_shot={clothes}", f"--zero_shot={emoji}", "--templates", "plain")
    file = to.with_suffix(".json")
    run("eval", "--checkpoint", checkpoint, *of, f"--json={file}", log=to.with_suffix(".log"))
    return _percents(accuracies(file))


def _percents(found: dict[str, float]) -> dict[str, str]:
    return {name: f"{100 * value:.2f} %" for name, value in found.items()}


if __name__ == "__main__":
    main()
