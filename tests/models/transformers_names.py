"""From the tensors of transformers' ALIGN and XLM-RoBERTa to this package's, for tests."""

import re

import numpy as np
from open_clip_names import NORM_LEAVES, join_parts

from clipjax.models.layers_layout import stack_layers
from clipjax.trees import unflatten_names

EMBEDDINGS = {
    "word_embeddings.weight": "token_embedding",
    "position_embeddings.weight": "position_embedding",
    "token_type_embeddings.weight": "segment_embedding",
    "LayerNorm.weight": "ln_embedding/scale",
    "LayerNorm.bias": "ln_embedding/bias",
}
QKV = {"query": 0, "key": 1, "value": 2}
MODULES = {
    "attention.output.LayerNorm": "ln_1",
    "output.LayerNorm": "ln_2",
    "intermediate.dense": "mlp/fc",
    "output.dense": "mlp/proj",
}
CONVOLUTIONS = {
    "expansion.expand_conv": "expand_conv",
    "expansion.expand_bn": "expand_bn",
    "depthwise_conv.depthwise_conv": "depthwise_conv",
    "depthwise_conv.depthwise_norm": "depthwise_bn",
    "squeeze_excite.reduce": "squeeze",
    "squeeze_excite.expand": "excite",
    "projection.project_conv": "project_conv",
    "projection.project_bn": "project_bn",
}


def bert_leaf(name, x, heads):
    """A tensor below `text_model.`."""
    if name.startswith("embeddings."):
        return EMBEDDINGS[name.removeprefix("embeddings.")], x
    block, module, leaf = re.fullmatch(r"encoder\.layer\.(\d+)\.(.*)\.(\w+)", name).groups()
    prefix = f"transformer/block_{block}"
    kind = "kernel" if leaf == "weight" else "bias"
    if module.startswith("attention.self."):
        part = QKV[module.rsplit(".", 1)[1]]
        value = x.T.reshape(x.shape[1], heads, -1) if kind == "kernel" else x.reshape(heads, -1)
        return f"{prefix}/attention/qkv_{kind}#{part}", value
    if module == "attention.output.dense":
        value = x.T.reshape(heads, -1, x.shape[0]) if kind == "kernel" else x
        return f"{prefix}/attention/out_{kind}", value
    if "LayerNorm" in module:
        return f"{prefix}/{MODULES[module]}/{NORM_LEAVES[leaf]}", x
    return f"{prefix}/{MODULES[module]}/{kind}", x.T if kind == "kernel" else x


def efficientnet_leaf(name, x, block_names):
    """A tensor below `vision_model.`; `block_names[i]` is our name of their block i."""
    module, leaf = name.rsplit(".", 1)
    match = re.fullmatch(r"encoder\.blocks\.(\d+)\.(.*)", module)
    stem = {"embeddings.convolution": "stem_conv", "embeddings.batchnorm": "stem_bn"}
    ours = f"{block_names[int(match[1])]}/{CONVOLUTIONS[match[2]]}" if match else stem[module]
    if ours.endswith("_bn"):
        return f"{ours}/{NORM_LEAVES[leaf]}", x
    return (f"{ours}/kernel", x.transpose(2, 3, 1, 0)) if x.ndim == 4 else (f"{ours}/bias", x)


def convert(tensors, heads, block_names=()):
    """Our tree, scanned, of a state dict; the towers' prefixes are ALIGN's."""
    leaves = {}
    for name, x in tensors.items():
        x = np.asarray(x)
        if name.startswith("text_model."):
            leaf, value = bert_leaf(name.removeprefix("text_model."), x, heads)
            leaves[f"text_encoder/{leaf}"] = value
        elif name.startswith("vision_model."):
            leaf, value = efficientnet_leaf(name.removeprefix("vision_model."), x, block_names)
            leaves[f"image_encoder/{leaf}"] = value
        elif name == "logit_scale":
            leaves[name] = x
        else:
            module, leaf = name.rsplit(".", 1)
            leaves[f"{module}/{'kernel' if leaf == 'weight' else leaf}"] = x.T
    return stack_layers(unflatten_names(join_parts(leaves)))
