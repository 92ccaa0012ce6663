"""SigLIP ViT-B/16: the sigmoid loss (arXiv:2303.15343).

    clipjax train --config configs/siglip_vit_b16.py:source=SPEC,tokenizer=MODEL --workdir DIR
    clipjax plan --config configs/siglip_vit_b16.py --topology v5e:16x16

Arguments: source (a SPEC, see docs/data.md; the paper's WebLI is not public), tokenizer (path of a
SentencePiece model with 32,000 pieces), batch_size, examples (seen in training, in all).
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(arg, source="", tokenizer="", batch_size=32_768, examples=40_000_000_000)
    config = default_config()
    config.model.name = "siglip-b-16-224"
    if arg.tokenizer:
        config.model.tokenizer = ConfigDict({"model": arg.tokenizer})
    config.loss.name = "siglip"
    config.data.source = arg.source
    config.data.transforms = ({"name": "resize_and_crop", "resize": "squash"},)
    config.batch_size = arg.batch_size
    config.total_steps = arg.examples // arg.batch_size
    config.optimizer.learning_rate = 1e-3
    config.optimizer.b2 = 0.95  # the paper's remedy for spikes at large batches
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_mask = "all"
    config.optimizer.clip_norm = 1.0
    config.schedule.warmup_steps = 20_000
    config.checkpoint.every_steps = 2000
    config.checkpoint.keep_every = 100_000
    # The released weights, zero-shot, squashed to 224 pixels, mean and deviation 0.5, as open_clip
    # measured them; recall at 1, text to image and image to text.
    config.target.imagenet_top1 = 0.7604
    config.target.flickr30k_recall_at_1 = (0.747, 0.891)
    config.target.coco_recall_at_1 = (0.478, 0.657)
    return config
