"""Flags of the step: none on a CPU, none that a user has set, none that XLA does not know."""

import jax
import jax.numpy as jnp
import pytest

from clipjax import compiler_flags
from clipjax.compiler_flags import FLAGS, Flag, encoding_flags, step_flags
from clipjax.encoding.compiled import embed_fn
from clipjax.partitioning import make_mesh

YNN = "xla_cpu_experimental_ynn_fusion_type"
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


def test_encoding_takes_eigens_products_on_x86_alone(monkeypatch):
    for machine, found in (("x86_64", {YNN: ""}), ("arm64", {})):
        monkeypatch.setattr(compiler_flags.host, "machine", lambda machine=machine: machine)
        assert encoding_flags("cpu", 1, {}) == found
        assert encoding_flags("cpu", 1, {"XLA_FLAGS": f"--{YNN}=x"}) == {}
        assert encoding_flags("cpu", 1, {}, dtype="bfloat16") == {}
        assert encoding_flags("gpu", 2, {}) == {}


def test_a_flag_of_encoding_that_xla_has_given_up_is_left_out(monkeypatch):
    gone = Flag(True, False, "for this test", program="encoding")
    monkeypatch.setitem(FLAGS["cpu"], "xla_cpu_no_such_flag", gone)
    assert "xla_cpu_no_such_flag" not in encoding_flags("cpu", 1, {})
    assert "xla_cpu_no_such_flag" not in step_flags("cpu", 1, {})


def test_embeddings_are_compiled_with_the_flags(monkeypatch):
    known = Flag(True, False, "for this test", program="encoding")
    monkeypatch.setattr(compiler_flags, "is_known", lambda name, value: True)
    monkeypatch.setattr(compiler_flags, "FLAGS", {"cpu": {"xla_cpu_no_such_flag": known}})
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    embed = embed_fn(lambda variables, rows: rows * variables, mesh)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_cpu_no_such_flag"):
        embed(jnp.ones(()), jnp.ones((2, 3)))
