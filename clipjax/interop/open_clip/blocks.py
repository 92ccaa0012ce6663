"""The transformer blocks that the towers of OpenCLIP share."""

import dataclasses

from clipjax.interop.leaves import (
    Leaf,
    fused_bias,
    fused_kernel,
    leaf,
    linear_leaves,
    merge_kernel,
    norm_leaves,
)


@dataclasses.dataclass(frozen=True)
class BlockNames:
    """What a code base calls the parts of a pre-norm block."""

    ln_1: str
    ln_2: str
    qkv_kernel: str
    qkv_bias: str
    out: str
    fc: str
    proj: str


OPEN_CLIP = BlockNames(
    ln_1="ln_1",
    ln_2="ln_2",
    qkv_kernel="attn.in_proj_weight",
    qkv_bias="attn.in_proj_bias",
    out="attn.out_proj",
    fc="mlp.c_fc",
    proj="mlp.c_proj",
)
TIMM = BlockNames(
    ln_1="norm1",
    ln_2="norm2",
    qkv_kernel="attn.qkv.weight",
    qkv_bias="attn.qkv.bias",
    out="attn.proj",
    fc="mlp.fc1",
    proj="mlp.fc2",
)


def block_leaves(ours: str, theirs: str, names: BlockNames, num_heads: int) -> list[Leaf]:
    """One pre-norm block; `ours` and `theirs` are its own names."""
    attention = f"{ours}/attention"
    return [
        *norm_leaves(f"{ours}/ln_1", f"{theirs}.{names.ln_1}"),
        *norm_leaves(f"{ours}/ln_2", f"{theirs}.{names.ln_2}"),
        leaf(f"{attention}/qkv_kernel", f"{theirs}.{names.qkv_kernel}", fused_kernel(num_heads)),
        leaf(f"{attention}/qkv_bias", f"{theirs}.{names.qkv_bias}", fused_bias(num_heads)),
        leaf(f"{attention}/out_kernel", f"{theirs}.{names.out}.weight", merge_kernel(num_heads)),
        leaf(f"{attention}/out_bias", f"{theirs}.{names.out}.bias"),
        *linear_leaves(f"{ours}/mlp/fc", f"{theirs}.{names.fc}"),
        *linear_leaves(f"{ours}/mlp/proj", f"{theirs}.{names.proj}"),
    ]
