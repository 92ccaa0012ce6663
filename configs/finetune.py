"""Fine-tune from a checkpoint: everything, a part of it, or differences of low rank.

    clipjax train --config configs/finetune.py:checkpoint=runs/quickstart,source=folder:pictures \
        --workdir runs/finetuned
    ... configs/finetune.py:checkpoint=...,source=...,mode=lit         (arXiv:2111.07991)
    ... configs/finetune.py:checkpoint=...,source=...,mode=lora,rank=4 (arXiv:2106.09685)
    ... configs/finetune.py:checkpoint=...,source=...,image_size=336   (positions are resized)

Arguments: checkpoint (a workdir or one step's folder), source (a SPEC, see docs/data.md), mode
(full; lit, the text tower against a locked image tower; lora, which takes larger rates than the
others), rank (of lora), image_size (0: as in the checkpoint), batch_size, steps, learning_rate,
eval (a SPEC with labels, for zero-shot accuracy during the run), dtype.
"""

from ml_collections import ConfigDict

from clipjax.config import default_config, parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    arg = parse_arg(
        arg,
        checkpoint="",
        source="",
        mode="full",
        rank=8,
        image_size=0,
        batch_size=256,
        steps=500,
        learning_rate=1e-5,
        eval="",
        dtype="float32",
    )
    if arg.mode not in ("full", "lit", "lora"):
        raise ValueError(f"config argument mode={arg.mode}: allowed are full, lit, lora")
    config = default_config()
    config.model.name = "checkpoint"  # the model, its tokenizer and its preprocessing come along
    if arg.image_size:
        config.model.image_size = arg.image_size
    config.init.checkpoint = arg.checkpoint
    config.init.lock_image = arg.mode == "lit"
    config.lora.rank = arg.rank if arg.mode == "lora" else 0
    config.data.source = arg.source
    config.data.transforms = ({"name": "random_resized_crop", "scale": (0.8, 1.0)},)
    config.dtype = arg.dtype
    config.batch_size = arg.batch_size
    config.total_steps = arg.steps
    # A learning rate as of pre-training forgets what was learnt; see docs/fine_tuning.md.
    config.optimizer.learning_rate = arg.learning_rate
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.schedule.warmup_steps = min(50, arg.steps // 10)
    config.checkpoint.every_steps = max(1, arg.steps // 5)
    config.log_every = max(1, arg.steps // 100)
    if arg.eval:
        config.evals.zero_shot = {
            "name": "zero_shot",
            "source": arg.eval,
            "templates": "simple",
            "every_steps": max(1, arg.steps // 5),
        }
    return config
