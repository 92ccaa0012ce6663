"""The memory that a step needs, by a model, and what a row of recomputation costs.

The model counts what a step is known to keep. It is right to some ten per cent, which is enough to
choose what to compile next; whether a step fits, only the compiler says.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from clipjax.config_fields import Settings
from clipjax.experiment.stages import Stage
from clipjax.layers.execution import Execution
from clipjax.layers.remat import REMAT
from clipjax.train_state import TrainState
from clipjax.trees import count_parameters

DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
_STACK = {"width", "mlp_dim", "num_heads", "depth"}  # what the size of a stack follows from
# Of a last block that computes one token the others keep, in widths, their input before and behind
# the norm, keys and values; and need, in width^2 FLOPs a token, the products of keys and values.
_NARROW_KEPT, _NARROW_FLOPS = 4.0, 4.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What may be changed about a step without changing what it computes.

    Attributes:
        remat: config.remat.
        micro_batches: of gradient caching; 1 is the whole batch at once.
        sharding: config.sharding.
        fsdp: config.mesh.fsdp.
    """

    remat: str
    micro_batches: int
    sharding: str
    fsdp: int

    def flags(self, batch_size: int, current: "Setting | None" = None) -> tuple[str, ...]:
        """The overrides that make a config so; only those that differ from a current setting."""
        micro = str(batch_size // self.micro_batches) if self.micro_batches > 1 else "None"
        flags = {
            "remat": f"--config.remat={self.remat}",
            "micro_batches": f"--config.micro_batch_size={micro}",
            "sharding": f"--config.sharding={self.sharding}",
            "fsdp": f"--config.mesh.data=-1 --config.mesh.fsdp={self.fsdp}",
        }
        if current is not None:
            flags = {k: v for k, v in flags.items() if getattr(self, k) != getattr(current, k)}
            if current.sharding == "tensor" != self.sharding:
                flags["fsdp"] = f"--config.mesh.data=-1 --config.mesh.fsdp={self.fsdp}"
                flags["tensor"] = "--config.mesh.tensor=1"
        return tuple(flags.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """Sizes that the memory of a step follows from.

    Attributes:
        spec: the model spec.
        num_parameters: of the model.
        optimizer_bytes: of the optimizer's state per parameter.
        batch_per_device: examples.
        num_devices: of the mesh.
        item_bytes: of the dtype that the towers compute in.
        zero_share: of the optimizer's state that a device holds under ZeRO-1; None is its even
            part, 1 / num_devices.
        lean: whether attention is a kernel that keeps no scores, and norms and activations leave
            the backward pass their input.
        narrow: the towers, of image and text, whose last block computes one token.
    """

    spec: Mapping[str, Any]
    num_parameters: int
    optimizer_bytes: float
    batch_per_device: float
    num_devices: int
    item_bytes: int
    zero_share: float | None = None
    lean: bool = False
    narrow: tuple[str, ...] = ()


def setting_of(settings: Settings, mesh: Mesh, remat: str) -> Setting:
    """The setting of a run."""
    micro = settings.micro_batch_size or settings.batch_size
    return Setting(
        remat=remat,
        micro_batches=settings.batch_size // micro,
        sharding=settings.sharding,
        fsdp=mesh.shape["fsdp"],
    )


def step_of(stage: Stage, state: TrainState, mesh: Mesh, execution: Execution) -> Step:
    """Sizes of a stage of a run, from the shapes and shardings of its state."""
    settings = stage.settings
    num_parameters = count_parameters(state.params)
    optimizer = jax.tree.leaves((state.opt_state, state.ema_params, state.averages))
    optimizer_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in optimizer)
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in optimizer
    )
    return Step(
        spec=stage.spec,
        num_parameters=num_parameters,
        optimizer_bytes=optimizer_bytes / num_parameters,
        batch_per_device=settings.batch_size / mesh.size,
        num_devices=mesh.size,
        item_bytes=DTYPE_BYTES[settings.dtype],
        zero_share=held / optimizer_bytes if settings.sharding in ("zero1", "tensor") else None,
        lean=execution.lean
        and execution.attention != "xla"
        and (settings.dtype == "bfloat16" or execution.platform == "tpu"),
        narrow=stage.narrow_towers(execution),
    )


def predicted_bytes(step: Step, setting: Setting) -> float:
    """HBM of one device that a step needs under a setting, roughly."""
    return state_bytes(step, setting) + activation_bytes(step, setting)


