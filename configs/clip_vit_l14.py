"""CLIP ViT-L/14 as OpenAI trained it on 400 million pairs (arXiv:2103.00020).

    clipjax train --config configs/clip_vit_l14.py:source=tar:/data/{00000..41455}.tar --workdir DIR
    clipjax plan --config configs/clip_vit_l14.py --topology v5e:16x16

Arguments: source (a SPEC, see docs/data.md), batch_size, examples (seen in training, in all).
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(arg, source="", batch_size=32_768, examples=12_800_000_000)
    config = default_config()
    config.model.name = "ViT-L-14-quickgelu"
    config.data.source = arg.source
    # OpenAI's only augmentation: a random square crop of the resized image.
    config.data.transforms = ({"name": "random_resized_crop", "scale": (0.9, 1.0)},)
    config.batch_size = arg.batch_size
    config.total_steps = arg.examples // arg.batch_size
    config.optimizer.learning_rate = 4e-4
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "openai"
    config.schedule.warmup_steps = 2000
    config.checkpoint.every_steps = 2000
    config.checkpoint.keep_every = 50_000
    # Zero-shot, OpenAI's preprocessing (224 pixels, bicubic), 80 templates, as open_clip measured
    # it (docs/openclip_results.csv); recall at 1, text to image and image to text.
    config.target.imagenet_top1 = 0.7554
    config.target.flickr30k_recall_at_1 = (0.650, 0.852)
    config.target.coco_recall_at_1 = (0.365, 0.563)
    return config
