"""The traffic of the compiled train step under each table of rules, against the theory.

The formulas are those of docs/sharding.md; they are computed here from the number of parameters and
the sizes of the model alone. `sum` counts a reduction in the bytes of a reduce-scatter: an
all-reduce is two of them, and so is counted half.
"""

import collections
import functools

import jax
import pytest

from clipjax.experiment import build_program, resolve
from clipjax.experiment.memory import setting_of, step_of
from clipjax.plan.collectives import find_collectives
from clipjax.plan.formulas import collective_formulas
from clipjax.plan.hlo import parse, walk
from clipjax.trees import count_parameters
from configs.smoke import get_config

BATCH, DEPTH, VOCAB, LENGTH, PATCHES = 256, 3, 64, 16, 16
WIDTH, TPU_WIDTH = 64, 512  # a TPU compiler does not scatter what is narrower than its tiles
MESHES = {
    "replicated": {"data": 2, "fsdp": 4, "tensor": 1},
    "zero1": {"data": 2, "fsdp": 4, "tensor": 1},
    "fsdp": {"data": 2, "fsdp": 4, "tensor": 1},
    "tensor": {"data": 2, "fsdp": 2, "tensor": 2},
}
F32 = 4


def step_config(table, width, dtype):
    config = get_config(f"batch_size={BATCH}")
    config.model.embed_dim = width
    config.model.text.update({"vocab_size": VOCAB, "context_length": LENGTH})
    for tower in (config.model.image, config.model.text):
        tower.update({"width": width, "mlp_dim": 4 * width, "depth": DEPTH, "num_heads": 4})
    config.sharding, config.dtype, config.remat = table, dtype, "none"
    config.mesh.update(MESHES[table])
    return config


class Step:
    """A compiled step: its parameters and its collectives but for the loss's own."""

    def __init__(self, table, devices, width, dtype, num_slices=1):
        config = step_config(table, width, dtype)
        resolved = resolve(config)
        program = build_program(resolved, devices)
        # The collectives are settled before LLVM, whose optimisations take half of the time.
        options = {"xla_backend_optimization_level": 0} if devices[0].platform == "cpu" else None
        with program.scope():
            lowered = program.stages[-1].step.lower(
                program.abstract_state, program.batch_of(program.stages[-1])
            )
            module = parse(lowered.compile(compiler_options=options).as_text())
        mesh = dict(program.mesh.shape)
        mesh["data"] //= num_slices
        found = find_collectives(module, walk(module), mesh, num_slices=num_slices)
        self.collectives = [c for c in found if c.part == "step"]
        self.width, self.item = width, {"float32": 4, "bfloat16": 2}[dtype]
        self.num_params = count_parameters(program.abstract_state.params)
        self.formula = collective_formulas(
            step_of(program.stages[-1], program.abstract_state, program.mesh, program.execution),
            setting_of(resolved.settings, program.mesh, program.execution.remat),
            dict(program.mesh.shape),
            BATCH,
        )["step"]


@functools.cache
def simulated(table):
    return Step(table, jax.devices(), WIDTH, "float32")


def traffic(step):
    """Bytes that a device receives, {(way, axes): bytes}, reductions as scatters."""
    ways = {"all-gather": "gather", "all-reduce": "sum", "reduce-scatter": "sum"}
    if step.item == 2:  # a TPU weaves a reduce-scatter into its product, as permutations in a ring
        ways["collective-permute"] = "sum"
    found = collections.Counter()
    for c in step.collectives:
        half = 2 if c.kind == "all-reduce" else 1
        found[ways.get(c.kind, c.kind), c.crossing.label] += c.total_bytes / half
    return found


def theory(table, step):
    """What a table is to move in a step of these sizes: {(way, axes): bytes}."""
    data, fsdp, tensor = MESHES[table].values()
    devices, width, item, every = data * fsdp, step.width, step.item, step.num_params
    share = (devices - 1) / devices
    blocks = 2 * DEPTH * 12 * width**2
    if table == "replicated":  # the gradients are summed
        return {("sum", "data,fsdp"): share * item * every}
    if table == "zero1":  # and the new parameters come back from whom updated them
        return {
            ("sum", "data,fsdp"): share * item * every,
            ("gather", "data,fsdp"): share * F32 * every,
        }
    if table == "fsdp":  # weights come forward and backward, gradients go once, shards are summed
        part = (fsdp - 1) / fsdp
        matrices = blocks + 3 * 8 * 8 * width + 2 * width**2 + VOCAB * width
        whole = every - matrices + VOCAB * width  # vectors, and what tokens scatter into
        return {
            ("gather", "fsdp"): 2 * part * item * matrices,
            ("sum", "fsdp"): part * item * matrices,
            ("sum", "data"): (data - 1) / data * item * matrices / fsdp,
            ("sum", "data,fsdp"): share * item * whole,
        }
    # Two sums of activations forward and two backward a block, one where tokens are looked up.
    examples = BATCH // devices
    activations = 4 * DEPTH * examples * (PATCHES + LENGTH) * width * item
    lookup = examples * LENGTH * width * F32
    local = every - (blocks + VOCAB * width) * (tensor - 1) / tensor
    return {
        ("sum", "tensor"): (tensor - 1) / tensor * (activations + lookup),
        ("sum", "data,fsdp"): share * item * local,
        ("gather", "data,fsdp"): share * F32 * local,
    }


