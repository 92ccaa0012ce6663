"""Writes the golden arrays of test_naflex.py by running transformers' Siglip2Model.

    python tests/golden/models/make_naflex.py

needs the [interop] extra. Weights and pixels are those of seeded.py; the patches of other sizes,
which pixels of any aspect become, are told by their SHA-256.
"""

import hashlib
import json
from pathlib import Path

import torchvision_operators  # noqa: F401  # isort: skip  before what imports torchvision

import numpy as np
import seeded
import torch
from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model

HERE = Path(__file__).parent
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
TEXT = TOWER | {"vocab_size": 50, "max_position_embeddings": 10, "projection_size": 32}
VISION = TOWER | {"patch_size": 4, "num_patches": 25}
MAX_PATCHES = 24
# Rows and columns: fewer than the table's 5 x 5, more, or both. One column with several rows is
# left out: torch 2.13's antialiased interpolate is wrong there (test_naflex.py compares with jax).
GRIDS = [(3, 4), (2, 12), (12, 2), (6, 4), (1, 1), (1, 9)]
# Height and width of images, patch, budget.
SIZES = [
    (480, 640, 16, 256),
    (640, 480, 16, 256),
    (1, 1000, 16, 256),
    (1000, 3, 16, 64),
    (1, 1, 16, 256),
    (37, 53, 16, 256),
    (224, 224, 16, 256),
    (225, 224, 16, 196),
    (333, 77, 14, 100),
    (60, 90, 4, 24),
]


def run():
    config = Siglip2Config(text_config=TEXT, vision_config=VISION)
    model = Siglip2Model._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.tensor(seeded.weight(name, tuple(tensor.shape))))
    pixels, grids = seeded.patches(GRIDS, MAX_PATCHES, 4 * 4 * 3), torch.tensor(GRIDS)
    mask = torch.arange(MAX_PATCHES)[None] < grids.prod(1, keepdim=True)
    tokens = torch.tensor(seeded.tokens(len(GRIDS), 10, 50), dtype=torch.long)
    hidden = []
    for layer in model.vision_model.encoder.layers:
        layer.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    out = model(
        input_ids=tokens,
        pixel_values=torch.tensor(pixels),
        pixel_attention_mask=mask.int(),
        spatial_shapes=grids,
    )
    parameters = {name: list(p.shape) for name, p in model.named_parameters()}
    return {
        "config": json.dumps({"text": TEXT, "vision": VISION, "grids": GRIDS}),
        "parameters": json.dumps(parameters),
        "image_embeds": out.image_embeds.detach(),
        "text_embeds": out.text_embeds.detach(),
        "image_hidden": torch.stack([h[0] if isinstance(h, tuple) else h for h in hidden]).detach(),
        "image_tokens": out.vision_model_output.last_hidden_state.detach(),
    }


def patches():
    """(sizes, grids, digests of the padded patches before scaling)"""
    grids, digests = [], []
    for height, width, patch_size, max_patches in SIZES:
        processor = Siglip2ImageProcessor(
            patch_size=patch_size, max_num_patches=max_patches, do_rescale=False, do_normalize=False
        )
        found = processor.preprocess(
            seeded.picture(height, width), return_tensors="np", input_data_format="channels_last"
        )
        values = found["pixel_values"][0]
        assert values.dtype == np.uint8
        grids.append(found["spatial_shapes"][0])
        digests.append(hashlib.sha256(values.tobytes()).hexdigest())
    return {"sizes": np.array(SIZES), "size_grids": np.array(grids), "digests": np.array(digests)}


def main():
    torch.manual_seed(0)
    arrays = {name: np.asarray(value) for name, value in (run() | patches()).items()}
    np.savez_compressed(HERE / "naflex.npz", **arrays)


if __name__ == "__main__":
    main()
