"""Weights of published shapes, drawn from their names in OpenCLIP's state dicts."""

import numpy as np
import seeded

LOGIT_SCALE = np.log(100)
# What writes into the residual stream is as much smaller as OpenAI's initialisation has it, so that
# hidden states stay of size 10 through all layers, and float32 resolves 1e-6 of them. A ResNet's
# blocks are damped, or the attention that pools them is a maximum, whose winner rounding picks.
SMALLER = dict.fromkeys(
    ("out_proj.weight", "c_proj.weight", "attn.proj.weight", "mlp.fc2.weight"), (2 * 12) ** -0.5
) | {"bn3.weight": 0.2, "downsample.1.weight": 0.5}


def weight(name, shape):
    if name == "logit_scale":
        return np.full(shape, LOGIT_SCALE, np.float32)
    factor = next((x for ending, x in SMALLER.items() if name.endswith(ending)), 1.0)
    return np.asarray(seeded.weight(name, tuple(shape)) * np.float32(factor))
