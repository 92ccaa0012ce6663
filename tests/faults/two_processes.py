"""The smoke run made smaller, for rows that start it many times in several processes."""

from ml_collections import ConfigDict

from configs.smoke import get_config as smoke


def get_config(arg: str | None = None) -> ConfigDict:
    config = smoke(arg or "steps=12,batch_size=16")
    config.model.image.depth = config.model.text.depth = 1
    config.evals = {}
    config.report = config.tensorboard = False
    config.checkpoint.every_steps = 3
    config.distributed.heartbeat_timeout_s = 5
    return config
