"""CLIP ViT-bigG/14 as LAION trained it with OpenCLIP on LAION-2B (laion.ai/blog/giant-openclip).

    clipjax train --config configs/clip_vit_bigg14.py:source=tar:/data/{00000..99999}.tar \
        --workdir DIR
    clipjax plan --config configs/clip_vit_bigg14.py --topology v5p:8x8x8

Arguments: source (a SPEC, see docs/data.md), batch_size (LAION's was 160k), examples (seen in
training, in all), patch_dropout (share of the patches left out; LAION's run had 0.5 for most of
it), fsdp (devices that share one copy of the state).
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(
        arg,
        source="",
        batch_size=65_536,
        examples=39_000_000_000,
        patch_dropout=0.0,
        fsdp=8,
    )
    config = default_config()
    config.model.name = "ViT-bigG-14"
    config.model.image.patch_dropout = arg.patch_dropout
    # Parameters and Adam's moments are 30 GB; one axis of an 8x8x8 torus shares a copy.
    config.mesh.fsdp = arg.fsdp
    config.sharding = "fsdp"
    config.data.source = arg.source
    config.data.transforms = ({"name": "random_resized_crop", "scale": (0.9, 1.0)},)
    config.batch_size = arg.batch_size
    config.total_steps = arg.examples // arg.batch_size
    # The run's learning rate is in none of the sources read; this is H/14's on the same data.
    config.optimizer.learning_rate = 5e-4
    config.optimizer.b2 = 0.95  # DataComp's L/14 at batch 90,112; steadier than 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.2
    config.optimizer.decay_mask = "openclip_legacy"
    config.optimizer.clip_norm = 1.0
    config.schedule.warmup_steps = 10_000
    config.checkpoint.every_steps = 1000
    config.checkpoint.keep_every = 50_000
    # LAION's run at batch 160k: zero-shot, OpenAI's preprocessing (224 pixels, bicubic), 80
    # templates, as open_clip measured it; recall at 1, text to image and image to text.
    config.target.imagenet_top1 = 0.8009
    config.target.flickr30k_recall_at_1 = (0.796, 0.929)
    config.target.coco_recall_at_1 = (0.514, 0.674)
    return config
