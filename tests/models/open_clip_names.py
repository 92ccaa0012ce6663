"""From the tensors of an OpenCLIP state dict to this package's unrolled parameters, for tests."""

import re

import numpy as np

TOWERS = (("visual.", "image_encoder"), ("", "text_encoder"))
PLAIN = {
    "class_embedding": "class_embedding",
    "positional_embedding": "position_embedding",
    "token_embedding.weight": "token_embedding",
    "ln_pre.weight": "ln_pre/scale",
    "ln_pre.bias": "ln_pre/bias",
    "ln_post.weight": "ln_post/scale",
    "ln_post.bias": "ln_post/bias",
    "ln_final.weight": "ln_final/scale",
    "ln_final.bias": "ln_final/bias",
}
BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.*)")


def _block_leaf(rest, x, heads):
    """(our name inside the block, our array)."""
    if rest == "attn.in_proj_weight":
        width = x.shape[1]
        return "attention/qkv_kernel", x.reshape(3, heads, -1, width).transpose(3, 0, 1, 2)
    if rest == "attn.in_proj_bias":
        return "attention/qkv_bias", x.reshape(3, heads, -1)
    if rest == "attn.out_proj.weight":
        return "attention/out_kernel", x.T.reshape(heads, -1, x.shape[0])
    if rest == "attn.out_proj.bias":
        return "attention/out_bias", x
    layer, leaf = re.fullmatch(r"(?:mlp\.)?(\w+)\.(weight|bias)", rest).groups()
    if layer.startswith("ln"):
        return f"{layer}/{'scale' if leaf == 'weight' else 'bias'}", x
    layer = layer.removeprefix("c_")
    return (f"mlp/{layer}/kernel", x.T) if leaf == "weight" else (f"mlp/{layer}/bias", x)


def from_open_clip(name, x, spec):
    """Renames and reshapes one tensor of a ViT or text tower; (our name, our array)."""
    x = np.asarray(x)
    if name in ("logit_scale", "logit_bias"):
        return name, x
    if name == "text_projection":
        return "text_projection/kernel", x
    if name == "visual.proj":
        return "image_projection/kernel", x
    if name == "visual.conv1.weight":
        return "image_encoder/patch_kernel", x.transpose(2, 3, 1, 0)
    tower = "image" if name.startswith("visual.") else "text"
    rest = name.removeprefix("visual.")
    match = BLOCK.fullmatch(rest)
    if match is None:
        return f"{tower}_encoder/{PLAIN[rest]}", x
    leaf, value = _block_leaf(match[2], x, spec[tower]["num_heads"])
    return f"{tower}_encoder/transformer/block_{match[1]}/{leaf}", value