def state_bytes(step: Step, setting: Setting) -> float:
    """Parameters, optimizer state, gradients and the copy that the towers compute with."""
    parameters = step.num_parameters
    if setting.sharding == "fsdp":
        per_parameter = 4 + step.optimizer_bytes + 4 + step.item_bytes
        # The token embedding is gathered whole, as it is looked up in.
        table = step.spec["text"].get("vocab_size", 0) * step.spec["text"]["width"] * 8
        return parameters * per_parameter / setting.fsdp + table
    optimizer = step.optimizer_bytes
    if setting.sharding in ("zero1", "tensor"):
        optimizer *= 1 / step.num_devices if step.zero_share is None else step.zero_share
    return parameters * (4 + optimizer + 4 + step.item_bytes)


def activation_bytes(step: Step, setting: Setting) -> float:
    """What the backward pass is left by all blocks, and the working set of one."""
    examples = step.batch_per_device / setting.micro_batches
    row = REMAT[setting.remat]
    widths, mlps = row.lean_kept if step.lean else row.kept
    kept = working = 0.0
    for name, (tower, tokens) in blocks_of(step.spec).items():
        width, mlp, heads = tower["width"], tower["mlp_dim"], tower["num_heads"]
        scores = 0 if step.lean else heads * tokens**2
        one = tokens * (widths * width + mlps * mlp) * step.item_bytes
        if setting.remat == "none":
            one += scores * (4 + step.item_bytes)
        few = tokens * min(widths, _NARROW_KEPT) * width * step.item_bytes
        kept += (tower["depth"] - 1) * one + (few if name in step.narrow else one)
        block = 3 * 4 * scores + tokens * (12 * width + 3 * mlp) * step.item_bytes
        working = max(working, block)
    return examples * (kept + working)


def blocks_of(spec: Mapping[str, Any]) -> dict[str, tuple[Mapping[str, Any], int]]:
    """The towers that are stacks of transformer blocks, each with its number of tokens."""
    found = {}
    if _STACK | {"patch_size"} <= set(spec["image"]):
        found["image"] = spec["image"], num_image_tokens(spec)
    if _STACK | {"context_length"} <= set(spec["text"]):  # a tower of one's own may have others
        found["text"] = spec["text"], spec["text"]["context_length"]
    return found


def extra_flops(step: Step, setting: Setting) -> float:
    """FLOPs that a setting adds, as a share of the model's: recomputed and encoded twice.

    A step is three forward passes' worth; gradient caching encodes everything once more.
    """
    extra = 1 / 3 if setting.micro_batches > 1 else 0.0
    repeated = total = 0.0
    row = REMAT[setting.remat]
    widths, mlps, scores = row.lean_recomputed if step.lean else row.recomputed
    for name, (tower, tokens) in blocks_of(step.spec).items():
        width, mlp, depth = tower["width"], tower["mlp_dim"], tower["depth"]
        total += depth * tokens * _block_flops(tower, tokens)
        again = widths * width**2 + mlps * width * mlp + scores * tokens * width
        last = min(widths, _NARROW_FLOPS) * width**2 if name in step.narrow else again
        repeated += tokens * ((depth - 1) * again + last)
    return extra + repeated / (3 * total)


def spared_flops(step: Step) -> dict[str, float]:
    """FLOPs of one example's forward pass that last blocks of one token spare, by tower."""
    spared = {}
    for name, (tower, tokens) in blocks_of(step.spec).items():
        if name in step.narrow:
            keys_and_values = _NARROW_FLOPS * tower["width"] ** 2
            spared[name] = (tokens - 1) * (_block_flops(tower, tokens) - keys_and_values)
    return spared


def _block_flops(tower: Mapping[str, Any], tokens: int) -> float:
    """Of the forward pass, a token."""
    width, mlp = tower["width"], tower["mlp_dim"]
    return 8.0 * width**2 + 4 * width * mlp + 4 * tokens * width


def describes(spec: Mapping[str, Any]) -> bool:
    """Whether the model knows both towers; it does not know a ResNet's."""
    return len(blocks_of(spec)) == 2


def num_image_tokens(spec: Mapping[str, Any]) -> int:
    """Tokens that the image tower's blocks see in training."""
    image = spec["image"]
    patches = (spec["image_size"] // image["patch_size"]) ** 2
    if image.get("patch_dropout"):
        patches = max(1, round(patches * (1 - image["patch_dropout"])))
    return patches + (image.get("pooling") in ("cls", "pooler"))
