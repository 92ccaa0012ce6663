"""LiT on COCO: BERT learns to read for a locked ViT, by the sigmoid loss (arXiv:2303.15343).

    clipjax convert --from DUAL_ENCODER --to runs/lit_start
    clipjax train --workdir runs/lit_coco \
        --config 'configs/lit_coco.py:source=tfds:coco_captions:train?text_field=captions'
    clipjax plan --config configs/lit_coco.py --topology v5e:2x2

The cheapest public reference, as big_vision has it (configs/proj/image_text/siglip_lit_coco.py),
which has no result of it, but for RandAugment's ranges, which are torchvision's (docs/data.md). It
starts from a ViT-B/16 of ImageNet-21k and from BERT-base: both in one checkpoint, as transformers'
VisionTextDualEncoderModel of them is converted; its projections, scale and bias are drawn anew. The
target is of its relative with the softmax loss, coco_B16B of big_vision's README_lit.md.
Arguments: checkpoint (runs/lit_start), source (a SPEC, see docs/data.md), batch_size, steps, smoke
(a flag: small towers of a random start, on generated pictures).
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, parse_arg
from clipjax.recipes import make_small

TOWER = {
    "width": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_dim": 3072,
    "activation": "gelu",
    "layer_norm_eps": 1e-12,
}


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(
        arg, checkpoint="runs/lit_start", source="", batch_size=512, steps=5000, smoke=False
    )
    config = default_config()
    config.model = ConfigDict(
        {
            "name": "lit_coco",
            "embed_dim": 768,
            "image_size": 224,
            "image": {
                "name": "vit",
                "patch_size": 16,
                "pooling": "cls",
                "pre_norm": False,
                "patch_bias": True,
                "init_name": "bert",
                **TOWER,
            },
            "text": {
                "name": "bert",
                "vocab_size": 30522,
                "context_length": 16,
                "pooling": "cls",
                "num_positions": 512,
                "position_offset": 0,
                "num_segments": 2,
                "pad_id": 0,
                **TOWER,
            },
            "image_projection": "none",
            "text_projection": "linear_bias",
            "tokenizer": {"name": "wordpiece"},
            "preprocess": {
                "resize": "squash",
                "interpolation": "bilinear",
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
            },
            "logit_scale": {"init": 10.0, "max": None},
            "logit_bias": -2.71,
        }
    )
    config.init.checkpoint = arg.checkpoint
    config.init.lock_image = True
    # Their first token is taken without the poolers behind it.
    config.init.drop = (r"^(image|text)_projection/|^logit_(scale|bias)$|/pooler/",)
    config.init.initialise = (r"^text_projection/|^logit_(scale|bias)$",)
    config.init.override = (
        *("model.embed_dim", "model.image.pooling", "model.text.pooling"),
        *("model.image_projection", "model.text_projection", "model.logit_bias"),
        *("logit_scale", "preprocess", "tokenizer"),
    )
    config.loss.name = "siglip"
    config.data.source = arg.source
    config.data.transforms = (
        {"name": "resize_and_crop", "resize": "squash"},
        {"name": "random_flip"},
        # There 10 of 10.
        {"name": "rand_augment", "num_ops": 2, "magnitude": 30},
    )
    config.batch_size = arg.batch_size
    config.total_steps = arg.steps
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.01 / 1e-3  # there the rate does not multiply the decay
    config.optimizer.decay_mask = "kernels"
    config.optimizer.clip_norm = 1.0
    config.schedule.warmup_steps = max(int(0.03 * arg.steps), 100)
    config.checkpoint.every_steps = 1000
    config.target.imagenet_top1 = 0.207
    config.target.coco_recall_at_1 = (0.321, 0.472)  # text to image, image to text
    if arg.smoke:
        make_small(config)
        config.model.embed_dim = 32
        config.init.checkpoint, config.init.lock_image = "", False
        config.init.drop = config.init.initialise = config.init.override = ()
        config.optimizer.freeze = ("^image_encoder/",)
    return config
