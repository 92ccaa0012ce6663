"""The config whose plan the tests of tests/plan read."""

from configs.smoke import get_config


def small_config():
    config = get_config("batch_size=64")
    config.dtype = "bfloat16"
    config.remat = "dots"
    config.mesh.data, config.mesh.fsdp = 4, 2
    config.sharding = "fsdp"
    return config
