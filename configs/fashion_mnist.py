"""The quickstart's model of emoji learns Fashion-MNIST's ten classes, and keeps the emoji.

    apt-get install dataset-fashion-mnist
    clipjax train --config configs/fashion_mnist.py:checkpoint=RUN --workdir runs/fashion

docs/fine_tuning.md says how the mixture with the quickstart's weights is chosen afterwards. The
image tower learns against frozen texts, seven pictures of clothes to one of the emoji that the
quickstart was trained on; three quarters of the steps look at half of the patches.

Arguments: checkpoint, data (the folder of the IDX files), mode (image: the image tower; full; lit:
the text tower; last: the image tower's last block and what follows; lora: rank 8 in its blocks),
steps (900), learning_rate, emoji (their share of the pictures, an eighth; 0 leaves them out), seed.
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, parse_arg

TEXT = ("^text_", "^logit")
FROZEN = {
    "image": TEXT,
    "full": (),
    "lit": (),
    "last": (*TEXT, "^image_encoder/(?!transformer|ln_post)", "/block_[0-2]/"),
    "lora": (),
}


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(
        arg,
        checkpoint="runs/quickstart",
        data="/usr/share/datasets/fashion-mnist",
        mode="image",
        steps=900,
        learning_rate=2e-3,
        emoji=0.125,
        seed=0,
    )
    if arg.mode not in FROZEN:
        raise ValueError(f"config argument mode={arg.mode}: allowed are {', '.join(FROZEN)}")
    config = default_config()
    config.seed = arg.seed
    config.model.name = "checkpoint"
    config.model.image.patch_dropout = 0.0
    config.init.checkpoint = arg.checkpoint
    config.init.lock_image = arg.mode == "lit"
    config.optimizer.freeze = FROZEN[arg.mode]
    config.lora.rank = 8 if arg.mode == "lora" else 0
    config.lora.targets = ("^image_encoder/.*/blocks/",)
    config.dtype, config.scan_layers, config.remat = "float32", False, "none"
    config.batch_size = 128
    config.total_steps = arg.steps
    if arg.steps >= 4:  # fewer patches are cheaper; fewer pixels of the whole were worse at the end
        config.stages = ({"until_step": arg.steps - arg.steps // 4, "patch_dropout": 0.5},)

    clothes = f"idx:{arg.data}:train?class_names=fashion_mnist"
    config.data.source = clothes
    if arg.emoji:
        part = '{{"spec": "{}", "weight": {}}}'
        mix = part.format(clothes, 1 - arg.emoji), part.format("openmoji:train", arg.emoji)
        config.data.source = f"mix:[{', '.join(mix)}]"
    config.loss.positives = "equal_captions"  # 11 of each class in a batch

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = arg.learning_rate
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.schedule.warmup_steps = min(20, arg.steps // 4)
    for name, source in {
        "fashion": f"idx:{arg.data}:test?class_names=fashion_mnist",
        "emoji": "openmoji:unseen",
    }.items():
        config.evals[name] = {"name": "zero_shot", "source": source, "templates": "plain"}
    config.checkpoint.every_steps = max(1, arg.steps)
    config.log_every = 20
    return config
