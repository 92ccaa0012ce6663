"""configs/smoke.py with a layer a tower, without evaluations and reports: what takes time."""

from configs.smoke import get_config as smoke


def get_config(arg=None):
    config = smoke(arg)
    config.evals = {}
    config.model.image.depth = config.model.text.depth = 1
    config.report = config.tensorboard = False
    config.checkpoint.every_steps = 2
    return config
