"""Writes the golden arrays of test_open_clip_parity.py by running open_clip and timm.

    python tests/golden/models/make_open_clip.py [CASE...]

needs the [interop] extra. Each file holds the config, and the outputs and gradients of one tiny
model with the weights of seeded.py: normalised embeddings, the hidden states of every layer, the
loss, and the gradient of the loss to every parameter under its torch name.
"""

import torchvision_operators  # noqa: F401  # isort: skip  before what imports torchvision

import functools
import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import seeded
import timm
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from open_clip.transformer import LayerNorm, TextTransformer

HERE = Path(__file__).parent
BATCH = 4
VIT = {"image_size": 28, "patch_size": 8, "layers": 2, "width": 32, "head_width": 8}
TEXT = {"context_length": 10, "vocab_size": 50, "width": 24, "heads": 3, "layers": 3}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 4, "head_width": 16}
CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
CLIPA_TEXT = {"no_causal_mask": True, "pool_type": "last"}
CASES = {
    "vit_quick_gelu": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "vit_gelu": {"embed_dim": 16, "quick_gelu": False, "vision_cfg": VIT, "text_cfg": TEXT},
    "resnet": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": RESNET, "text_cfg": TEXT},
    "clipa": {"embed_dim": 16, "vision_cfg": VIT | CLIPA, "text_cfg": TEXT | CLIPA_TEXT},
    "siglip": {"embed_dim": 32, "siglip": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "pe_core": {"embed_dim": 16, "pe_core": True, "vision_cfg": VIT, "text_cfg": TEXT},
}


class SigLip(torch.nn.Module):
    """open_clip's CustomTextCLIP around timm's ViT, tiny, with the tensors' names kept."""

    def __init__(self, *, embed_dim, vision_cfg, text_cfg, siglip):
        super().__init__()
        trunk = timm.models.vision_transformer.VisionTransformer(
            img_size=vision_cfg["image_size"],
            patch_size=vision_cfg["patch_size"],
            embed_dim=vision_cfg["width"],
            depth=vision_cfg["layers"],
            num_heads=vision_cfg["width"] // vision_cfg["head_width"],
            class_token=False,
            global_pool="map",
            num_classes=0,
            act_layer="gelu_tanh",
        )
        self.visual = torch.nn.ModuleDict({"trunk": trunk})
        self.text = TextTransformer(
            **text_cfg,
            output_dim=embed_dim,
            no_causal_mask=True,
            pool_type="last",
            proj_bias=True,
            act_layer=functools.partial(torch.nn.GELU, approximate="tanh"),
            norm_layer=functools.partial(LayerNorm, eps=1e-6),
        )
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.logit_bias = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images, tokens):
        normalise = functools.partial(torch.nn.functional.normalize, dim=-1)
        image_embeds = normalise(self.visual["trunk"](images))
        text_embeds = normalise(self.text(tokens))
        return image_embeds, text_embeds, self.logit_scale.exp(), self.logit_bias


class PECore(torch.nn.Module):
    """open_clip's CustomTextCLIP around timm's PE-Core, tiny, with the tensors' names kept."""

    def __init__(self, *, embed_dim, vision_cfg, text_cfg, pe_core):
        super().__init__()
        side = vision_cfg["image_size"] // vision_cfg["patch_size"]
        trunk = timm.models.eva.Eva(
            img_size=vision_cfg["image_size"],
            patch_size=vision_cfg["patch_size"],
            embed_dim=vision_cfg["width"],
            depth=vision_cfg["layers"],
            num_heads=vision_cfg["width"] // vision_cfg["head_width"],
            num_classes=embed_dim,
            global_pool="map",
            attn_type="rope",
            use_pre_transformer_norm=True,
            use_rot_pos_emb=True,
            ref_feat_shape=(side, side),
            rope_grid_offset=1.0,
            rope_grid_indexing="xy",
            attn_pool_num_heads=8,
            attn_pool_mlp_ratio=4.0,
            norm_layer=functools.partial(timm.layers.LayerNorm, eps=1e-5),
        )
        self.visual = torch.nn.ModuleDict({"trunk": trunk})
        self.text = TextTransformer(**text_cfg, output_dim=embed_dim)
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images, tokens):
        normalise = functools.partial(torch.nn.functional.normalize, dim=-1)
        image_embeds = normalise(self.visual["trunk"](images))
        return image_embeds, normalise(self.text(tokens)), self.logit_scale.exp()


def keep_outputs(modules, into):
    for module in modules:
        module.register_forward_hook(lambda _, inputs, output: into.append(output.detach()))


def train_resnet(model, inputs):
    """Outputs, loss, gradients and running statistics of a training step's forward pass."""
    model.train()
    outputs = model(*inputs)
    loss = ClipLoss()(*outputs)
    loss.backward()
    arrays = {"train_image_embeds": outputs[0].detach(), "train_loss": loss.detach()}
    running = {k: v for k, v in model.state_dict().items() if ".running_" in k}
    return arrays | {f"statistics/{name}": value for name, value in running.items()}


def run(config):
    is_siglip = config.get("siglip", False)
    has_trunk = is_siglip or config.get("pe_core", False)
    kinds = {"siglip": SigLip, "pe_core": PECore}
    model = next((kinds[k] for k in kinds if k in config), open_clip.CLIP)(**config).eval()
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.is_floating_point() and name != "attn_mask":
                tensor.copy_(torch.tensor(seeded.weight(name, tuple(tensor.shape))))
    image_hidden, text_hidden = [], []
    is_resnet = "layers" in config["vision_cfg"] and "patch_size" not in config["vision_cfg"]
    if is_resnet:
        stages = [getattr(model.visual, f"layer{i}") for i in (1, 2, 3, 4)]
        keep_outputs(stages, image_hidden)
        keep_outputs(model.transformer.resblocks, text_hidden)
    elif has_trunk:
        keep_outputs(model.visual["trunk"].blocks, image_hidden)
        keep_outputs(model.text.transformer.resblocks, text_hidden)
    else:
        keep_outputs(model.visual.transformer.resblocks, image_hidden)
        keep_outputs(model.transformer.resblocks, text_hidden)
    text_cfg = config["text_cfg"]
    images = seeded.images(BATCH, config["vision_cfg"]["image_size"])
    tokens = seeded.tokens(BATCH, text_cfg["context_length"], text_cfg["vocab_size"])
    inputs = (
        torch.tensor(images.transpose(0, 3, 1, 2)),
        torch.tensor(tokens, dtype=torch.long),
    )
    outputs = model(*inputs)
    image_embeds, text_embeds = outputs[:2]
    loss = (SigLipLoss if is_siglip else ClipLoss)()(*outputs)
    arrays = {
        "config": json.dumps(config),
        "image_embeds": image_embeds.detach(),
        "text_embeds": text_embeds.detach(),
        "text_hidden": torch.stack(text_hidden),
        "loss": loss.detach(),
    }
    if is_resnet:
        arrays |= {f"image_hidden/{i}": stage for i, stage in enumerate(image_hidden)}
        arrays |= train_resnet(model, inputs)
    else:
        arrays["image_hidden"] = torch.stack(image_hidden)
        loss.backward()
    arrays |= {f"gradient/{name}": p.grad for name, p in model.named_parameters()}
    return {name: np.asarray(value) for name, value in arrays.items()}


def main():
    for name, config in CASES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        torch.manual_seed(0)
        np.savez_compressed(HERE / f"open_clip_{name}.npz", **run(config))


if __name__ == "__main__":
    main()
