"""Evaluating: an experiment's newest checkpoint, or any checkpoint on any dataset."""

import os
from collections.abc import Sequence

import jax

from clipjax.checkpoint import (
    check_contract,
    load_variables,
    read_manifest,
    resolve_checkpoint,
)
from clipjax.data.named_lists import load_class_names
from clipjax.data.source import spec_name
from clipjax.data.sources import make_source
from clipjax.distributed import is_lead
from clipjax.evals import Retrieval, ZeroShot
from clipjax.evals.running import ScheduledEval, run_evals, write_results
from clipjax.experiment import Experiment
from clipjax.inference import Encoder
from clipjax.models.layers_layout import stack_layers, unstack_layers
from clipjax.partitioning import make_mesh


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
        found = [e for e in experiment.evals if name in (e.name, e.metric_prefix.split("/", 1)[0])]
        if not found:
            known = ", ".join(e.name for e in experiment.evals) or "none"
            raise ValueError(f"--eval={name}: config.evals has {known}; name one of them")
        chosen += [e for e in found if e not in chosen]
    step_dir = resolve_checkpoint(experiment.workdir)
    manifest = read_manifest(step_dir)
    check_contract(manifest.contract, experiment.metadata["contract"])
    scan_layers = experiment.metadata["config"]["scan_layers"]
    params = load_variables(step_dir, stack_layers if scan_layers else unstack_layers)
    with experiment.program.scope():
        results = run_evals(chosen, params)
    if is_lead():
        write_results(experiment.workdir, manifest.step, results)
    return {**results, "step": manifest.step}


def evaluate_checkpoint(
    path: str | os.PathLike[str],
    *,
    zero_shot: Sequence[str] = (),
    retrieval: Sequence[str] = (),
    templates: str = "",
    class_names: str = "",
    batch_size: int = 256,
    plugins: Sequence[str] = (),
    tokenizer: str | os.PathLike[str] | None = None,
) -> dict[str, float]:
    """Evaluates any checkpoint on datasets named by SPEC; the checkpoint is all it takes.

    Args:
        path: a workdir, its `checkpoints` folder, or one step's folder.
        zero_shot: datasets (`kind:where[:split]`) with labels.
        retrieval: datasets of images and texts.
        templates: of the prompts: a name or a file; by default those that the run itself used.
        class_names: a name or a file; by default the dataset's own.
        batch_size: over all devices.
        plugins: modules of yours that the checkpoint may name; it has no other imported.
        tokenizer: file of its vocabulary, for a checkpoint that has none inside.

    Returns:
        `<kind>/<dataset>/<metric>` -> value, and `step`.
    """
    step_dir = resolve_checkpoint(path)  # once: a run that is still going may save a newer one
    manifest = read_manifest(step_dir)
    stored = manifest.config.get("evals", {})
    used = (e["templates"] for e in stored.values() if "templates" in e)
    templates = templates or next(used, "simple")
    sources = {where: make_source(where) for where in (*zero_shot, *retrieval)}
    mesh = make_mesh({"data": -1})
    encoder = Encoder.from_checkpoint(
        step_dir, mesh=mesh, batch_size=batch_size, plugins=plugins, tokenizer=tokenizer
    )
    common = {
        "encode_image_fn": encoder.encode_fns.image,
        "encode_text_fn": encoder.encode_fns.text,
        "preprocess": encoder.preprocess,
        "tokenizer": encoder.tokenizer,
        "mesh": mesh,
        "batch_size": batch_size,
    }
    evals = [
        ScheduledEval(
            name=f"zero_shot/{spec_name(where)}",
            metric_prefix=f"zero_shot/{spec_name(where)}",
            every_steps=0,
            eval=ZeroShot(
                source=sources[where],
                templates=templates,
                class_names=load_class_names(class_names) if class_names else None,
                logit_scale_fn=encoder.encode_fns.logit_scale,
                name=f"zero_shot on {where}",
                **common,
            ),
        )
        for where in zero_shot
    ]
    evals += [
        ScheduledEval(
            name=f"retrieval/{spec_name(where)}",
            metric_prefix=f"retrieval/{spec_name(where)}",
            every_steps=0,
            eval=Retrieval(source=sources[where], name=f"retrieval on {where}", **common),
        )
        for where in retrieval
    ]
    with jax.set_mesh(mesh):
        results = run_evals(evals, encoder.params)
    return {**results, "step": manifest.step}
