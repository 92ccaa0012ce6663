"""Flags of the step: none on a CPU, none that a user has set, none that XLA does not know."""

import jax
import jax.numpy as jnp
import pytest

from clipjax.compiler_flags import FLAGS, step_flags

SCHEDULER = "xla_gpu_enable_latency_hiding_scheduler"


def test_a_cpu_has_none_and_one_gpu_no_scheduler_of_transfers():
    assert step_flags("cpu", 8, {}) == {}
    assert SCHEDULER not in step_flags("gpu", 1, {})
    assert step_flags("gpu", 2, {})[SCHEDULER] is True


@pytest.mark.parametrize("given", [f"--{SCHEDULER}=false", f"--{SCHEDULER}", f"--no{SCHEDULER}"])
@pytest.mark.parametrize("variable", ["XLA_FLAGS", "LIBTPU_INIT_ARGS"])
def test_what_a_user_has_set_is_left_alone(monkeypatch, variable, given):
    monkeypatch.setenv(variable, f"--xla_dump_to=/tmp/dump {given}")
    assert SCHEDULER not in step_flags("gpu", 8)
    assert step_flags("gpu", 8, {variable: "--xla_dump_to=/tmp/dump"})[SCHEDULER] is True


def test_every_flag_has_a_reason_and_xla_knows_those_of_gpus():
    assert all(flag.reason for flags in FLAGS.values() for flag in flags.values())
    x = jnp.ones(())
    options = {name: flag.value for name, flag in FLAGS["gpu"].items()}
    jax.jit(jnp.sin, compiler_options=options).lower(x).compile()
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_gpu_no_such_flag"):
        jax.jit(jnp.sin, compiler_options={"xla_gpu_no_such_flag": True}).lower(x).compile()
