"""CLIP ViT-bigG/14 as LAION trained it with OpenCLIP on LAION-2B (laion.ai/blog/giant-openclip).

    clipjax train --config configs/clip_vit_bigg14.py:source=tar:/data/{00000..99999}.tar \
        --workdir DIR
    clipjax plan --config configs/clip_vit_bigg14.py --topology v5p:8x8x8

Two stages (FLIP, arXiv:2212.00794): half of the patches for 32 billion examples, all of them for
the last 2. Arguments: source (a SPEC, see docs/data.md), batch_size (LAION's was 160k), examples
(seen in training, in all), unmasked_examples (of them, at the end), patch_dropout (share of the
patches left out before), fsdp (devices that share one copy of the state).
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(
        arg,
        source="",
        batch_size=65_536,
        examples=34_000_000_000,
        unmasked_examples=2_000_000_000,
        patch_dropout=0.5,
        fsdp=8,
    )
    config = default_config()
    config.model.name = "ViT-bigG-14"
    # Parameters and Adam's moments are 30 GB; one axis of an 8x8x8 torus shares a copy.
    config.mesh.fsdp = arg.fsdp
    config.sharding = "fsdp"
    config.data.source = arg.source
    config.data.transforms = ({"name": "random_resized_crop", "scale": (0.9, 1.0)},)
    config.batch_size = arg.batch_size
    config.total_steps = arg.examples // arg.batch_size
    masked_steps = (arg.examples - arg.unmasked_examples) // arg.batch_size
    config.stages = ({"until_step": masked_steps, "patch_dropout": arg.patch_dropout},)
    # 2e-3 at 160k; LAION doubled the rate of the unmasked end, here it is one cosine.
    config.optimizer.learning_rate = 2e-3 * arg.batch_size / 160_000
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "openclip_legacy"
    config.optimizer.clip_norm = 1.0
    config.schedule.warmup_steps = 13_000
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep_every = 50_000
    # LAION's run at batch 160k: zero-shot, OpenAI's preprocessing (224 pixels, bicubic), 80
    # templates, as open_clip measured it; recall at 1, text to image and image to text. That is an
    # average of three unmasked ends; the first of them, as here, has 0.7943 on ImageNet by itself.
    config.target.imagenet_top1 = 0.8009
    config.target.flickr30k_recall_at_1 = (0.796, 0.929)
    config.target.coco_recall_at_1 = (0.514, 0.674)
    return config
