"""What the average, the clipping, the metrics and the guard add to a training step.

    python benchmarks/step_parts.py                          the quickstart's model, by turns
    python benchmarks/step_parts.py --model ViT-B-32 --batch 256 --turns 0     compiled bytes only

A part is what the whole step costs more than the step without it. The bytes are those that XLA's
cost analysis says the compiled step accesses; without the guard and the metrics the step is one
that no config asks for: `isfinite` says yes, and nothing but the loss is returned.
"""

import argparse
import contextlib
import os
import statistics
import sys
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__" and not __package__:  # a file: the checkout in place of its folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import load_average, paired_ratio, setting_lines, timed
from benchmarks.sizes import QUICKSTART, SEED, Size

WHOLE = "whole"
PARTS = {
    "average (ema_decay)": {"optimizer.ema_decay": None},
    "clipping (clip_norm)": {"optimizer.clip_norm": None},
    "metrics": {},
    "guard": {},
}
ALL = {"optimizer.ema_decay": 0.999, "optimizer.clip_norm": 1.0}


class Unguarded:
    """jax.numpy in which all is finite: the compiler then leaves the guard out."""

    def __getattr__(self, name: str) -> Any:
        import jax.numpy as jnp

        if name == "isfinite":
            return lambda _: jnp.bool_(True)
        return getattr(jnp, name)


class Variant:
    """A step with all parts, or without one."""

    def __init__(self, size: Size, without: str) -> None:
        import jax

        from benchmarks.ours import make_batch, resolve_config
        from clipjax.experiment import build_program

        program = build_program(resolve_config(size, {**ALL, **PARTS.get(without, {})}))
        self.program = program

        def step(state: Any, batch: Any) -> Any:
            state, metrics = program.step(state, batch)
            return state, {"loss": metrics["loss"]} if without == "metrics" else metrics

        with program.scope(), unguarded(without == "guard"):
            self.batch = make_batch(program, program.spec)
            lowered = jax.jit(step, donate_argnums=0).lower(program.abstract_state, self.batch)
            self.compiled = lowered.compile()
        self.state: Any = None

    @property
    def gigabytes(self) -> float:
        return self.compiled.cost_analysis()["bytes accessed"] / 1e9

    def run(self) -> dict[str, float]:
        import jax

        if self.state is None:
            with self.program.scope():
                self.state = jax.block_until_ready(self.program.create_state(SEED))

        def step() -> None:
            self.state, metrics = self.compiled(self.state, self.batch)
            jax.block_until_ready((self.state, metrics))

        return timed(step)


def unguarded(there: bool) -> contextlib.AbstractContextManager[Any]:
    """Traces steps without the guard, or as they are."""
    return mock.patch("clipjax.train_step.jnp", Unguarded()) if there else contextlib.nullcontext()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=QUICKSTART)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tiny", action="store_true", help="a stand-in, to see whether it runs")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.pop("XLA_FLAGS", None)
    size = Size(options.model, options.batch, "float32", tiny=options.tiny)
    lines = setting_lines("jax", "numpy")
    variants = {name: Variant(size, name) for name in (WHOLE, *PARTS)}
    times: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for turn in range(options.turns + bool(options.turns)):
        for name in list(variants)[:: 1 if turn % 2 else -1]:
            answer = variants[name].run()
            if turn:  # the first has a state to make
                times[name].append(answer)
    lines.append(
        f"- {size.model}, batch {size.examples}, float32; {options.turns} turns; load average at "
        f"the end {load_average()}"
    )
    lines += ["", *table(variants, times)]
    print("\n".join(lines))


def table(variants: dict[str, Variant], times: dict[str, list[dict[str, float]]]) -> list[str]:
    whole = variants[WHOLE].gigabytes
    lines = ["| step | GB accessed | adds | CPU s | adds | wall s | adds |", "|---" * 7 + "|"]
    for name, variant in variants.items():
        row = [name if name == WHOLE else f"without {name}", f"{variant.gigabytes:.3f}"]
        row.append("" if name == WHOLE else f"{whole / variant.gigabytes - 1:.2%}")
        for clock in ("cpu_s", "wall_s") if times[WHOLE] else ():
            row.append(f"{statistics.median(t[clock] for t in times[name]):.3f}")
            ratio = paired_ratio([t[clock] for t in times[WHOLE]], [t[clock] for t in times[name]])
            row.append("" if name == WHOLE else f"{ratio.value - 1:.2%} +- {ratio.noise:.2%}")
        lines.append("| " + " | ".join([*row, *[""] * (7 - len(row))]) + " |")
    return lines


if __name__ == "__main__":
    main()
