"""A small OpenCLIP model, trained for 20 steps: what both sides of the comparison are given."""

import functools

import jax
import numpy as np
import seeded
from open_clip_golden import spec_of
from open_clip_names import convert

from clipjax.losses import make_loss
from clipjax.models import build_model
from clipjax.optim import make_optimizer, make_schedule
from clipjax.train_state import create_train_state
from clipjax.train_step import make_train_step

STEPS, BATCH, NUM_BATCHES = 20, 16, 3
IMAGE, TEXT = "vision_cfg", "text_cfg"
CONFIG = {
    "embed_dim": 32,
    "quick_gelu": False,
    IMAGE: {"image_size": 32, "patch_size": 8, "layers": 2, "width": 64, "head_width": 16},
    TEXT: {"context_length": 12, "vocab_size": 64, "width": 48, "heads": 3, "layers": 2},
}
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
LEARNING_RATE, B1, B2, EPS, WEIGHT_DECAY = 1e-3, 0.9, 0.98, 1e-6, 0.2
LOGIT_SCALE = np.log(105)  # the first step clamps it to 100


def weight(name, shape):
    if name == "logit_scale":
        return np.asarray(LOGIT_SCALE, np.float32)
    return seeded.weight(name, tuple(shape))


@functools.cache
def batches():
    """Pictures [steps, batch, height, width, 3] of uint8, and ids; each comes around again."""
    random = np.random.RandomState(0)
    size, text = CONFIG[IMAGE]["image_size"], CONFIG[TEXT]
    images = random.randint(0, 256, (NUM_BATCHES, BATCH, size, size, 3)).astype(np.uint8)
    texts = [seeded.tokens(BATCH, text["context_length"], text["vocab_size"])]
    texts = np.stack([np.roll(texts[0], i, axis=0) for i in range(NUM_BATCHES)])
    order = np.arange(STEPS) % NUM_BATCHES
    return images[order], texts[order]


def losses(tensors, *, mask="openclip_legacy", weight_decay=WEIGHT_DECAY):
    """Our losses [steps] from the weights of a state dict."""
    spec = spec_of(CONFIG)
    model, params = build_model(spec), convert(tensors, spec)
    schedule = make_schedule("constant", learning_rate=LEARNING_RATE, total_steps=STEPS)
    tx = make_optimizer(
        params, schedule=schedule, b1=B1, b2=B2, eps=EPS, weight_decay=weight_decay, mask=mask
    )
    step = make_train_step(
        model.apply,
        make_loss("clip"),
        tx,
        seed=0,
        image_mean=MEAN,
        image_std=STD,
        max_logit_scale=100.0,
    )
    state = create_train_state({"params": params}, tx)
    images, texts = batches()

    @jax.jit
    def run(state, images, texts):
        def body(state, batch):
            state, metrics = step(state, {"image": batch[0], "text": batch[1]})
            return state, (metrics["loss"], state.params["logit_scale"])

        return jax.lax.scan(body, state, (images, texts))[1]

    return jax.device_get(run(state, images, texts))
