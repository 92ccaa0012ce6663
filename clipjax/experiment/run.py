"""A run from a config: its program, data, evaluations and files."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from clipjax.building import ANY_MODULE
from clipjax.checkpoint import LoadReport, make_contract
from clipjax.config import stored, to_plain
from clipjax.data.images.preprocess import Preprocess
from clipjax.data.loading.loader import DataStage, Loader
from clipjax.data.source import DataSource
from clipjax.data.sources import make_source
from clipjax.data.transforms import make_transforms
from clipjax.evals.running import ScheduledEval
from clipjax.experiment.evaluations import build_evals, stored_evals
from clipjax.experiment.program import (
    Program,
    build_program,
    check_config,
    model_plugins,
)
from clipjax.experiment.stages import StageSpec
from clipjax.experiment.start import make_load_init
from clipjax.files import sha256
from clipjax.ranges import named
from clipjax.redaction import redact_tree
from clipjax.tokenizers import Tokenizer, make_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run: its program, data, evaluations and files. No config below this line."""

    workdir: Path
    program: Program
    loader: Loader
    evals: tuple[ScheduledEval, ...]
    seed: int
    total_steps: int
    batch_size: int
    log_every: int
    checkpoint_every: int
    checkpoint_keep: int
    checkpoint_keep_every: int | None
    max_skipped_in_a_row: int
    hang_timeout_s: float | None
    tensorboard: bool
    report: bool
    resume: str
    load_init: Callable[[Any], tuple[Any, LoadReport]] | None
    metadata: dict[str, Any]


def build_experiment(config: ConfigDict, workdir: str | Path) -> Experiment:
    """Builds a run. Data and checkpoints are opened first, devices last.

    Raises:
        ValueError: names the config path, what was found and what is allowed.
    """
    stages = check_config(config)
    spec = stages[-1].spec
    plugins = model_plugins(config)
    tokenizer = _make_tokenizer(spec, plugins)
    _check_vocabulary(spec, tokenizer)
    contract = make_contract(spec, tokenizer.contract(), plugins=plugins)
    load_init = make_load_init(config, contract)
    source = _open(config.data.source, "config.data.source")
    if config.batch_size > len(source):
        raise ValueError(
            f"config.batch_size = {config.batch_size}: config.data.source holds {len(source)} "
            "examples, and a batch would hold a pair twice; make it smaller, or add data"
        )
    eval_sources = {
        name: _open(config.evals[name].source, f"config.evals.{name}.source")
        for name in config.evals
    }
    data_stages = _data_stages(config, stages, tokenizer, plugins)
    program = build_program(config)
    loader = Loader(
        source,
        data_stages[-1].transforms,
        tokenizer,
        batch_size=config.batch_size,
        seed=config.seed,
        preprocess=data_stages[-1].preprocess,
        stages=data_stages[:-1],
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.data.num_workers,
        workers=config.data.workers,
        token_cache_bytes=config.data.token_cache_bytes,
        prefetch=config.data.prefetch,
        max_bad_fraction=config.data.max_bad_fraction,
    )
    plain = stored(config)
    plain["evals"] = stored_evals(plain["evals"])
    plain = redact_tree(plain)  # it is written to files
    return Experiment(
        workdir=Path(workdir).absolute(),
        program=program,
        loader=loader,
        evals=build_evals(config, program, tokenizer, eval_sources),
        seed=config.seed,
        total_steps=config.total_steps,
        batch_size=config.batch_size,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint.every_steps,
        checkpoint_keep=config.checkpoint.keep,
        checkpoint_keep_every=config.checkpoint.keep_every,
        max_skipped_in_a_row=config.max_skipped_in_a_row,
        hang_timeout_s=config.hang_timeout_s,
        tensorboard=config.tensorboard,
        report=config.report,
        resume=config.resume,
        load_init=load_init,
        metadata={
            "config": plain,
            "contract": contract,
            "dataset_fingerprint": loader.fingerprint(),
            "global_batch_size": config.batch_size,
            "seed": config.seed,
        },
    )


def _data_stages(
    config: ConfigDict,
    stages: Sequence[StageSpec],
    tokenizer: Tokenizer,
    plugins: Sequence[str],
) -> list[DataStage]:
    """How examples are finished in every stage; the last one's tokenizer is given."""
    tokenizers = {tokenizer.context_length: tokenizer}
    result = []
    for until_step, spec, path in stages:
        length = spec["text"]["context_length"]
        if length not in tokenizers:
            try:
                tokenizers[length] = _make_tokenizer(spec, plugins)
            except ValueError as error:
                raise ValueError(f"{path}.context_length = {length}: {error}") from error
        transforms = make_transforms(
            to_plain(config.data.transforms),
            image_size=spec["image_size"],
            path="config.data.transforms",
            plugins=ANY_MODULE,
        )
        try:
            preprocess = Preprocess.from_spec(spec)
        except ValueError as error:
            raise ValueError(f"config.model.{error}") from error
        result.append(DataStage(until_step, transforms, tokenizers[length], preprocess))
    return result


def _open(spec: Any, path: str) -> DataSource:
    with named(path):
        return make_source(to_plain(spec), path=path, plugins=ANY_MODULE)


def _make_tokenizer(spec: Mapping[str, Any], plugins: Sequence[str]) -> Tokenizer:
    return make_tokenizer(
        spec["tokenizer"],
        context_length=spec["text"]["context_length"],
        path="config.model.tokenizer",
        plugins=plugins,
    )


def _check_vocabulary(spec: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > spec["text"]["vocab_size"]:
        raise ValueError(
            f"config.model.tokenizer has {tokenizer.vocab_size} tokens, "
            f"config.model.text.vocab_size = {spec['text']['vocab_size']}; make it at least as many"
        )


def config_hash(metadata: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a config: what all processes must share."""
    text = json.dumps(metadata["config"], sort_keys=True)
    return sha256(text)
