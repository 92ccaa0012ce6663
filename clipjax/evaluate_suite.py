"""Evaluating a checkpoint on a suite, set by set; each result is kept, and a killed run goes on."""

import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from clipjax import __version__, faults
from clipjax.checkpoint import digest
from clipjax.data.source import spec_name
from clipjax.data.sources import make_source
from clipjax.data.storage.paths import data_path
from clipjax.evals import EVALS
from clipjax.evals.naming import EvalName
from clipjax.evals.running import (
    EvalResult,
    ScheduledEval,
    results_document,
    results_in,
    run_evals,
)
from clipjax.evals.suite import Suite, SuiteSet
from clipjax.evals.targets import judge
from clipjax.evaluate import announce, build_on, facts_of, goals_of
from clipjax.files import sweep, write_file
from clipjax.inference.opened import Opened, open_model
from clipjax.interop import Hints
from clipjax.interop.weights import NO_HINTS
from clipjax.partitioning import make_mesh
from clipjax.processes.distributed import connect, gather, is_lead
from clipjax.strict_json import read_json

_IDENTITY = "identity"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """What a suite came to.

    Attributes:
        document: as `evaluate_checkpoint` gives it, with `suite/<name>/<average>` of averages that
            are whole, `..._of_N_of_M` of others, and their details under `suite`.
        failed: sets that are there and could not be evaluated, with why.
    """

    document: dict[str, Any]
    failed: Mapping[str, str]


def evaluate_suite(
    path: str | os.PathLike[str],
    suite: Suite,
    data_root: str,
    *,
    results: Path,
    skip: Collection[str] = (),
    hints: Hints = NO_HINTS,
    preprocess: str = "clipjax",
    batch_size: int = 256,
    dtype: str = "float32",
    max_bad: int = 0,
    verify: bool = False,
    target: Mapping[str, Any] | None = None,
) -> SuiteRun:
    """Evaluates a checkpoint on the sets of a suite that are there.

    The result of a set is a file, whose name is known by the checkpoint, the data, the prompts and
    what else the numbers depend on: it is taken where it is there, and never made twice.

    Args:
        path: as for `evaluate_checkpoint`.
        suite: see `load_suite`.
        data_root: the folder that sets are looked for in.
        results: folder of the results of single sets.
        skip: names of sets that are left out.
        hints: what the files of the checkpoint cannot say.
        preprocess, batch_size, dtype, max_bad, verify, target: as for `evaluate_checkpoint`.

    Raises:
        ValueError: no set is there, one is there in part, or a name is unknown; before the work.
    """
    specs = _find_sets(suite, data_root, skip)
    mesh = make_mesh({"data": -1})
    opened = open_model(
        path, hints, mesh=mesh, batch_size=batch_size, dtype=dtype, preprocess=preprocess
    )
    facts = facts_of(opened, preprocess)
    chosen = [one for one in suite.sets if one.name in specs]
    goals = (
        goals_of(opened, target, [_name(one, specs[one.name]) for one in chosen]) if verify else []
    )
    common = {"batch_size": batch_size, "max_bad": max_bad}
    connect(mesh)
    if is_lead():
        results.mkdir(parents=True, exist_ok=True)
        sweep(results)
    found: dict[str, EvalResult] = {}
    failed: dict[str, str] = {}
    for number, one in enumerate(chosen, start=1):
        logging.info("%s, %d of %d: %s", suite.name, number, len(chosen), one.name)
        try:
            found[one.name] = _evaluate_set(one, specs[one.name], opened, common, facts, results)
        except (ValueError, OSError, FloatingPointError) as error:
            if jax.process_count() > 1:  # elsewhere the others may not have failed, and would wait
                raise ValueError(f"{one.name}: {error}") from error
            failed[one.name] = str(error)
            logging.error("%s could not be evaluated: %s", one.name, error)
        faults.point("suite.between_sets", number)
    document = results_document(opened.step, found.values(), facts)
    document |= _summary(suite, found, failed, skip)
    if verify:
        document["verified"] = judge(goals, found.values())
    return SuiteRun(document=document, failed=failed)


def _name(one: SuiteSet, spec: str) -> EvalName:
    return EvalName(kind=one.kind, dataset=spec_name(one.name), spec=spec)


