"""Evaluating: an experiment's newest checkpoint, or any checkpoint on any dataset."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging

from clipjax.building import check_plugins
from clipjax.checkpoint import (
    Choice,
    Manifest,
    check_contract,
    load_variables,
    manifest_digest,
    read_newest,
)
from clipjax.data.sources import make_source
from clipjax.evals import EVALS, build_evals
from clipjax.evals.naming import EvalName
from clipjax.evals.running import (
    ScheduledEval,
    by_parameters,
    flat_metrics,
    model_facts,
    results_document,
    run_evals,
    set_aside_damaged,
    write_results,
)
from clipjax.evals.targets import Goal, find_goals, judge
from clipjax.experiment import Experiment
from clipjax.inference.loading import find_weights
from clipjax.inference.opened import Opened, open_model
from clipjax.interop import Hints
from clipjax.interop.reading import recognise
from clipjax.models.layers_layout import stack_layers
from clipjax.partitioning import make_mesh
from clipjax.processes.distributed import agree, connect, is_lead


def evaluate(experiment: Experiment, names: Sequence[str]) -> dict[str, float]:
    """Evaluates the newest checkpoint of a run, without training.

    Args:
        experiment: the run.
        names: of config.evals, or kinds of evaluation (`zero_shot`: all of that kind).

    Raises:
        ValueError: a name that the config does not have, or no checkpoint.
    """
    chosen = []
    for name in names:
        found = [e for e in experiment.evals if name in (e.key, e.name.kind)]
        if not found:
            known = ", ".join(e.key for e in experiment.evals) or "none"
            raise ValueError(f"--eval={name}: config.evals has {known}; name one of them")
        chosen += [e for e in found if e not in chosen]

    groups = by_parameters(chosen)

    def load(checkpoint: Choice) -> tuple[Manifest, Any, str | None]:
        check_contract(checkpoint.manifest.contract, experiment.metadata["contract"])
        variables = {w: load_variables(checkpoint.step_dir, stack_layers, w) for w in groups}
        return checkpoint.manifest, variables, manifest_digest(checkpoint.step_dir)

    manifest, variables, sha256 = read_newest(experiment.workdir, load)
    announce(sha256, chosen)
    connect(experiment.program.mesh)
    with experiment.program.scope():
        results = [r for w, part in groups.items() for r in run_evals(part, variables[w])]
    if is_lead():
        set_aside_damaged(experiment.workdir)
        facts = model_facts(manifest.contract, checkpoint=sha256)
        write_results(experiment.workdir, manifest.step, results, facts)
    return {**flat_metrics(results), "step": manifest.step}


def evaluate_checkpoint(
    path: str | os.PathLike[str],
    *,
    zero_shot: Sequence[str] = (),
    retrieval: Sequence[str] = (),
    evals: Sequence[tuple[str, str]] = (),
    fields: Mapping[str, Mapping[str, Any]] | None = None,
    templates: str | Sequence[str] | Mapping[str, Any] | None = None,
    class_names: str | Sequence[str] | None = None,
    classes: str = "all",
    preprocess: str = "clipjax",
    batch_size: int = 256,
    dtype: str = "float32",
    max_bad: int = 0,
    plugins: Sequence[str] = (),
    tokenizer: str | os.PathLike[str] | None = None,
    hints: Hints | None = None,
    verify: bool = False,
    target: Mapping[str, Any] | None = None,
    keep_examples: bool = False,
) -> dict[str, Any]:
    """Evaluates any checkpoint on datasets named by SPEC; the checkpoint is all it takes.

    Args:
        path: whatever `clipjax.load` reads: a workdir, its `checkpoints` folder, one step's folder,
            or weights of another package.
        zero_shot: datasets (`kind:where[:split]`) with labels.
        retrieval: datasets of images and texts.
        evals: any evaluations: (kind, of `clipjax.evals.EVALS`; dataset).
        fields: kind -> fields of its evaluations, as a config gives them.
        templates: of the prompts: a name, a file, or templates; by default the dataset's own, else
            those that the run itself used, else `simple`.
        class_names: a name, a file, or names; by default the dataset's own.
        classes: which names compete, `all` or those that are `present`; with `listed` only pictures
            count whose class has a name.
        preprocess: whose pixels, see `clipjax.data.images.naflex.make_preprocess`.
        batch_size: over all devices.
        dtype: of the computation: `float32` or `bfloat16`.
        max_bad: images of each dataset that may fail to decode.
        plugins: modules of yours that the checkpoint may name; it has no other imported.
        tokenizer: file of its vocabulary, for a checkpoint that has none inside.
        hints: what files of another package cannot say, in place of plugins and tokenizer.
        verify: compare with the target, `verified`, see `clipjax.evals.targets.judge`.
        target: as `config.target`; by default that of the run.
        keep_examples: whether `tables` of zero-shot and retrieval hold rows to look at.

    Returns:
        `<kind>/<dataset>/<metric>` -> value, `step`, and beside them what the numbers depend on:
        see `results_document`.
    """
    given = {kind: dict(of_kind) for kind, of_kind in (fields or {}).items()}
    naming = {"templates": templates, "class_names": class_names, "classes": classes}
    given["zero_shot"] = naming | given.get("zero_shot", {})
    asked = [("zero_shot", where) for where in zero_shot]
    asked += [("retrieval", where) for where in retrieval]
    asked += evals
    kinds = {kind for kind, _ in asked}
    for kind in {*kinds, *given} - {*EVALS}:
        raise ValueError(f"--eval {kind} is unknown; the kinds are {', '.join(EVALS)}")
    for kind in {*(fields or {})} - kinds:
        raise ValueError(f"--eval_field {kind}: no evaluation of this kind is asked for")
    for (kind, where), count in Counter(asked).items():
        if count > 1:
            raise ValueError(f"{_flag(kind)}{where} is given {count} times; keep one of them")
    hints = hints or Hints(plugins=check_plugins(plugins, path="plugins"), tokenizer=tokenizer)
    recognise(find_weights(path), hints)  # a wrong path is told before the data is opened
    sources = {where: make_source(where, path=_flag(kind)[:-1]) for kind, where in asked}
    mesh = make_mesh({"data": -1})
    opened = open_model(
        path, hints, mesh=mesh, batch_size=batch_size, dtype=dtype, preprocess=preprocess
    )
    common = {"batch_size": batch_size, "max_bad": max_bad}
    specs: dict[str, dict[str, Any]] = {
        f"{_flag(kind)}{where}": {"name": kind, "source": where, **common, **given.get(kind, {})}
        for kind, where in asked
    }
    opened_sources = {f"{_flag(kind)}{where}": sources[where] for kind, where in asked}
    built = build_on(opened, specs, opened_sources)
    for each in built:
        each.eval.keeps_examples = keep_examples
    goals = goals_of(opened, target, [each.name for each in built]) if verify else []
    announce(opened.sha256, built)
    connect(mesh)
    with jax.set_mesh(mesh):
        results = run_evals(built, opened.model.variables)
    facts = facts_of(opened, preprocess)
    document = results_document(opened.step, results, facts)
    return document | ({"verified": judge(goals, results)} if verify else {})


def facts_of(opened: Opened, preprocess: str) -> dict[str, Any]:
    """What all results of a checkpoint depend on, with the model's name."""
    facts = model_facts(opened.contract, preprocess=preprocess, checkpoint=opened.sha256)
    which = {} if opened.which is None else {"parameters": opened.which}
    dtype = opened.model.dtype
    computed = {} if dtype == "float32" else {"dtype": dtype}  # unsaid in results of before
    return {"model": opened.model.spec["name"], **which, **computed, **facts}


