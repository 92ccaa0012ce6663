"""The traffic that theory asks of a step; docs/sharding.md derives it."""

from collections.abc import Mapping
from typing import Any

from clipjax.experiment.memory import Setting, Step, blocks_of

F32 = 4


def collective_formulas(
    step: Step, setting: Setting, mesh: Mapping[str, int], batch_size: int
) -> dict[str, float]:
    """Bytes that each device has to receive in a step, by part.

    Of P parameters over N devices of the batch, with gradients and weights of g bytes (the dtype
    that the towers compute in) and the optimizer in float32, in M micro-batches. Gradients are
    summed over the devices once a micro-batch, since each is pulled back on its own:

    - replicated: `2 M g P (N-1)/N`, the gradients' sum;
    - zero1: `(M g + 4) P (N-1)/N`, their sum, scattered, and the new parameters gathered;
    - fsdp over f: `g P (f-1)/f` for each gather, one a pass and micro-batch, and for each scatter;
      and `2 M g P/f (1 - f/N)`, the sum of the shards;
    - tensor over t: as zero1, of the P that a device holds; and `2 (t-1)/t` of the activations,
      twice a block and pass.

    The loss: `12 B D / sqrt(N)` for bfloat16 embeddings folded to a grid.

    Returns:
        {"step": bytes, "loss": bytes}.
    """
    devices = mesh["data"] * mesh["fsdp"]
    share = (devices - 1) / devices
    parameters, item = step.num_parameters, step.item_bytes
    if setting.sharding == "replicated":
        moved = 2 * setting.micro_batches * item * parameters * share
    elif setting.sharding == "fsdp":
        moved = _fsdp(step, setting, mesh)
    else:
        split, activations = _tensor(step, setting, mesh["tensor"])
        summed = setting.micro_batches * item
        moved = (summed + F32) * (parameters - split) * share + activations
    loss = 12.0 * batch_size * step.spec["embed_dim"] / devices**0.5 if devices > 1 else 0.0
    return {"step": moved, "loss": loss}


def _fsdp(step: Step, setting: Setting, mesh: Mapping[str, int]) -> float:
    group = mesh["fsdp"]
    passes = 2 + (setting.remat == "full") + (setting.micro_batches > 1)
    once = step.item_bytes * step.num_parameters * (group - 1) / group
    stacks = blocks_of(step.spec)
    # A last block out of the loop is gathered once, and held for the backward pass.
    last = sum(_block_parameters(stacks[name][0]) for name in step.narrow if name in stacks)
    once_more = step.item_bytes * last * (group - 1) / group * (passes - 1)
    shards = 2 * step.item_bytes * step.num_parameters / group * (1 - 1 / mesh["data"])
    return setting.micro_batches * (once * (passes + 1) - once_more + shards)


def _block_parameters(tower: Mapping[str, Any]) -> float:
    """Of the matrices of one block."""
    return 4.0 * tower["width"] ** 2 + 2.0 * tower["width"] * tower["mlp_dim"]


def _tensor(step: Step, setting: Setting, size: int) -> tuple[float, float]:
    """Parameters that a device does not hold, and the bytes of the activations' sums."""
    if size == 1:
        return 0.0, 0.0
    passes = 2 + (setting.remat == "full") + (setting.micro_batches > 1)
    examples = step.batch_per_device * size  # the devices of a tensor group see the same ones
    whole = activations = 0.0
    for name, (tower, tokens) in blocks_of(step.spec).items():
        depth, sums = tower["depth"], 2 * passes
        whole += depth * _block_parameters(tower)
        # Of one token alone only the gradient behind keys and values is of all tokens.
        last = tokens + sums - 1 if name in step.narrow else sums * tokens
        summed = (depth - 1) * sums * tokens + last
        activations += summed * tower["width"] * step.item_bytes
    text = step.spec["text"]
    whole += text["vocab_size"] * text["width"]
    lookups = (1 + (setting.micro_batches > 1)) * text["context_length"] * text["width"] * F32
    part = (size - 1) / size
    return whole * part, 2 * part * examples * (activations + lookups)
