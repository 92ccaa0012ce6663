"""From the tensors of an OpenCLIP state dict to this package's unrolled parameters, for tests."""

import re

import numpy as np

from clipjax.models.layers_layout import stack_layers
from clipjax.trees import unflatten_names

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
TRUNK = {
    "pos_embed": "position_embedding",
    "patch_embed.proj.bias": "patch_bias",
    "norm.weight": "ln_post/scale",
    "norm.bias": "ln_post/bias",
    "attn_pool.latent": "map_head/probe",
    "attn_pool.norm.weight": "map_head/norm/scale",
    "attn_pool.norm.bias": "map_head/norm/bias",
    "attn_pool.proj.bias": "map_head/attention/out_bias",
    "attn_pool.mlp.fc1.bias": "map_head/mlp/fc/bias",
    "attn_pool.mlp.fc2.bias": "map_head/mlp/proj/bias",
}
# timm's names of a block's parts, as the other towers call them.
TRUNK_BLOCK = {
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
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


def _trunk_leaf(name, x, heads):
    """A tensor of timm's ViT with attention pooling."""
    if name in TRUNK:
        return TRUNK[name], x.reshape(x.shape[1:]) if x.ndim == 3 else x
    if name == "patch_embed.proj.weight":
        return "patch_kernel", x.transpose(2, 3, 1, 0)
    match = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
    if match:
        rest = match[2]
        for theirs, ours in TRUNK_BLOCK.items():
            rest = rest.replace(theirs, ours)
        leaf, value = _block_leaf(rest, x, heads)
        return f"transformer/block_{match[1]}/{leaf}", value
    part = name.removeprefix("attn_pool.")
    mlp = {"mlp.fc1.weight": "fc", "mlp.fc2.weight": "proj"}
    if part in mlp:
        return f"map_head/mlp/{mlp[part]}/kernel", x.T
    layer, leaf = part.split(".")
    ours = f"{layer.replace('proj', 'out')}_{'kernel' if leaf == 'weight' else 'bias'}"
    return f"map_head/attention/{ours}", _split_heads(part, x, heads)


def _split_heads(part, x, heads):
    """A tensor of q, kv or proj."""
    if part == "proj.weight":
        return x.T.reshape(heads, -1, x.shape[0])
    group = (2, heads, -1) if part.startswith("kv") else (heads, -1)
    return x.T.reshape(x.shape[1], *group) if part.endswith("weight") else x.reshape(group)


NORM_LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def _resnet_leaf(name, x, heads):
    """A tensor of the modified ResNet; keys and values are joined later, as parts 0 and 1."""
    if name == "attnpool.positional_embedding":
        return "attention_pool/position_embedding", x
    if name.startswith("attnpool."):
        layer, leaf = name.split(".")[1:]
        kind = "kernel" if leaf == "weight" else "bias"
        ours = {"q_proj": f"q_{kind}", "k_proj": f"kv_{kind}#0", "v_proj": f"kv_{kind}#1"}
        if layer == "c_proj":
            value = x.T.reshape(heads, -1, x.shape[0]) if kind == "kernel" else x
            return f"attention_pool/attention/out_{kind}", value
        value = x.T.reshape(x.shape[1], heads, -1) if kind == "kernel" else x.reshape(heads, -1)
        return f"attention_pool/attention/{ours[layer]}", value
    name = re.sub(r"layer(\d)\.(\d+)\.", r"layer\1_\2/", name)
    name = name.replace("downsample.0", "downsample_conv").replace("downsample.1", "downsample_bn")
    module, leaf = name.rsplit(".", 1)
    if x.ndim == 4:
        return f"{module}/kernel", x.transpose(2, 3, 1, 0)
    return f"{module}/{NORM_LEAVES[leaf]}", x


def join_parts(leaves):
    """Stacks `name#0`, `name#1`, ...: kernels [width, part, ...], biases [part, ...]."""
    leaves = dict(leaves)
    for name in [name.removesuffix("#0") for name in leaves if name.endswith("#0")]:
        parts = sorted(key for key in leaves if key.startswith(f"{name}#"))
        axis = 1 if name.endswith("kernel") else 0
        leaves[name] = np.stack([leaves.pop(part) for part in parts], axis=axis)
    return leaves


def convert(tensors, spec):
    """Our tree, scanned, of an OpenCLIP state dict."""
    leaves = dict(from_open_clip(name, x, spec) for name, x in tensors.items())
    return stack_layers(unflatten_names(join_parts(leaves)))


def from_open_clip(name, x, spec):
    """Renames and reshapes one tensor of a ViT or text tower; (our name, our array)."""
    x = np.asarray(x)
    if name in ("logit_scale", "logit_bias"):
        return name, x
    if name == "text_projection":
        return "text_projection/kernel", x
    if name == "visual.proj":
        return "image_projection/kernel", x
    if name.startswith("visual.") and spec["image"]["name"] == "modified_resnet":
        heads = spec["image"]["num_heads"]
        leaf, value = _resnet_leaf(name.removeprefix("visual."), x, heads)
        return f"image_encoder/{leaf}", value
    if name == "visual.conv1.weight":
        return "image_encoder/patch_kernel", x.transpose(2, 3, 1, 0)
    if name.startswith("visual.trunk."):
        heads = spec["image"]["num_heads"]
        leaf, value = _trunk_leaf(name.removeprefix("visual.trunk."), x, heads)
        return f"image_encoder/{leaf}", value
    tower = "image" if name.startswith("visual.") else "text"
    rest = name.removeprefix("visual.").removeprefix("text.")
    if rest.startswith("text_projection."):
        leaf = {"weight": ("kernel", x.T), "bias": ("bias", x)}[rest.split(".")[1]]
        return f"text_projection/{leaf[0]}", leaf[1]
    match = BLOCK.fullmatch(rest)
    if match is None:
        return f"{tower}_encoder/{PLAIN[rest]}", x
    leaf, value = _block_leaf(match[2], x, spec[tower]["num_heads"])
    return f"{tower}_encoder/transformer/block_{match[1]}/{leaf}", value