def goals_of(
    opened: Opened, target: Mapping[str, Any] | None, names: Sequence[EvalName]
) -> list[Goal]:
    """Finds which evaluations measure a target; None is that of the checkpoint's run."""
    if target is None:
        return find_goals(opened.config.get("target") or {}, names, "the checkpoint's run")
    return find_goals(target, names, "the config")


def build_on(
    opened: Opened, specs: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Any]
) -> tuple[ScheduledEval, ...]:
    """Builds evaluations, see `build_evals`, of a checkpoint that is open."""
    model = opened.model
    asks_run = any(
        spec["name"] == "zero_shot"
        and spec.get("templates") is None
        and getattr(sources[key], "templates", None) is None
        for key, spec in specs.items()
    )
    return build_evals(
        specs,
        sources,
        path="",
        encode_image_fn=model.encode_fns.image,
        encode_text_fn=model.encode_fns.text,
        logit_scale_fn=model.encode_fns.logit_scale,
        logit_bias_fn=model.encode_fns.logit_bias,
        run_prompts=model.run_prompts() if asks_run else None,
        preprocess=model.preprocess,
        tokenizer=model.tokenizer,
        mesh=model.mesh,
        weights_sha256=opened.weights_sha256,
    )


def _flag(kind: str) -> str:
    """What stands in front of a SPEC on the command line, for messages."""
    return f"--{kind} " if kind in ("zero_shot", "retrieval") else f"--eval {kind}="


def announce(sha256: str | None, evals: Sequence[ScheduledEval]) -> None:
    """Checks that all processes evaluate one checkpoint, by its SHA-256, on the same data.

    Says which prompts each evaluation takes, and how its classes found the names that are given.
    """
    for scheduled in evals:
        if "templates" in scheduled.about:
            origin = scheduled.about["templates"]["from"]
            logging.info("%s: templates: %s", scheduled.name.prefix, origin)
        matched = scheduled.about.get("class_names", {}).get("matched")
        if matched:
            logging.info("%s: class names: matched by %s", scheduled.name.prefix, matched)
    about = {e.name.prefix: e.about.get("data_fingerprint", "") for e in evals}
    agree({"checkpoint": sha256 or "", **{f"data of {k}": v for k, v in about.items()}})
