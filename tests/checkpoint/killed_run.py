"""A run of a few steps that saves all the time: `python killed_run.py WORKDIR [SIGNAL@STEP]`.

Tests disturb it, start it again, and compare it with a run that was left alone. Its "model" is a
matrix with momentum, so a lost moment, batch or step shows in every later loss.
"""

import os
import signal
import sys
import time
from pathlib import Path

TOTAL_STEPS = 24
SAVE_EVERY = 2
METADATA = {
    "config": {"seed": 0},
    "contract": {},
    "dataset_fingerprint": "none",
    "global_batch_size": 8,
    "seed": 0,
}


def make_run():
    """Returns (initial state, jitted step) on all devices; needs jax to be set up."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(AxisType.Auto,))
    sharded = NamedSharding(mesh, PartitionSpec("fsdp"))
    replicated = NamedSharding(mesh, PartitionSpec())
    shardings = {"step": replicated, "params": {"w": sharded, "b": replicated}, "mu": sharded}

    def initialise():
        w = jnp.sin(jnp.arange(64.0)).reshape(16, 4)
        return {
            "step": jnp.int32(0),
            "params": {"w": w, "b": jnp.zeros(4)},
            "mu": jnp.zeros((16, 4)),
        }

    def step_fn(state):
        key = jax.random.fold_in(jax.random.key(0), state["step"])
        batch = jax.random.normal(key, (8, 16))

        def loss_fn(params):
            return jnp.mean((jnp.tanh(batch @ params["w"] + params["b"]) - 0.5) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(state["params"])
        mu = 0.9 * state["mu"] + grads["w"]
        params = {"w": state["params"]["w"] - 0.1 * mu, "b": state["params"]["b"] - grads["b"]}
        return {"step": state["step"] + 1, "params": params, "mu": mu}, loss

    state = jax.jit(initialise, out_shardings=shardings)()
    step = jax.jit(step_fn, donate_argnums=0, out_shardings=(shardings, replicated))
    return state, step


def abstract_of(state):
    import jax

    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def train(workdir, *, at_step=lambda step: None, take_over=False):
    """Trains to the end or to a preemption."""
    from clipjax.checkpoint import CheckpointManager, owned
    from clipjax.metric_writers import MetricWriter
    from clipjax.processes import exit_codes
    from clipjax.processes.signals import guarding
    from clipjax.processes.watchdog import Watchdog

    state, step_fn = make_run()
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with (
        owned(workdir, take_over=take_over) as check_owner,
        CheckpointManager(
            workdir / "checkpoints", keep=2, metadata=METADATA, check_owner=check_owner
        ) as manager,
        guarding() as guard,
        Watchdog(120) as watchdog,
    ):
        restored = manager.restore_latest(abstract_of(state))
        start = 0
        if restored is not None:
            state, start = restored
        with MetricWriter(workdir, start_step=start, tensorboard=False) as writer:
            for step in range(start, TOTAL_STEPS):
                at_step(step)
                if guard.should_stop():
                    manager.save(step, state, block=True)
                    return exit_codes.PREEMPTED, state
                if step % SAVE_EVERY == 0:
                    manager.save(step, state)
                state, loss = step_fn(state)
                check_owner()
                writer.write(step + 1, {"loss": loss})
                watchdog.beat()
        manager.save(TOTAL_STEPS, state, block=True)
    return exit_codes.OK, state


def main(workdir, strike=None):
    import jax

    if "RANK" in os.environ:
        address = f"127.0.0.1:{os.environ['PORT']}"
        # A process that waits in a barrier learns of a peer's death from missing heartbeats only.
        jax.distributed.initialize(
            address,
            2,
            int(os.environ["RANK"]),
            initialization_timeout=600,
            heartbeat_timeout_seconds=10,
        )

    def at_step(step):
        if "RANK" in os.environ:
            time.sleep(0.1)  # steps of microseconds would be over before a signal is agreed on
        if strike is not None and strike.endswith(f"@{step}"):
            os.kill(os.getpid(), signal.Signals[strike.split("@")[0]])

    sys.exit(train(workdir, at_step=at_step)[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
