"""What the transformers of all families share: their names, and the fields of their configs."""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.leaves import (
    Leaf,
    leaf,
    linear_leaves,
    merge_kernel,
    norm_leaves,
    qkv_bias_leaf,
    qkv_kernel_leaf,
)
from clipjax.interop.section import Section

# Theirs: ours.
SIZES = {
    "hidden_size": "width",
    "intermediate_size": "mlp_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
}
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
# Of two names of theirs for one function, the first is written.
_THEIR_ACTIVATIONS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}


def tower_spec(section: Section) -> dict[str, Any]:
    """The fields of a tower that text and image have alike."""
    spec: dict[str, Any] = {ours: section.integer(theirs) for theirs, ours in SIZES.items()}
    if spec["width"] % spec["num_heads"]:
        raise section.error("num_attention_heads", f"a divisor of hidden_size = {spec['width']}")
    spec["activation"] = section.choice("hidden_act", ACTIVATIONS)
    spec["layer_norm_eps"] = section.number("layer_norm_eps")
    return spec


def tower_config(tower: Mapping[str, Any]) -> dict[str, Any]:
    """The way back of `tower_spec`."""
    config = {theirs: tower[ours] for theirs, ours in SIZES.items()}
    config["hidden_act"] = _THEIR_ACTIVATIONS.get(tower["activation"], tower["activation"])
    config["layer_norm_eps"] = tower["layer_norm_eps"]
    return config


def attention(
    ours: str, theirs: str, num_heads: int, names: tuple[str, str, str], out: str
) -> tuple[Leaf, ...]:
    """Self-attention whose q, k and v are three layers of theirs.

    Args:
        ours: path of our module.
        theirs: path of the module that holds q, k and v.
        num_heads: heads.
        names: of the layers for q, k and v.
        out: path of the output layer.
    """
    layers = [f"{theirs}.{name}" for name in names]
    return (
        qkv_kernel_leaf(f"{ours}/qkv_kernel", [f"{x}.weight" for x in layers], num_heads),
        qkv_bias_leaf(f"{ours}/qkv_bias", [f"{x}.bias" for x in layers], num_heads),
        leaf(f"{ours}/out_kernel", f"{out}.weight", merge_kernel(num_heads)),
        leaf(f"{ours}/out_bias", f"{out}.bias"),
    )


def encoder(ours: str, theirs: str, tower: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The blocks of CLIP's and SigLIP's towers."""
    rows: list[Leaf] = []
    for i in range(tower["depth"]):
        our, their = f"{ours}/transformer/block_{i}", f"{theirs}.encoder.layers.{i}"
        here = f"{their}.self_attn"
        rows += norm_leaves(f"{our}/ln_1", f"{their}.layer_norm1")
        rows += attention(
            f"{our}/attention",
            here,
            tower["num_heads"],
            ("q_proj", "k_proj", "v_proj"),
            f"{here}.out_proj",
        )
        rows += norm_leaves(f"{our}/ln_2", f"{their}.layer_norm2")
        rows += linear_leaves(f"{our}/mlp/fc", f"{their}.mlp.fc1")
        rows += linear_leaves(f"{our}/mlp/proj", f"{their}.mlp.fc2")
    return tuple(rows)


def text_embeddings(theirs: str = "text_model") -> tuple[Leaf, ...]:
    """Token and position embeddings, and the final normalisation, of CLIP's and SigLIP's text."""
    return (
        leaf("text_encoder/token_embedding", f"{theirs}.embeddings.token_embedding.weight"),
        leaf("text_encoder/position_embedding", f"{theirs}.embeddings.position_embedding.weight"),
        *norm_leaves("text_encoder/ln_final", f"{theirs}.final_layer_norm"),
    )