def _find_sets(suite: Suite, data_root: str, skip: Collection[str]) -> dict[str, str]:
    """Gives the SPECs of the sets that are there, and says of the others how to obtain them."""
    names = [one.name for one in suite.sets]
    if unknown := sorted({*skip} - {*names}):
        raise ValueError(f"--skip {unknown[0]}: the sets of {suite.name} are {', '.join(names)}")
    root, specs, wrong = data_path(data_root), {}, []
    for one in suite.sets:
        if one.name in skip:
            continue
        try:
            spec = one.find(root)
            if spec is not None and one.kind not in EVALS:
                wrong.append(f"{one.name}: there is no evaluation {one.kind!r} here")
            elif spec is not None:
                specs[one.name] = spec
        except (ValueError, OSError) as error:
            wrong.append(f"{one.name}: {error}")
    if wrong:
        raise ValueError(
            f"{len(wrong)} sets of {suite.name} cannot be read below {root}: mend them, or leave "
            "them out by --skip NAME,NAME (the average is then one of fewer):\n  "
            + "\n  ".join(wrong)
        )
    if not specs:
        looked = next((one for one in suite.sets if one.name not in skip), suite.sets[0])
        raise ValueError(
            f"none of the {len(names)} sets of {suite.name} is below {root}; {looked.name}, for "
            f"one, is looked for as {' or '.join(looked.folders) or looked.spec}. {looked.obtain}"
        )
    logging.info("%d of the %d sets of %s are there", len(specs), len(names), suite.name)
    return specs


def _evaluate_set(
    one: SuiteSet,
    spec: str,
    opened: Opened,
    common: Mapping[str, Any],
    facts: Mapping[str, Any],
    results: Path,
) -> EvalResult:
    source = make_source(spec, path=one.name)
    fields = {"name": one.kind, "source": spec, **common, **one.fields}
    (scheduled,) = build_on(opened, {one.name: fields}, {one.name: source})
    scheduled = dataclasses.replace(scheduled, name=_name(one, scheduled.name.spec))
    names = getattr(scheduled.eval, "metric_names", one.metric)
    if missing := [metric for metric in one.metric if metric not in names]:
        raise ValueError(
            f"the metric {missing[0]!r} is none of those of {one.kind} here: {', '.join(names)}"
        )
    identity = _identity(one, scheduled, facts, common)
    path = results / f"{spec_name(one.name)}-{digest(identity)[:16]}.json"
    # The lead's word counts: the others may see another disk.
    kept = gather(_read_kept(path, identity) if is_lead() else None)[0]
    if kept is not None:
        logging.info("%s: as it was evaluated before, %s", one.name, path)
        return results_in(kept)[0]
    announce(opened.sha256, [scheduled])
    with jax.set_mesh(opened.model.mesh):
        (result,) = run_evals([scheduled], opened.model.variables)
    faults.point("suite.before_write")
    if is_lead():
        document = {**results_document(opened.step, [result], facts), _IDENTITY: identity}
        write_file(path, json.dumps(document, indent=2, sort_keys=True) + "\n")
    return result


def _identity(
    one: SuiteSet, scheduled: ScheduledEval, facts: Mapping[str, Any], common: Mapping[str, Any]
) -> dict[str, Any]:
    """All that a set's numbers depend on, as plain JSON."""
    about = {
        "set": one.name,
        "kind": one.kind,
        "fields": one.fields,
        "max_bad": common["max_bad"],
        "clipjax": __version__,
        "model": facts,
        "about": scheduled.about,
    }
    return json.loads(json.dumps(about))


def _read_kept(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reads the result of a set; None where there is none, or none that can be used."""
    if not path.exists():
        return None
    try:
        document = read_json(path)
        if document[_IDENTITY] != identity or len(results_in(document)) != 1:
            raise ValueError("it is of something else")
        return document
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logging.warning("%s is made anew: %s", path, error)
        return None


def number_of(one: SuiteSet, result: EvalResult) -> float:
    """The number of a set in the averages: the mean of its metrics."""
    return sum(result.metrics[metric] for metric in one.metric) / len(one.metric)


def _summary(
    suite: Suite,
    found: Mapping[str, EvalResult],
    failed: Mapping[str, str],
    skip: Collection[str],
) -> dict[str, Any]:
    sets: dict[str, Any] = {}
    for one in suite.sets:
        entry: dict[str, Any] = {"metric": list(one.metric)}
        if one.name in found:
            entry |= {"state": "measured", "value": number_of(one, found[one.name])}
            entry |= {"evaluation": found[one.name].name.prefix}
        elif one.name in failed:
            entry |= {"state": "failed", "why": failed[one.name]}
        else:
            entry |= {"state": "skipped" if one.name in skip else "missing", "obtain": one.obtain}
        sets[one.name] = entry
    averages = suite.average({n: e["value"] for n, e in sets.items() if "value" in e})
    flat = {}
    for name, average in averages.items():
        if average["measured"]:
            whole = average["measured"] == average["of"]
            of = "" if whole else f"_of_{average['measured']}_of_{average['of']}"
            flat[f"suite/{suite.name}/{name}{of}"] = average["value"]
    return {**flat, "suite": {"name": suite.name, "sets": sets, "averages": averages}}
