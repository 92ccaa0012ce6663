"""What a trace says is summed once, under the right names."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from clipjax.profiling.kernel_times import (
    Span,
    direction,
    family,
    kind_of,
    origins,
    scope,
    self_times,
    streams,
    summarise,
    trace,
)


def event(name, start, length, **stats):
    return SimpleNamespace(name=name, start_ns=start, duration_ns=length, stats=list(stats.items()))


def plane(name, **lines):
    named = [SimpleNamespace(name=k.replace("_", " "), events=v) for k, v in lines.items()]
    return SimpleNamespace(name=name, lines=named)


def test_of_a_gpu_only_the_streams_count():
    """The plane has lines besides that sum the streams up by operation and by module."""
    kernel = event("ampere_gemm_128x64", 0, 5, hlo_op="dot.7", hlo_module="jit_step")
    data = SimpleNamespace(
        planes=[
            plane("/host:CPU", python=[event("dot.7", 0, 99, hlo_op="dot.7")]),
            plane(
                "/device:GPU:0",
                Stream_13=[kernel, event("MemcpyD2D", 5, 1)],
                XLA_Modules=[event("jit_step", 0, 6)],
                Stream_14=[],
            ),
        ]
    )
    assert streams(data) == [
        [Span("ampere_gemm_128x64", "dot.7", 0, 5), Span("MemcpyD2D", "MemcpyD2D", 5, 1)]
    ]


def test_of_a_cpu_the_operations_among_the_hosts_events_count():
    events = [
        event("dot.7", 0, 5, hlo_op="dot.7"),
        event("end: dot.7", 5, 1, hlo_op="dot.7"),
        event("ThreadpoolListener", 0, 9),
    ]
    data = SimpleNamespace(planes=[plane("/host:CPU", pool=events, python=[event("f", 0, 9)])])
    assert streams(data) == [[Span("dot.7", "dot.7", 0, 5)]]


def test_a_loop_is_not_counted_with_its_body():
    loop = Span("while.1", "while.1", 0, 10)
    body = [Span("a", "a", 1, 3), Span("b", "b", 4, 4)]
    after = Span("c", "c", 10, 2)
    found = {span.kernel: own for span, own in self_times([after, *body, loop])}
    assert found == {"while.1": 3, "a": 3, "b": 4, "c": 2}


@pytest.mark.parametrize(
    ("kernel", "op", "kind"),
    [
        ("nvjet_hsh_128x256", "dot.3", "matrix product"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop", "custom-call.2", "attention kernel"),
        ("ncclDevKernel_AllReduce_Sum_f32", "all-reduce.1", "collective"),
        ("loop_dynamic_update_slice_fusion", "x", "copy"),
        ("input_reduce_fusion_4", "fusion.4", "fusion"),
        ("what_is_this", "x", "other"),
    ],
)
def test_kernels_have_kinds(kernel, op, kind):
    assert kind_of(kernel, op) == kind


def test_names_of_one_family_are_one():
    names = ("fusion.12", "fusion_7", "loop_add_fusion.3.1")
    assert [family(name) for name in names] == ["fusion", "fusion", "loop_add_fusion"]
    assert family("123") == "123"


def test_an_operation_is_told_by_its_place_in_the_program():
    forward = "jit(step)/jvp(CLIP)/image_encoder/while/body/block/mlp/dot_general"
    backward = "jit(step)/transpose(jvp(CLIP))/image_encoder/while/body/block/mlp/dot_general"
    again = "jit(step)/transpose(jvp(CLIP))/checkpoint/rematted_computation/block/mlp/tanh"
    assert [direction(o) for o in (forward, backward, again, "jit(step)/mul")] == [
        "forward", "backward", "recomputed", "update and rest",
    ]  # fmt: skip
    assert scope(forward) == scope(backward) == "image_encoder/block/mlp"
    assert scope("jit(step)/mul") == "(top)"


def test_the_sums_are_of_one_step():
    lines = [[Span("gemm.1", "dot.1", 0, 4e6), Span("gemm.2", "dot.1", 4e6, 2e6)]]
    lines += [[Span("copy", "copy.1", 0, 3e6)]]
    found = summarise(lines, {"dot.1": "jit(step)/jvp(m)/mlp/dot"}, steps=3, most=1)
    assert found["busy_ms"] == pytest.approx(3)
    assert found["kernels"] == [{"kernel": "gemm", "part": "m/mlp", "ms": 2.0, "runs": 2 / 3}]
    assert found["other_kernels_ms"] == pytest.approx(1)
    assert found["by_direction"] == {"forward": 2.0, "update and rest": 1.0}
    assert sum(found["by_kind"].values()) == pytest.approx(found["busy_ms"])


# Newer jaxlibs on Python 3.13: an error inside of a type that is being made ends the process.
@pytest.mark.filterwarnings("ignore:builtin type event_stats has no __module__:DeprecationWarning")
def test_a_real_trace_is_read(tmp_path):
    """The trace of this JAX holds the operations of the compiled program, by their names."""
    with jax.named_scope("product"):
        compiled = jax.jit(lambda x: jnp.tanh(x @ x).sum()).lower(jnp.ones((256, 256))).compile()
    argument = jnp.ones((256, 256))
    lines = trace(lambda: compiled(argument).block_until_ready(), tmp_path / "trace")
    of_program = origins(compiled.as_text())
    seen = {span.op for spans in lines for span in spans}
    assert seen & set(of_program), (seen, of_program)
    assert summarise(lines, of_program, steps=1)["busy_ms"] > 0
