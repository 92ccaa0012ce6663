"""LoRA as peft itself writes, reads and merges it: needs the [interop] extra."""

import re

import jax
import numpy as np
import pytest
from checkpoints import write_checkpoint
from hugging_face_case import inputs, make_directory
from small_weights import assert_same, leaves_of

from clipjax import load
from clipjax.interop import Hints
from clipjax.interop.converting import convert_weights
from clipjax.interop.files import open_tensors
from clipjax.models import abstract_variables
from clipjax.models.lora import LORA, adapted_kernels, add_factors
from clipjax.partitioning.boxes import unbox
from clipjax.trees import flatten_with_names

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]

TARGETS = ["q_proj", "v_proj", "fc1", "visual_projection", "patch_embedding", "token_embedding"]
OPTIONS = {
    "plain": {"r": 4, "lora_alpha": 10},
    "patterns": {"r": 4, "lora_alpha": 6, "rank_pattern": {"v_proj": 2}},
    "root": {"r": 4, "lora_alpha": 10, "use_rslora": True, "alpha_pattern": {"0.mlp.fc1": 3}},
    "whole": {
        "r": 4,
        "lora_alpha": 10,
        "modules_to_save": ["text_projection"],
        "bias": "lora_only",
    },
}


@pytest.mark.parametrize("case", OPTIONS)
def test_what_peft_writes_is_what_peft_merges(tmp_path, case):
    import torch
    import transformers_reference
    from peft import LoraConfig, get_peft_model

    make_directory(tmp_path / "base", "clip")
    model, _ = transformers_reference.load("CLIPModel", tmp_path / "base")
    model = get_peft_model(model, LoraConfig(target_modules=TARGETS, **OPTIONS[case]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(tmp_path / "adapter")
    state = {name: x.clone() for name, x in model.state_dict().items()}
    torch.save(state, tmp_path / "adapter" / "whole.bin")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")

    convert_weights(tmp_path / "merged", tmp_path / "a", "clipjax")
    hints = Hints(lora=tmp_path / "adapter")
    done = convert_weights(tmp_path / "base", tmp_path / "b", "clipjax", hints=hints)
    assert "LoRA of" in done.notes[-1]
    # The state dict of the whole, beside the config of the base and of the adapter.
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "adapter" / name).write_bytes((tmp_path / "base" / name).read_bytes())
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "whole.bin").rename(tmp_path / "adapter" / "pytorch_model.bin")
    convert_weights(tmp_path / "adapter", tmp_path / "c", "clipjax")

    wanted, found = leaves_of(tmp_path / "a"), leaves_of(tmp_path / "b")
    assert_same(leaves_of(tmp_path / "c"), found)
    convert_weights(tmp_path / "base", tmp_path / "d", "clipjax")
    start = leaves_of(tmp_path / "d")
    changed = 0
    for name, x in wanted.items():
        np.testing.assert_allclose(found[name], x, rtol=1e-6, atol=1e-6, err_msg=name)
        changed += np.abs(x - start[name]).max() > 1e-3
    assert changed >= 8  # the control: the base is another model


# A kernel of ours, and the layers of transformers' CLIP that it holds.
LAYERS = {
    "attention/qkv_kernel": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention/out_kernel": ("self_attn.out_proj",),
    "mlp/fc/kernel": ("mlp.fc1",),
    "mlp/proj/kernel": ("mlp.fc2",),
}


def as_peft_names_them(file, rank):
    """Factors of an adapter of ours under peft's names, outputs first as torch has it."""
    tensors, found = open_tensors(file).tensors, {}
    for name in tensors:
        part = re.fullmatch(rf"{LORA}/(image|text)_encoder/transformer/block_(\d+)/(.*)/a", name)
        if part is None:
            continue
        tower = {"image": "vision", "text": "text"}[part[1]]
        a, b = (tensors[f"{name[:-1]}{side}"].read() for side in "ab")
        layers = LAYERS[part[3]]
        several = len(layers) > 1
        for i, layer in enumerate(layers):
            to = f"base_model.model.{tower}_model.encoder.layers.{part[2]}.{layer}"
            of_a, of_b = (a[..., i, :], b[i]) if several else (a, b)
            found[f"{to}.lora_A.weight"] = of_a.reshape(-1, rank).T
            found[f"{to}.lora_B.weight"] = of_b.reshape(rank, -1).T
    return found


def test_our_adapter_does_in_peft_what_it_does_here(tmp_path):
    """Its factors beside transformers' layers, which peft adds as they run, unmerged."""
    import torch
    import transformers_reference
    from peft import LoraConfig, PeftModel
    from safetensors.numpy import save_file

    rank, alpha = 3, 7.0
    make_directory(tmp_path / "theirs", "clip")
    convert_weights(tmp_path / "theirs", tmp_path / "base", "clipjax")
    base = load(tmp_path / "base")
    boxed = abstract_variables(base.spec)["params"]
    names = adapted_kernels(("/blocks/",), {n: x.shape for n, x in flatten_with_names(boxed)})
    random = np.random.default_rng(0)

    def noise(x):
        return np.float32(0.2 * random.standard_normal(x.shape))

    drawn = {"params": jax.tree.map(noise, boxed)}
    drawn = unbox(add_factors(drawn, jax.random.key(0), rank, names.__contains__))["params"]
    params = {**jax.device_get(base.variables["params"]), LORA: jax.tree.map(noise, drawn[LORA])}
    config = {
        "lora": {"rank": rank, "alpha": alpha},
        "init": {"checkpoint": str(tmp_path / "base")},
        "evals": {},
    }
    write_checkpoint(tmp_path / "run", base.spec, params, config=config)
    convert_weights(tmp_path / "run", tmp_path / "adapter", "adapter")

    factors = as_peft_names_them(tmp_path / "adapter" / "adapter.safetensors", rank)
    depth = base.spec["image"]["depth"] + base.spec["text"]["depth"]
    assert len(factors) == 2 * 6 * depth
    targets = [layer.rpartition(".")[2] for layers in LAYERS.values() for layer in layers]
    LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets).save_pretrained(tmp_path / "peft")
    factors = {name: np.ascontiguousarray(x) for name, x in factors.items()}
    save_file(factors, tmp_path / "peft" / "adapter_model.safetensors", {"format": "pt"})
    model, _ = transformers_reference.load("CLIPModel", tmp_path / "theirs")
    images, tokens = inputs(base.spec)

    def embeddings():
        pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
        with torch.no_grad():
            out = model(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels)
        return out.image_embeds.numpy(), out.text_embeds.numpy()

    before = embeddings()
    model = PeftModel.from_pretrained(model, tmp_path / "peft").eval()
    assert all(
        torch.equal(model.state_dict()[f"{n[: -len('.weight')]}.default.weight"], torch.tensor(x))
        for n, x in factors.items()
    )
    ours = load(tmp_path / "adapter")
    found = ours.module.apply(ours.variables, images, tokens)
    for wanted, old, x in zip(
        embeddings(), before, (found.image_embeds, found.text_embeds), strict=True
    ):
        assert np.abs(wanted - old).max() > 1e-2  # the control: the base gives others
        np.testing.assert_allclose(np.asarray(x), wanted, atol=2e-6)
