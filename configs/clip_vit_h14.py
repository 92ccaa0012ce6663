"""CLIP ViT-H/14 as LAION trained it with OpenCLIP on LAION-2B (arXiv:2212.07143).

    clipjax train --config configs/clip_vit_h14.py:source=tar:/data/{00000..99999}.tar --workdir DIR
    clipjax plan --config configs/clip_vit_h14.py --topology v5e:16x16

Arguments: source (a SPEC, see docs/data.md), batch_size (LAION's was 79,104), examples (seen in
training, in all), fsdp (devices that share one copy of the state).
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(arg, source="", batch_size=32_768, examples=32_000_000_000, fsdp=16)
    config = default_config()
    config.model.name = "ViT-H-14"
    # Parameters and Adam's moments are 12 GB: more than a v5e has left beside the activations.
    # One row of a 16x16 torus shares a copy; the other axis carries the data alone.
    config.mesh.fsdp = arg.fsdp
    config.sharding = "fsdp"
    config.data.source = arg.source
    config.data.transforms = ({"name": "random_resized_crop", "scale": (0.9, 1.0)},)
    config.batch_size = arg.batch_size
    config.total_steps = arg.examples // arg.batch_size
    config.optimizer.learning_rate = 5e-4
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "openclip_legacy"
    config.schedule.warmup_steps = 2000
    config.checkpoint.every_steps = 2000
    config.checkpoint.keep_every = 50_000
    # LAION's run at batch 79,104: zero-shot, OpenAI's preprocessing (224 pixels, bicubic), 80
    # templates, as open_clip measured it; recall at 1, text to image and image to text.
    config.target.imagenet_top1 = 0.7796
    config.target.flickr30k_recall_at_1 = (0.776, 0.907)
    config.target.coco_recall_at_1 = (0.495, 0.659)
    return config
