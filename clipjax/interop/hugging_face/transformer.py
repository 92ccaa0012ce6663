"""What the transformers of all families share: their names, and the fields of their configs."""

from collections.abc import Mapping
from typing import Any

from clipjax.interop.leaves import CONV, BlockNames, Leaf, leaf, norm_leaves, stack_leaves
from clipjax.interop.section import Section
from clipjax.interop.tensors import LazyTensor

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
_BLOCK = BlockNames(
    ln_1="layer_norm1",
    ln_2="layer_norm2",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    fc="mlp.fc1",
    proj="mlp.fc2",
)


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


def encoder(ours: str, theirs: str, tower: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """The blocks of CLIP's and SigLIP's towers."""
    return stack_leaves(ours, f"{theirs}.encoder.layers", _BLOCK, tower)


def image_embeddings(theirs: str = "vision_model") -> tuple[Leaf, ...]:
    """Patches and positions of CLIP's and SigLIP's images, and the final normalisation."""
    ours = "image_encoder"
    return (
        leaf(f"{ours}/patch_kernel", f"{theirs}.embeddings.patch_embedding.weight", CONV),
        leaf(f"{ours}/position_embedding", f"{theirs}.embeddings.position_embedding.weight"),
        *norm_leaves(f"{ours}/ln_post", f"{theirs}.post_layernorm"),
    )


def text_embeddings() -> tuple[Leaf, ...]:
    """Token and position embeddings, and the final normalisation, of CLIP's and SigLIP's text."""
    ours, theirs = "text_encoder", "text_model.embeddings"
    return (
        leaf(f"{ours}/token_embedding", f"{theirs}.token_embedding.weight"),
        leaf(f"{ours}/position_embedding", f"{theirs}.position_embedding.weight"),
        *norm_leaves(f"{ours}/ln_final", "text_model.final_layer_norm"),
    )


def ignored(name: str) -> bool:
    """Whether a tensor of CLIP's or SigLIP's is a buffer that the model can do without."""
    return name.endswith(".embeddings.position_ids")


def unused(spec: Mapping[str, Any]) -> dict[str, LazyTensor]:
    """Tensors that a published model holds and computes nothing with: none."""
    del spec
    return {}
