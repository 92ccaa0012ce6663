"""Writes the golden arrays of tests/models/test_transformers_parity.py by running transformers.

    python tests/golden/models/make_transformers.py [CASE...]

needs the [interop] extra. `align` is transformers' AlignModel, tiny, in evaluation; `xlm_roberta`
is the text tower of open_clip's multilingual models. Weights are those of seeded.py.
"""

import json
import sys
from pathlib import Path

import numpy as np
import seeded
import torch

# torchvision's wheel registers these operators only beside its own build of torch.
library = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from open_clip.hf_model import HFTextEncoder  # noqa: E402
from open_clip.loss import ClipLoss  # noqa: E402
from transformers import AlignConfig, AlignModel, XLMRobertaConfig  # noqa: E402

HERE = Path(__file__).parent
BATCH, IMAGE_SIZE, LENGTH, VOCAB = 4, 40, 10, 50
BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
ALIGN_VISION = {"width_coefficient": 0.25, "depth_coefficient": 0.3}


def fill(model):
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.tensor(seeded.weight(name, tuple(tensor.shape))))


def with_gradients(model, arrays):
    found = {f"gradient/{n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
    statistics = {f"statistics/{n}": v for n, v in model.state_dict().items() if ".running_" in n}
    return {name: np.asarray(value) for name, value in {**arrays, **found, **statistics}.items()}


def align():
    model = AlignModel(
        AlignConfig(text_config=BERT, vision_config=ALIGN_VISION, projection_dim=80)
    ).eval()
    # The model's own parameter is the temperature; the loss here takes the logarithmic scale.
    model.logit_scale = torch.nn.Parameter(torch.zeros(()))
    fill(model)
    images = torch.tensor(seeded.images(BATCH, IMAGE_SIZE).transpose(0, 3, 1, 2))
    tokens = torch.tensor(seeded.tokens(BATCH, LENGTH, VOCAB), dtype=torch.long)
    out = model(
        input_ids=tokens,
        attention_mask=(tokens != 0).long(),
        pixel_values=images,
        output_hidden_states=True,
    )
    loss = ClipLoss()(out.image_embeds, out.text_embeds, model.logit_scale.exp())
    loss.backward()
    arrays = {
        "config": json.dumps({"text": BERT, "vision": ALIGN_VISION}),
        "image_embeds": out.image_embeds.detach(),
        "text_embeds": out.text_embeds.detach(),
        "image_tokens": out.vision_model_output.last_hidden_state.detach(),
        "text_hidden": torch.stack(out.text_model_output.hidden_states[1:]).detach(),
        "loss": loss.detach(),
    }
    return with_gradients(model, arrays)


def xlm_roberta():
    config = XLMRobertaConfig(
        **BERT, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5, attn_implementation="eager"
    )
    model = HFTextEncoder("", 16, config=config, pooler_type="mean_pooler", proj_type="mlp").eval()
    fill(model)
    tokens = seeded.tokens(BATCH, LENGTH, VOCAB)
    tokens = torch.tensor(np.where(tokens == 0, 1, np.maximum(tokens, 2)), dtype=torch.long)
    embeds = torch.nn.functional.normalize(model(tokens), dim=-1)
    loss = (embeds * torch.tensor(seeded.weight("direction", (16,)))).sum()
    loss.backward()
    arrays = {"config": json.dumps({"text": BERT}), "text_embeds": embeds.detach()}
    return with_gradients(model, arrays)


def main():
    for make in (align, xlm_roberta):
        if make.__name__ in (sys.argv[1:] or ("align", "xlm_roberta")):
            torch.manual_seed(0)
            np.savez_compressed(HERE / f"transformers_{make.__name__}.npz", **make())


if __name__ == "__main__":
    main()
