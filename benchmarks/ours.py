"""clipjax's side: the training step of a config, as `clipjax train` builds it; encoding; a loss."""

import dataclasses
import functools
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import clipjax
from benchmarks.common import MissingError, gpus, status_bytes
from benchmarks.embeddings import random_embeddings
from benchmarks.sizes import (
    B2,
    EPS,
    LEARNING_RATE,
    QUICKSTART,
    SEED,
    WEIGHT_DECAY,
    Size,
    Step,
    tiny_changes,
)
from clipjax.config import default_config
from clipjax.experiment import build_program, fitting_program, resolve
from clipjax.losses import make_loss
from clipjax.models.zoo import MODELS
from clipjax.partitioning.boxes import unbox
from clipjax.plan.chips import CHIPS
from clipjax.plan.model_flops import model_flops

# What JAX calls a TPU: its name in the table of chips.
TPU_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU7x": "tpu7x",
}
EXECUTION = ("remat", "scan_layers", "attention")  # fields of a config that say how it runs


def check_platform() -> None:
    """Refuses to measure the CPU of a machine that has a GPU.

    Raises:
        MissingError: JAX does not see the GPU.
    """
    if gpus() and jax.default_backend() == "cpu":
        raise MissingError("this machine has a GPU that JAX does not see; is jax[cuda] there?")


def chip_of(device_kind: str) -> str | None:
    """The chip in the table of `clipjax plan` that a device is; None for one that is not there.

    The PCIe and NVL forms of a GPU have other peaks than the SXM form, which the table has.
    """
    if device_kind in TPU_KINDS:
        return TPU_KINDS[device_kind]
    words = re.findall(r"[a-z0-9]+", device_kind.lower())
    if {"pcie", "nvl"} & set(words):
        return None
    return next((word for word in words if word in CHIPS and word not in TPU_KINDS.values()), None)


def device_facts() -> dict[str, Any]:
    """The device, and its published peak for bfloat16 where the table has it."""
    device = jax.local_devices()[0]
    chip = chip_of(device.device_kind)
    return {
        "platform": {"cuda": "gpu", "rocm": "gpu"}.get(device.platform, device.platform),
        "device": device.device_kind,
        "chip": chip,
        "peak_tflops": CHIPS[chip].flops / 1e12 if chip else None,
    }


def peak_bytes() -> tuple[int, str]:
    """The most memory held: of the device, or of the process on a CPU."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"]), "device"
    return status_bytes("VmHWM"), "process"


def held_bytes() -> int:
    """The memory held now, as `peak_bytes` counts it."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_in_use" in stats:
        return int(stats["bytes_in_use"])
    return status_bytes("VmRSS")


def make_config(size: Size, changes: Mapping[str, Any]) -> Any:
    """A config of the size, with fields changed by their dotted names.

    Raises:
        MissingError: this tree has no such field.
    """
    if size.model == QUICKSTART:
        from configs.quickstart import get_config

        config = get_config()
        config.data.source = ""
        # As open_clip trains.
        config.optimizer.name = "adamw"
        config.optimizer.ema_decay = config.optimizer.clip_norm = None
    else:
        config = default_config()
        config.model.name = size.model
        if size.tiny:
            for key, value in tiny_changes(MODELS[size.model]).items():
                if isinstance(value, dict):
                    config.model[key].update(value)
                else:
                    config.model[key] = value
    config.dtype, config.batch_size, config.seed = size.dtype, size.examples, SEED
    config.loss.name = size.loss
    config.optimizer.learning_rate = LEARNING_RATE
    config.optimizer.b2, config.optimizer.eps = B2, EPS
    config.optimizer.weight_decay = WEIGHT_DECAY
    config.schedule.name, config.schedule.warmup_steps = "constant", 0
    config.evals = {}
    for path, value in changes.items():
        *groups, last = path.split(".")
        group = functools.reduce(lambda part, name: part.get(name, {}), groups, config)
        if last not in group:
            raise MissingError(f"this tree has no config.{path}")
        group[last] = value
    return config