def differences(step, expected):
    """What is missing, too much, or not expected at all, in words.

    To a tenth, and to a hundredth of the parameters' bytes; what is not expected, to 2 hundredths.
    """
    hundredth = F32 * step.num_params / 100
    found = traffic(step)
    wrong = [
        f"{way} over {axes}: {found[way, axes]:.0f}, not {size:.0f}"
        for (way, axes), size in expected.items()
        if abs(found[way, axes] - size) > size / 10 + hundredth
    ]
    strays = {key: size for key, size in found.items() if key not in expected}
    if sum(strays.values()) > 2 * hundredth:
        wrong.append(f"not expected: {strays}")
    return wrong


@pytest.mark.parametrize(
    "table",
    # The parts of `tensor` along data and fsdp are those of `zero1`.
    [x if x == "tensor" else pytest.param(x, marks=pytest.mark.slow) for x in MESHES],
)
def test_the_step_moves_what_the_theory_says(table):
    step = simulated(table)
    assert differences(step, theory(table, step)) == []


@pytest.mark.parametrize("table", MESHES)
@pytest.mark.parametrize(
    "wrong",
    [x if x == "tensor" else pytest.param(x, marks=pytest.mark.slow) for x in MESHES],
)
def test_a_step_under_other_rules_is_caught(table, wrong):
    """Negative control: every step against the theory of every other table."""
    step = simulated(wrong)
    found = differences(step, theory(table, step))
    assert (found == []) is (table == wrong), found


def large(collectives, kinds, num_params):
    """Single runs that move more than a hundredth of the parameters."""
    return [c for c in collectives if c.kind in kinds and c.bytes_received > F32 * num_params / 100]


@pytest.mark.slow
def test_nothing_but_the_sum_of_the_gradients_is_large_when_replicated():
    step = simulated("replicated")
    others = ("all-gather", "reduce-scatter", "all-to-all", "collective-permute")
    assert large(step.collectives, others, step.num_params) == []
    assert large(simulated("zero1").collectives, others, step.num_params) != []


def test_fsdp_gathers_a_layer_at_a_time():
    """Each block's weights are gathered in the loop over layers, never the whole stack at once."""
    largest = WIDTH * 4 * WIDTH * F32
    for c in simulated("fsdp").collectives:
        if c.kind == "all-gather":
            assert c.bytes_received < largest, c
            in_loop = "blocks" in c.op_name or "transformer/while/body" in c.op_name
            assert c.times == (DEPTH if in_loop else 1), c
    # As ZeRO-1, `tensor` brings its part of the stacks back whole: the same test must see that.
    assert any(
        c.bytes_received >= largest
        for c in simulated("tensor").collectives
        if c.kind == "all-gather"
    )


def test_a_sum_over_tensor_is_of_activations():
    activations = BATCH // 4 * PATCHES * WIDTH * F32
    runs = [c for c in simulated("tensor").collectives if c.crossing.label == "tensor"]
    assert {c.kind for c in runs} == {"all-reduce"}
    in_blocks = [c for c in runs if c.times == DEPTH]
    assert len(in_blocks) == 8, "two forward and two backward in the blocks of each tower"
    assert all(c.bytes_received == activations for c in in_blocks)


# --- What the TPU compiler makes of the same steps ------------------------------------------------


@functools.cache
def for_tpu(table):
    pytest.importorskip("libtpu")
    from clipjax.plan import make_topology

    return Step(table, make_topology("v5e:2x4").devices, TPU_WIDTH, "bfloat16")


@pytest.mark.tpu
@pytest.mark.parametrize("table", MESHES)
@pytest.mark.parametrize("compiled", MESHES)
def test_the_step_for_a_tpu_moves_what_the_theory_says(table, compiled):
    """And what no other table's theory says."""
    step = for_tpu(compiled)
    found = differences(step, theory(table, step))
    assert (found == []) is (table == compiled), found


@pytest.mark.tpu
@pytest.mark.parametrize("table", ["zero1", "fsdp"])
def test_between_slices_only_shares_move(table):
    """Two slices of four: sums of what a slice has summed, and ZeRO-1's new parameters."""
    pytest.importorskip("libtpu")
    from clipjax.plan import make_topology

    step = Step(table, make_topology("v5e:2x2x2slices").devices, TPU_WIDTH, "bfloat16", 2)
    found = traffic(step)
    expected = {"sum": step.item * step.num_params / 4 / 2}
    if table == "zero1":
        expected["gather"] = F32 * step.num_params / 8
    between = {way: size for (way, axes), size in found.items() if axes == "slices"}
    assert between == {way: pytest.approx(size, rel=0.03) for way, size in expected.items()}
    if table == "fsdp":  # the weights' gathers stay inside
        assert {axes for (way, axes) in found if way == "gather"} == {"fsdp"}


@pytest.mark.tpu
@pytest.mark.parametrize(("table", "axes"), [("zero1", "data,fsdp"), ("fsdp", "fsdp")])
def test_a_tpu_scatters_gradients_to_their_owners(table, axes):
    """A sum that everybody gets takes twice the bytes; only `replicated` needs it."""

    def shares(step):
        whole = scattered = 0.0
        for c in step.collectives:
            whole += c.total_bytes * (c.kind == "all-reduce" and c.crossing.label == axes)
            scattered += c.total_bytes * (c.kind in ("reduce-scatter", "collective-permute"))
        return whole, scattered

    whole, scattered = shares(for_tpu(table))
    assert whole < 0.25 * scattered
    assert shares(for_tpu("replicated"))[1] == 0, "the control has nothing to scatter"


@pytest.mark.tpu
@pytest.mark.parametrize("table", MESHES)
def test_the_formula_of_a_plan_is_the_traffic_on_a_tpu(table):
    step = for_tpu(table)
    total = sum(c.total_bytes for c in step.collectives)
    assert total == pytest.approx(step.formula, rel=0.1)
