"""A run from a config: its program, data, evaluations and files."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from clipjax import evals
from clipjax.building import ANY_MODULE
from clipjax.checkpoint import LoadReport, check_best, make_contract
from clipjax.config import to_plain
from clipjax.config_fields import Settings
from clipjax.data.images.naflex import make_preprocess
from clipjax.data.images.preprocess import Preprocess
from clipjax.data.loading.loader import Loader
from clipjax.data.loading.rows import Finishing
from clipjax.data.source import DataSource
from clipjax.data.sources import make_source
from clipjax.data.storage.files import local_path
from clipjax.encoding.encode_fns import make_encode_fns
from clipjax.evals.running import ScheduledEval, list_metrics
from clipjax.experiment.program import Program, build_program
from clipjax.experiment.resolving import MOUNT, Resolved
from clipjax.experiment.stages import Stage
from clipjax.experiment.start import make_load_init
from clipjax.losses.objectives import other_texts
from clipjax.platforms import platform_of
from clipjax.processes.distributed import is_lead
from clipjax.ranges import named
from clipjax.tokenizers import Tokenizer, make_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run: what its config decided, its program, data, evaluations and files."""

    workdir: Path
    resolved: Resolved
    program: Program
    loader: Loader
    evals: tuple[ScheduledEval, ...]
    load_init: Callable[[Any], tuple[Any, LoadReport]] | None
    metadata: dict[str, Any]

    @property
    def settings(self) -> Settings:
        """The config, typed."""
        return self.resolved.settings


def build_experiment(resolved: Resolved, workdir: str | Path) -> Experiment:
    """Builds a run. Data and checkpoints are opened first, devices last.

    Raises:
        ValueError: names the config path, what was found and what is allowed.
    """
    settings, spec, plugins = resolved.settings, resolved.spec, resolved.plugins
    if resolved.init is not None and resolved.init.passed_over and is_lead():
        logging.warning("%s", resolved.init.warning())
    tokenizer = _make_tokenizer(spec, plugins)
    if tokenizer.vocab_size > spec["text"]["vocab_size"]:
        raise ValueError(
            f"config.model.tokenizer has {tokenizer.vocab_size} tokens, "
            f"config.model.text.vocab_size = {spec['text']['vocab_size']}; make it at least as many"
        )
    contract = make_contract(spec, tokenizer.contract(), plugins=plugins)
    load_init = make_load_init(resolved, contract)
    sources = _open_sources(resolved.stages)
    eval_sources = {
        key: _open(fields["source"], f"config.evals.{key}.source")
        for key, fields in settings.evals.items()
    }
    program = build_program(_with_data(resolved, tokenizer, sources))
    *earlier, own = program.stages
    loader = Loader(
        sources[-1],
        own.data.transforms,
        tokenizer,
        batch_size=settings.batch_size,
        seed=settings.seed,
        preprocess=own.data.preprocess,
        stages=[(stage.until_step, stage.data) for stage in earlier],
        other_texts=own.data.other_texts,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=settings.data.num_workers,
        workers=settings.data.workers,
        token_cache_bytes=settings.data.token_cache_bytes,
        prefetch=settings.data.prefetch,
        max_bad_fraction=settings.data.max_bad_fraction,
    )
    return Experiment(
        workdir=local_path(workdir, way=MOUNT).absolute(),
        resolved=resolved,
        program=program,
        loader=loader,
        evals=_build_evals(resolved, program, tokenizer, eval_sources),
        load_init=load_init,
        metadata={
            "config": resolved.config,
            "contract": contract,
            "dataset_fingerprint": loader.fingerprint(),
            "global_batch_size": settings.batch_size,
            "seed": settings.seed,
        },
    )


def _open_sources(stages: Sequence[Stage]) -> list[DataSource]:
    """The data of each stage: equal specs are one source."""
    opened: dict[str, DataSource] = {}
    sources = []
    for stage in stages:
        spec, where = stage.settings.data.source, stage.config.where("data.source")
        key = json.dumps(to_plain(spec), sort_keys=True)
        if key not in opened:
            opened[key] = _open(spec, where)
        size = len(opened[key])
        if stage.batch_size > size:
            raise ValueError(
                f"{stage.config.where('batch_size')} = {stage.batch_size}: {where} holds {size} "
                "examples, and a batch would hold a pair twice; make it smaller, or add data"
            )
        sources.append(opened[key])
    return sources


def _with_data(resolved: Resolved, tokenizer: Tokenizer, sources: Sequence[DataSource]) -> Resolved:
    """Says how examples are finished in every stage; the last one's tokenizer is given."""
    tokenizers = {tokenizer.context_length: tokenizer}
    stages = []
    for stage, source in zip(resolved.stages, sources, strict=True):
        spec, length = stage.spec, stage.spec["text"]["context_length"]
        if length not in tokenizers:
            try:
                tokenizers[length] = _make_tokenizer(spec, resolved.plugins)
            except ValueError as error:
                raise ValueError(f"{stage.path}.context_length = {length}: {error}") from error
        with named("config.model"):
            preprocess = Preprocess.from_spec(spec)
        data = Finishing(
            stage.transforms,
            tokenizers[length],
            preprocess,
            stage.batch_size,
            source,
            other_texts(stage.objective),
        )
        stages.append(dataclasses.replace(stage, data=data))
    return dataclasses.replace(resolved, stages=tuple(stages))


def _build_evals(
    resolved: Resolved, program: Program, tokenizer: Tokenizer, sources: Mapping[str, Any]
) -> tuple[ScheduledEval, ...]:
    """Builds config.evals on opened sources."""
    settings, spec = resolved.settings, resolved.spec
    encode = make_encode_fns(
        program.model,
        spec["preprocess"],
        dtype=settings.dtype,
        platform=platform_of(program.mesh),
    )
    built = evals.build_evals(
        settings.evals,
        sources,
        path="config.evals",
        plugins=ANY_MODULE,
        encode_image_fn=encode.image,
        encode_text_fn=encode.text,
        logit_scale_fn=encode.logit_scale,
        logit_bias_fn=encode.logit_bias,
        preprocess=make_preprocess(spec),
        tokenizer=tokenizer,
        mesh=program.mesh,
    )
    names = [average["name"] for average in settings.optimizer.averages]
    built += tuple(each.of_average(name) for name in names for each in built)
    check_best(settings.checkpoint.best, *list_metrics(built))
    return built


def _open(spec: Any, path: str) -> DataSource:
    with named(path):
        return make_source(spec, path=path, plugins=ANY_MODULE)


def _make_tokenizer(spec: Mapping[str, Any], plugins: Sequence[str]) -> Tokenizer:
    return make_tokenizer(
        spec["tokenizer"],
        context_length=spec["text"]["context_length"],
        path="config.model.tokenizer",
        plugins=plugins,
    )
