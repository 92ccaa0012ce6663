"""The smoke run made smaller, with an evaluation of several batches and a report."""

from ml_collections import ConfigDict

from configs.smoke import get_config as smoke


def get_config(arg: str | None = None) -> ConfigDict:
    config = smoke(arg or "steps=6,batch_size=8")
    config.model.image.depth = config.model.text.depth = 1
    config.data.source = "synthetic:64"
    config.evals.zero_shot.source = "synthetic:40"
    config.evals.zero_shot.batch_size = 8
    config.evals.zero_shot.every_steps = 1
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 10
    config.tensorboard = False
    return config
