"""From a config to the objects of a run: the only module that reads config fields.

`build_program` makes what a device executes: model, loss, optimizer, shardings, the jitted step. It
touches no data, so that `clipjax plan` compiles the very same step for a pod that is not there.
`build_experiment` adds the data, the evaluations and the files of a run.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from clipjax import partitioning
from clipjax.checkpoint import (
    LoadReport,
    check_contract,
    load_params,
    load_pretrained,
    make_contract,
    read_manifest,
    resolve_checkpoint,
)
from clipjax.config import build, merge, to_plain, validate
from clipjax.data.loader import Loader
from clipjax.data.preprocess import Preprocess
from clipjax.data.source import spec_name
from clipjax.data.sources import make_source
from clipjax.data.transforms import make_transforms
from clipjax.evals import EVALS, make_encode_fns
from clipjax.evals.running import ScheduledEval
from clipjax.losses import make_loss
from clipjax.models import MODELS, build_model, resolve_spec
from clipjax.models.clip import CLIP
from clipjax.models.layers_layout import stack_layers, unstack_layers
from clipjax.optim import make_optimizer, make_schedule, matcher, optimizer_report
from clipjax.tokenizers import Tokenizer, make_tokenizer
from clipjax.train_state import TrainState, create_train_state, init_variables
from clipjax.train_step import make_train_step
from clipjax.trees import flatten_with_names

CHECKPOINT_MODEL = "checkpoint"
IMAGE_TOWER = ("^image_encoder/", "^image_projection/")
# Parts of the contract that a fine-tuning may change without a word: names, rates of training, and
# the sizes that position embeddings are resized to.
FREE_IN_FINE_TUNING = (
    "model.name",
    "model.source",
    "model.image_size",
    "model.image.patch_dropout",
    "model.image.dropout",
    "model.text.dropout",
    "model.text.context_length",
    "tokenizer.context_length",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """What the devices execute.

    Attributes:
        model: the two towers.
        spec: the model spec, whole.
        mesh: the devices.
        rules: the sharding rules in force.
        abstract_state: shapes and shardings of the train state.
        create_state: makes the state of step 0 from a seed, sharded.
        step: jitted (state, batch) -> (state, metrics); the state is donated.
        abstract_batch: shapes and shardings of a global batch.
        report: what the optimizer does to each parameter, as text.
    """

    model: CLIP
    spec: dict[str, Any]
    mesh: Mesh
    rules: partitioning.ShardingRules
    abstract_state: TrainState
    create_state: Callable[[int], TrainState]
    step: Any
    abstract_batch: dict[str, jax.ShapeDtypeStruct]
    report: str

    @contextmanager
    def scope(self) -> Iterator[None]:
        """The mesh and the rules that the program is traced under."""
        with ExitStack() as stack:
            stack.enter_context(jax.set_mesh(self.mesh))
            stack.enter_context(nn.logical_axis_rules(self.rules.params))
            yield


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
    hang_timeout_s: float
    tensorboard: bool
    report: bool
    resume: str
    load_init: Callable[[Any], tuple[Any, LoadReport]] | None
    metadata: dict[str, Any]


def model_spec(config: ConfigDict) -> dict[str, Any]:
    """Resolves config.model to a whole spec.

    Raises:
        ValueError: an unknown name or field, or no checkpoint to take the model from.
    """
    model = to_plain(config.model)
    if model["name"] != CHECKPOINT_MODEL:
        return resolve_spec(model)
    if not config.init.checkpoint:
        raise ValueError(
            f"config.model.name = {CHECKPOINT_MODEL!r} needs config.init.checkpoint: the folder of "
            f"the model to start from; or name a row of the zoo: {', '.join(MODELS)}"
        )
    contract = read_manifest(resolve_checkpoint(config.init.checkpoint)).contract
    base = {**contract["model"], **{k: contract[k] for k in ("preprocess", "logit_scale")}}
    del model["name"]
    return resolve_spec(merge(base, model))


def build_program(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Program:
    """Builds model, loss, optimizer, shardings and the jitted step.

    Args:
        config: of `get_config`, with overrides.
        devices: to lay the mesh over; those of this run by default.

    Raises:
        ValueError: names the config path, what was found and what is allowed.
    """
    validate(config)
    spec = model_spec(config)
    model = build_model(
        spec, dtype=config.dtype, scan_layers=config.scan_layers, remat=config.remat
    )
    rules = partitioning.rules_of(config.sharding, to_plain(config.logical_axes))
    mesh = partitioning.make_mesh(to_plain(config.mesh), devices)
    num_micro = _num_micro_batches(config, mesh)
    batch_sharding = partitioning.batch_sharding(mesh)
    size, length = spec["image_size"], spec["text"]["context_length"]
    batch = {
        "image": jax.ShapeDtypeStruct(
            (config.batch_size, size, size, 3), jnp.uint8, sharding=batch_sharding
        ),
        "text": jax.ShapeDtypeStruct(
            (config.batch_size, length), jnp.int32, sharding=batch_sharding
        ),
    }
    boxed = jax.eval_shape(lambda key: init_variables(model, key, batch), jax.random.key(0))
    params = nn.unbox(boxed)["params"]
    frozen_patterns = _frozen_patterns(config)
    schedule = make_schedule(
        learning_rate=config.optimizer.learning_rate,
        total_steps=config.total_steps,
        **to_plain(config.schedule),
    )
    tx, report = _optimizer(config, params, schedule, frozen_patterns)

    def create(key: jax.Array) -> TrainState:
        with_ema = config.optimizer.ema_decay is not None
        return create_train_state(key, model, tx, batch, with_ema=with_ema)

    abstract = jax.eval_shape(create, jax.random.key(0))
    axes = partitioning.logical_axes(boxed["params"])
    shardings = partitioning.state_shardings(abstract, axes, mesh, rules)
    names = [name for name, _ in flatten_with_names(params)]
    step = make_train_step(
        model,
        make_loss(
            config.loss.name,
            mesh=mesh,
            layout=config.loss.layout,
            batch_axes=partitioning.BATCH_AXES,
            tile_size=config.loss.tile_size,
        ),
        tx,
        seed=config.seed,
        image_mean=spec["preprocess"]["mean"],
        image_std=spec["preprocess"]["std"],
        max_logit_scale=spec["logit_scale"]["max"],
        schedule=schedule,
        ema_decay=config.optimizer.ema_decay,
        frozen=matcher(frozen_patterns, names, path="config.optimizer.freeze"),
        num_micro_batches=num_micro,
    )
    return Program(
        model=model,
        spec=spec,
        mesh=mesh,
        rules=rules,
        abstract_state=jax.tree.map(
            lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
            abstract,
            shardings,
        ),
        create_state=lambda seed: jax.jit(create, out_shardings=shardings)(jax.random.key(seed)),
        step=jax.jit(
            step,
            in_shardings=(shardings, batch_sharding),
            # Left free, the compiler may return the state with fewer axes than it came with.
            out_shardings=(shardings, partitioning.replicated(mesh)),
            donate_argnums=0,
        ),
        abstract_batch=batch,
        report=report,
    )


def _num_micro_batches(config: ConfigDict, mesh: Mesh) -> int:
    shards = partitioning.num_batch_shards(mesh)
    micro = config.micro_batch_size or config.batch_size
    for path, size in (("batch_size", config.batch_size), ("micro_batch_size", micro)):
        if size % shards:
            raise ValueError(
                f"config.{path} = {size} does not divide over the {shards} devices of "
                f"config.mesh data x fsdp; choose a multiple of {shards}"
            )
    return config.batch_size // micro


def _frozen_patterns(config: ConfigDict) -> tuple[str, ...]:
    locked = IMAGE_TOWER if config.init.lock_image else ()
    if locked and not config.init.checkpoint:
        raise ValueError(
            "config.init.lock_image locks a loaded image tower; give config.init.checkpoint"
        )
    return (*to_plain(config.optimizer.freeze), *locked)


def _optimizer(
    config: ConfigDict, params: Any, schedule: Any, frozen_patterns: tuple[str, ...]
) -> tuple[Any, str]:
    optimizer = config.optimizer
    who = {"freeze": frozen_patterns, "lr_scale": to_plain(optimizer.lr_scale)}
    tx = make_optimizer(
        params,
        schedule=schedule,
        name=optimizer.name,
        b1=optimizer.b1,
        b2=optimizer.b2,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        mask=optimizer.decay_mask,
        clip_norm=optimizer.clip_norm,
        mu_dtype=optimizer.mu_dtype,
        **who,
    )
    report = optimizer_report(
        params, mask=optimizer.decay_mask, weight_decay=optimizer.weight_decay, **who
    )
    return tx, report


def build_experiment(config: ConfigDict, workdir: str | Path) -> Experiment:
    """Builds a run. Data and checkpoints are opened first, devices last.

    Raises:
        ValueError: names the config path, what was found and what is allowed.
    """
    validate(config)
    spec = model_spec(config)
    tokenizer = make_tokenizer(spec["tokenizer"], context_length=spec["text"]["context_length"])
    _check_vocabulary(spec, tokenizer)
    contract = make_contract(spec, tokenizer.contract())
    load_init = _make_load_init(config, contract)
    source = make_source(to_plain(config.data.source), path="config.data.source")
    eval_sources = {
        name: make_source(to_plain(config.evals[name].source), path=f"config.evals.{name}.source")
        for name in config.evals
    }
    program = build_program(config)
    loader = Loader(
        source,
        make_transforms(
            to_plain(config.data.transforms),
            image_size=spec["image_size"],
            path="config.data.transforms",
        ),
        tokenizer,
        batch_size=config.batch_size,
        seed=config.seed,
        image_size=spec["image_size"],
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.data.num_workers,
        prefetch=config.data.prefetch,
        max_bad_fraction=config.data.max_bad_fraction,
    )
    plain = to_plain(config)
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


def _check_vocabulary(spec: Mapping[str, Any], tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > spec["text"]["vocab_size"]:
        raise ValueError(
            f"config.model.tokenizer has {tokenizer.vocab_size} tokens, "
            f"config.model.text.vocab_size = {spec['text']['vocab_size']}; make it at least as many"
        )


def build_evals(
    config: ConfigDict, program: Program, tokenizer: Tokenizer, sources: Mapping[str, Any]
) -> tuple[ScheduledEval, ...]:
    """Builds the evaluations of a config on opened sources."""
    spec = program.spec
    encode = make_encode_fns(program.model, spec["preprocess"], dtype=config.dtype)
    preprocess = Preprocess(
        spec["image_size"],
        resize=spec["preprocess"]["resize"],
        interpolation=spec["preprocess"]["interpolation"],
    )
    scheduled = []
    for name, source in sources.items():
        eval_spec = to_plain(config.evals[name])
        every_steps = eval_spec.pop("every_steps", 0)
        where = eval_spec.pop("source")
        where = where if isinstance(where, str) else where["spec"]
        eval_spec.setdefault("name", name)
        prefix = f"{eval_spec['name']}/{spec_name(where)}"
        scheduled.append(
            ScheduledEval(
                name=name,
                metric_prefix=prefix,
                every_steps=every_steps,
                eval=build(
                    eval_spec,
                    EVALS,
                    path=f"config.evals.{name}",
                    source=source,
                    encode_image_fn=encode.image,
                    encode_text_fn=encode.text,
                    logit_scale_fn=encode.logit_scale,
                    preprocess=preprocess,
                    tokenizer=tokenizer,
                    mesh=program.mesh,
                ),
            )
        )
    prefixes = [s.metric_prefix for s in scheduled]
    for prefix in prefixes:
        if prefixes.count(prefix) > 1:
            raise ValueError(f"two of config.evals write {prefix!r}; keep one of them")
    return tuple(scheduled)


def _make_load_init(
    config: ConfigDict, contract: Mapping[str, Any]
) -> Callable[[Any], tuple[Any, LoadReport]] | None:
    """Checks config.init against the model now; returns what loads it later."""
    init = config.init
    if not init.checkpoint:
        return None
    step_dir = resolve_checkpoint(init.checkpoint)
    check_contract(
        read_manifest(step_dir).contract,
        contract,
        override=[*_existing(contract, FREE_IN_FINE_TUNING), *to_plain(init.override)],
    )
    to_layout = stack_layers if config.scan_layers else unstack_layers

    def load_init(params: Any) -> tuple[Any, LoadReport]:
        logging.info("starting from the parameters of %s", step_dir)
        loaded = to_layout(load_params(step_dir))
        return load_pretrained(
            params,
            loaded,
            rename=to_plain(init.rename),
            drop=to_plain(init.drop),
            initialise=to_plain(init.initialise),
        )

    return load_init


def _existing(contract: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    def has(key: str) -> bool:
        node: Any = contract
        for part in key.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return False
            node = node[part]
        return True

    return [key for key in keys if has(key)]


def config_hash(metadata: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a config: what all processes must share."""
    text = json.dumps(metadata["config"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
