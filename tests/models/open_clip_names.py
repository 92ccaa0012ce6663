"""From the tensors of an OpenCLIP state dict to this package's unrolled parameters, for tests."""

import re

import numpy as np

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
