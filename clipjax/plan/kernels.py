"""FLOPs of what a compiled program calls by name: cuBLAS, cuDNN and the kernels of Pallas.

Matrix products only, two per multiply-add, as of the dots that stand in the program itself. A mask
saves nothing here, as in the model's own count; nor does a library's padding cost anything.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from clipjax.plan.hlo import Computation, Instruction
from clipjax.plan.products import convolution_flops

LIBRARIES = ("__cublas", "__cudnn")
# Kernels of a user's own. What they compute is known where their author states it.
_PALLAS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "triton_kernel_call", "mosaic_gpu")


class Work(NamedTuple):
    """FLOPs of one call.

    Attributes:
        flops: of its matrix products.
        recomputed: of them, those that the forward pass has made already.
    """

    flops: float
    recomputed: float = 0.0


def target(instruction: Instruction) -> str:
    """Whom a custom call calls; "" of other instructions."""
    if instruction.opcode != "custom-call":
        return ""
    return instruction.attribute("custom_call_target").strip('"')


def is_workspace(instruction: Instruction, place: int) -> bool:
    """Whether a result of a library's call is its workspace: bytes that only it uses."""
    called, shape = target(instruction), instruction.shapes[place]
    is_last = place == len(instruction.shapes) - 1 > 0
    is_bytes = shape.dtype in ("s8", "u8") and len(shape.dims) == 1
    return called.startswith(LIBRARIES) and is_last and is_bytes


def call_work(instruction: Instruction, computation: Computation) -> Work | None:
    """What a custom call computes; None where that is not known, or where nothing is multiplied."""
    called = target(instruction)
    if called.startswith("__cublas$"):
        return _matmul(instruction, computation)
    if called.startswith("__cudnn$fmha"):
        return _attention(instruction, computation)
    if called.startswith("__cudnn$conv"):
        return _convolution(instruction, computation)
    if called.startswith(_PALLAS):
        stated = cost_estimate(instruction)
        return Work(float(stated["flops"])) if stated else None
    return None


def is_uncounted(instruction: Instruction, computation: Computation) -> bool:
    """Whether it is a kernel that may multiply matrices and does not say how many."""
    called = target(instruction)
    kernel = called.startswith((*_PALLAS, *LIBRARIES))
    return kernel and "$norm" not in called and call_work(instruction, computation) is None


def label(instruction: Instruction) -> str:
    """The name of a kernel for people: its own, or the library's."""
    called = target(instruction)
    if called.startswith(_PALLAS) and instruction.op_name:
        parts = [p for p in instruction.op_name.split("/") if not p.startswith("pallas_call")]
        return parts[-1]
    return called


def cost_estimate(instruction: Instruction) -> dict[str, Any]:
    """What the author of a Pallas kernel states of a call, numbers as text; empty if nothing."""
    return _config(instruction, "custom_call_config").get("cost_estimate") or {}


def _config(instruction: Instruction, key: str) -> dict[str, Any]:
    text = instruction.attribute("backend_config")
    try:
        found = json.loads(text) if text else {}
    except ValueError:
        return {}
    return found.get(key) or {}


def _operand(instruction: Instruction, computation: Computation, place: int) -> tuple[int, ...]:
    return computation.instructions[instruction.operands[place]].shapes[0].dims


def _contracted(numbers: dict[str, Any], dims: Sequence[int]) -> int:
    return math.prod(dims[int(d)] for d in numbers["lhs_contracting_dimensions"])


def _matmul(instruction: Instruction, computation: Computation) -> Work | None:
    numbers = _config(instruction, "gemm_backend_config").get("dot_dimension_numbers")
    if numbers is None:
        return None
    inner = _contracted(numbers, _operand(instruction, computation, 0))
    return Work(2.0 * instruction.shapes[0].size * inner)


def _attention(instruction: Instruction, computation: Computation) -> Work | None:
    """The two products of attention; backwards four, and the scores once more.

    Query, key and value are the first operands, [batch, length, heads, dim] as JAX hands them over.
    """
    config = _config(instruction, "cudnn_fmha_backend_config")
    shape = config.get("intermediate_tensor_shape", {}).get("dimensions")
    if not shape:
        return None
    scores = math.prod(int(size) for size in shape)
    query_dim = _operand(instruction, computation, 0)[-1]
    value_dim = _operand(instruction, computation, 2)[-1]
    once = 2.0 * scores
    if "Backward" in target(instruction):
        again = once * query_dim
        return Work(again + 2 * once * (query_dim + value_dim), recomputed=again)
    return Work(once * (query_dim + value_dim))


def _convolution(instruction: Instruction, computation: Computation) -> Work | None:
    """A convolution and its two gradients: the same multiply-adds, other roles of the arrays."""
    first = _operand(instruction, computation, 0)
    second = _operand(instruction, computation, 1)
    result = instruction.shapes[0].dims
    called = target(instruction)
    if "BackwardInput" in called:
        image, kernel, out = result, second, first
    elif "BackwardFilter" in called:
        image, kernel, out = first, result, second
    else:
        image, kernel, out = first, second, result
    return Work(convolution_flops(instruction, image, kernel, out))
