"""`clipjax` as the documents' commands meet it: the real one, with small models and few steps.

Towers of the zoo are an eighth as wide and a sixth as deep; a training takes three steps of eight
examples; openmoji and twemoji have the first 160 drawings. Nothing else differs, so what a document
says has to hold.
"""

import math
import os
import sys

TIMES_SMALLER = dict.fromkeys(("width", "mlp_dim", "output_dim", "embed_dim"), 8) | {"depth": 6}
STEPS = (
    "--config.dtype=float32",  # unoptimised bfloat16 takes ten seconds a step
    "--config.batch_size=8",
    "--config.total_steps=3",
    "--config.schedule.warmup_steps=1",
    "--config.checkpoint.every_steps=2",
    "--config.log_every=1",
)


def shrink(row, done):
    """Makes a row of the zoo small, in place and once: rows and modules share dicts."""
    if id(row) in done:
        return
    done.add(id(row))
    for key, value in row.items():
        if isinstance(value, dict):
            shrink(value, done)
        elif value and key in TIMES_SMALLER:
            row[key] = max(1, value // TIMES_SMALLER[key])


def few_drawings():
    from clipjax.data.sources.openmoji import OpenMoji

    everything = OpenMoji.pairs
    OpenMoji.pairs = lambda: everything()[:160]


def shrink_all():
    from clipjax.models.zoo import MODELS

    done = set()
    for row in MODELS.values():
        if row["image"]["name"] != "efficientnet":  # a table of stages says its widths
            shrink(row, done)


def few_models():
    """Two rows of each kind of tower: the whole table takes half a minute to trace."""
    from clipjax.models.zoo import MODELS

    kinds = {}
    for name, row in MODELS.items():
        kinds.setdefault(row["image"]["name"], []).append(name)
    for names in kinds.values():
        for name in names[2:]:
            del MODELS[name]


def set_devices(words):
    """As many devices as the mesh asks for, and two at least."""
    axes = ("--config.mesh.fsdp=", "--config.mesh.tensor=")
    mesh = [int(word.partition("=")[2]) for word in words if word.startswith(axes)]
    count = max(2, math.prod(mesh))
    flags = f"--xla_force_host_platform_device_count={count}"  # the last of one name counts
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


def run():
    verb, words = sys.argv[1], sys.argv[1:]
    set_devices(words)
    shrink_all()
    few_drawings()
    if verb == "models":
        few_models()
    # A stand-in for a pod is one process.
    words = [word for word in words if word != "--distributed=on"]
    stages = any(word.endswith("smoke.py:stages") for word in words)  # they take all steps
    if verb == "train" and not stages:
        words += STEPS
    sys.argv = ["clipjax", *words]
    from clipjax.cli.main import run

    run()


if __name__ == "__main__":
    run()