def resolve_config(size: Size, changes: Mapping[str, Any]) -> Any:
    """What the config decides.

    Raises:
        MissingError: this tree has no such field, or not that value of it.
    """
    config = make_config(size, changes)
    try:
        return resolve(config, to_run=False)
    except ValueError as error:
        if not changes:
            raise
        raise MissingError(str(error)) from None


def make_batch(program: Any, spec: Mapping[str, Any]) -> Any:
    """Random pixels and tokens, whole lengths, on the device."""
    rng = np.random.default_rng(SEED)

    def draw(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        is_text = path[0].key == "text"
        most = spec["text"]["vocab_size"] - 1 if is_text else 255
        drawn = rng.integers(1, most, shape.shape)
        if is_text:
            drawn[:, -1] = most  # the end, the largest id of CLIP's vocabulary
        return jax.device_put(drawn.astype(shape.dtype), shape.sharding)

    return jax.tree_util.tree_map_with_path(draw, program.abstract_batch)


def make_step(size: Size, changes: Mapping[str, Any] | None = None) -> tuple[Step, Any]:
    """Builds and compiles the step; returns it and the compiled program.

    Args:
        size: what it computes.
        changes: of the config, by dotted names; nothing changed is the default.
    """
    check_platform()
    resolved = resolve_config(size, changes or {})
    program = build_program(resolved)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:  # what config.remat = auto takes, as a run asks
        program = fitting_program(resolved, program, Path(workdir))
    choose_s = time.perf_counter() - begin
    with program.scope():
        batch = make_batch(program, program.spec)
        state = program.create_state(SEED)
        jax.block_until_ready(state)
        begin = time.perf_counter()
        lowered = program.step.lower(state, batch)
        traced = time.perf_counter()
        compiled = lowered.compile()
        compiled_at = time.perf_counter()
    settings = resolved.settings
    flops = model_flops(program.spec, program.model, size.examples)
    memory = compiled.memory_analysis()
    facts = {
        **device_facts(),
        "settings": {name: getattr(settings, name) for name in EXECUTION},
        "execution": dataclasses.asdict(program.execution),
        "changes": dict(changes or {}),
        "loss_settings": {
            name: getattr(settings.loss, name)
            for name in ("layout", "tile_size", "dtype")
            if hasattr(settings.loss, name)
        },
        "trace_s": traced - begin,
        "choose_s": choose_s,  # of compile_s: where remat = auto compiled to see what fits
        "compile_s": choose_s + compiled_at - traced,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9 if memory else None,
        "train_gflops_an_example": flops.train / 1e9,
        "flops_by": flops.source,
    }

    def run() -> jax.Array:
        nonlocal state
        with program.scope():  # as the loop calls it; what was compiled above is not compiled again
            state, metrics = program.step(state, batch)
        return metrics["loss"]

    return Step(run, float, facts, peak_bytes), compiled


def make_loss_step(batch: int, embed: int, layout: str) -> Step:
    """Value and gradient of the softmax loss of unit embeddings in bfloat16."""
    check_platform()
    image, text = random_embeddings(batch, embed)
    # Rounded on the host: float32 copies on the device would count as the loss's own.
    inputs = [jnp.asarray(x.astype(jnp.bfloat16)) for x in (image, text)]
    inputs += [jnp.asarray(x, jnp.float32) for x in (np.log(1 / 0.07), 0.0)]
    step_fn = jax.jit(jax.value_and_grad(make_loss("clip", layout=layout), (0, 1, 2), has_aux=True))
    before = held_bytes()
    begin = time.perf_counter()
    compiled = step_fn.lower(*inputs).compile()
    memory = compiled.memory_analysis()
    facts = {
        **device_facts(),
        "compile_s": time.perf_counter() - begin,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9 if memory else None,
        "memory_before_gb": before / 1e9,
    }

    def run() -> jax.Array:
        (loss, _), _ = compiled(*inputs)
        return loss

    return Step(run, float, facts, peak_bytes)


def make_model(size: Size) -> Any:
    """A `clipjax.Model` with random weights."""
    check_platform()
    resolved = resolve_config(size, {})
    variables = unbox(resolved.stages[-1].init_variables(jax.random.key(SEED)))
    return clipjax.Model(resolved.spec, variables, batch_size=size.examples, dtype=size.dtype)
