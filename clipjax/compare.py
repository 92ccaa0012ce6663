"""Two checkpoints on one dataset: is the difference more than chance, and which classes make it?"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import clipjax
from clipjax.data.sources import make_source
from clipjax.evaluate import announce, build_on, facts_of
from clipjax.inference.opened import open_model
from clipjax.interop.weights import NO_HINTS, Hints
from clipjax.partitioning import make_mesh
from clipjax.printable import html_text as escape
from clipjax.processes.distributed import connect
from clipjax.report.page import page, percent

_SHOWN = 40  # classes on the page, from either end


def compare_checkpoints(
    paths: Sequence[str | os.PathLike[str]],
    zero_shot: str,
    *,
    fields: Mapping[str, Any] | None = None,
    hints: Hints = NO_HINTS,
    preprocess: str = "clipjax",
    batch_size: int = 256,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares the top-1 accuracy of two checkpoints, one after the other in memory.

    Args:
        paths: of two checkpoints, see `evaluate_checkpoint`.
        zero_shot: the dataset, a SPEC.
        fields: of the evaluation, as a config gives them.
        hints: what files of another package cannot say.
        preprocess: whose pixels.
        batch_size: over all devices.
        num_resamples: of the paired bootstrap.
        seed: of it.

    Returns:
        Plain JSON: `checkpoints`, what each one's numbers depend on and its metrics; `difference`,
        see `paired_bootstrap`; `per_class`, the classes with what each gets right, from those
        that B loses to those that it gains.

    Raises:
        ValueError: the dataset is no set of single labels, or has no example that both decode.
    """
    mesh = make_mesh({"data": -1})
    source = make_source(zero_shot, path="--zero_shot")
    found, tables = [], []
    hits: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for path in paths:
        opened = open_model(path, hints, mesh=mesh, batch_size=batch_size, preprocess=preprocess)
        spec = {"name": "zero_shot", "source": zero_shot, "batch_size": batch_size}
        (built,) = build_on(opened, {zero_shot: {**spec, **(fields or {})}}, {zero_shot: source})
        if len(built.eval.source) != len(source):
            raise ValueError(f"{zero_shot}: only whole datasets are compared, not parts of them")
        announce(opened.sha256, [built])
        connect(mesh)
        with jax.set_mesh(mesh):
            metrics, right, decoded = built.eval.run_with_hits(opened.model.variables)
        about = {"path": str(path), "step": opened.step, **facts_of(opened, preprocess)}
        found.append({**about, "metrics": metrics, **built.about})
        hits.append(right)
        masks.append(decoded)
        tables.append(built.eval.tables().get("per_class"))
    if not all(table and "hits" in table[0] for table in tables):
        raise ValueError(f"{zero_shot}: pictures with several labels have no right answer to count")
    both = masks[0] & masks[1]
    if not both.any():
        raise ValueError(f"{zero_shot}: none of the images decodes")
    difference = paired_bootstrap(
        hits[0][both], hits[1][both], num_resamples=num_resamples, seed=seed
    )
    classes = [
        {"name": a["name"], "examples": a["examples"], "a": a["hits"], "b": b["hits"]}
        for a, b in zip(*tables, strict=True)
        if a["examples"]
    ]
    classes.sort(key=lambda one: (one["b"] - one["a"]) / one["examples"])
    return {
        "dataset": zero_shot,
        "checkpoints": found,
        "difference": difference,
        "per_class": classes,
    }


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, *, num_resamples: int, seed: int
) -> dict[str, float]:
    """The difference of two accuracies on the same examples, with its interval.

    Each resample draws the examples anew, with what both answered to them. A pair adds 1, 0 or -1
    to the difference, so drawing the three counts is drawing the examples.

    Args:
        a, b: `[examples]`, bool: whether each answer is right.
        num_resamples: draws.
        seed: of them.

    Returns:
        `a` and `b`, the accuracies; `difference`, b - a, with `low` and `high`, the middle 95 % of
        the resamples; `share_not_better`, of resamples in which b is no better than a;
        `only_a`, `only_b`: examples that one alone gets right; `count`, `num_resamples`, `seed`.
    """
    count = len(a)
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    shares = np.array([only_b, only_a, count - only_a - only_b]) / count
    drawn = np.random.default_rng(seed).multinomial(count, shares, size=num_resamples)
    differences = (drawn[:, 0] - drawn[:, 1]) / count
    low, high = np.percentile(differences, [2.5, 97.5])
    return {
        "a": float(np.mean(a)),
        "b": float(np.mean(b)),
        "difference": (only_b - only_a) / count,
        "low": float(low),
        "high": float(high),
        "share_not_better": float(np.mean(differences <= 0)),
        "only_a": only_a,
        "only_b": only_b,
        "count": count,
        "num_resamples": num_resamples,
        "seed": seed,
    }


def comparison_page(found: Mapping[str, Any]) -> str:
    """Writes a comparison as one HTML file that loads nothing from elsewhere."""
    a, b = found["checkpoints"]
    d = found["difference"]
    tiles = [
        (percent(d["a"]), f"A: {a['path']}"),
        (percent(d["b"]), f"B: {b['path']}"),
        (
            f"{100 * d['difference']:+.2f} points",
            f"95 % of resamples: {100 * d['low']:+.2f} to {100 * d['high']:+.2f}",
        ),
    ]
    shown = "".join(
        f'<div class="tile card"><span>top-1</span><b>{escape(value)}</b>'
        f"<span>{escape(text)}</span></div>"
        for value, text in tiles
    )
    classes = found["per_class"]
    cut = classes if len(classes) <= 2 * _SHOWN else [*classes[:_SHOWN], *classes[-_SHOWN:]]
    rows = "".join(
        f"<tr><td>{escape(one['name'])}</td><td>{one['examples']:,}</td>"
        f"<td>{percent(one['a'] / one['examples'])}</td>"
        f"<td>{percent(one['b'] / one['examples'])}</td>"
        f"<td>{100 * (one['b'] - one['a']) / one['examples']:+.1f}</td></tr>"
        for one in cut
    )
    heads = "".join(f"<th>{name}</th>" for name in ("class", "pictures", "A", "B", "B - A, points"))
    about = (
        f"{d['only_b']:,} pictures are right in B alone, {d['only_a']:,} in A alone, of "
        f"{d['count']:,}. Paired bootstrap, {d['num_resamples']:,} resamples, seed {d['seed']}; in "
        f"{percent(d['share_not_better'])} of them B is no better."
    )
    told = f"{len(cut)} of {len(classes)} classes, those that differ most at either end"
    return page(
        title="Two checkpoints",
        subtitle=found["dataset"],
        sections=[
            f'<div class="tiles">{shown}</div>',
            f"<p>{escape(about)}</p>",
            f"<h2>Classes</h2><p>{escape(told)}</p>"
            f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>",
        ],
        footer=f"Written by clipjax {clipjax.__version__}.",
    )
