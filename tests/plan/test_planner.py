"""A whole plan, of a small step compiled for the devices at hand; search without compiling."""

import contextlib
import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest
from small_plan import small_config

from clipjax.experiment import resolve
from clipjax.layers.remat import REMAT
from clipjax.models import resolve_spec
from clipjax.partitioning.mesh import mesh_shape
from clipjax.plan import Assumptions, make_plan, to_json, to_text
from clipjax.plan.advice import Setting, Step, predicted_bytes, prefer, what_fits
from clipjax.plan.chips import CHIPS, GIB
from clipjax.plan.compiling import Compiled, Memory, compile_step, needed_bytes
from clipjax.plan.gpu import COMPILER_OPTIONS
from clipjax.plan.measured import CHECKS, STEPS
from clipjax.plan.planner import fsdp_sizes
from clipjax.plan.report import digits
from clipjax.plan.roofline import run_cost
from clipjax.plan.search import (
    largest_batch,
    largest_batch_to_text,
    search_settings,
    search_to_json,
    settings_to_text,
    with_setting,
)
from clipjax.plan.topology import Topology


def test_flops_are_those_of_the_model(plan):
    assert plan.fits
    assert plan.model_flops.source == "formula"
    assert plan.flops.by_part["forward"] / 8 == plan.model_flops.image + plan.model_flops.text
    # The pixels take no gradient, which weighs more in a tiny model; remat repeats the attention.
    assert plan.flops_over_model == pytest.approx(1, abs=0.05)


def test_collectives_carry_the_axes_of_the_config(plan):
    labels = {c.crossing.label for c in plan.collectives}
    assert "fsdp" in labels
    assert {label.split(":")[0] for label in labels} <= {"data", "fsdp", "data,fsdp"}
    assert any(c.part == "loss" for c in plan.collectives)


def test_bounds_follow_from_the_counts(plan):
    chip, bounds = plan.topology.chip, plan.bounds
    assert bounds.compute_s == plan.flops.total / chip.flops
    assert bounds.hbm_s == plan.traffic.hbm / chip.hbm_bandwidth
    assert bounds.step_s == max(bounds.compute_s, bounds.hbm_s, bounds.links_s)
    assert bounds.samples_per_s_chip == 8 / bounds.step_s
    assert bounds.mfu == pytest.approx(
        bounds.samples_per_s_chip * plan.model_flops.train / chip.flops
    )


def test_a_run_is_not_costed_at_an_mfu_above_the_bound(plan):
    greedy, modest = Assumptions(mfu=0.999, price=1.2), Assumptions(mfu=plan.bounds.mfu, price=1.2)
    assert greedy.mfu > plan.bounds.mfu
    found = to_json(plan, greedy)["run_at_assumed_mfu"]
    assert found["mfu"] == plan.bounds.mfu
    assert found == to_json(plan, modest)["run_at_assumed_mfu"]
    page = to_text(plan, greedy)
    assert f"at the MFU bound of {plan.bounds.mfu:.0%}, below the assumed 100%" in page
    half = Assumptions(mfu=plan.bounds.mfu / 2, price=1.2)
    assert "at the MFU bound" not in to_text(plan, half)
    assert to_json(plan, half)["run_at_assumed_mfu"]["cost_usd"] == pytest.approx(
        2 * found["cost_usd"]
    )


def cost(plan, assumptions):
    return run_cost(plan.stages, plan.needs, plan.topology, assumptions)


def test_the_run_costs_what_the_stated_mfu_makes_of_it(plan):
    run = cost(plan, Assumptions(mfu=0.5, price=2.0))
    seconds = run["examples"] * plan.model_flops.train / (0.5 * plan.topology.chip.flops)
    assert run["examples"] == 64 * plan.total_steps
    assert run["chip_hours"] == pytest.approx(seconds / 3600)
    assert run["cost_usd"] == pytest.approx(2 * run["chip_hours"])
    assert run["images_per_s_host"] == pytest.approx(4 * run["samples_per_s_chip"])
    assert cost(plan, Assumptions())["cost_usd"] is None


def test_stages_cost_what_each_of_them_computes(plan):
    (whole,), (flops,) = plan.stages, plan.needs
    settings = dataclasses.replace(whole.settings, batch_size=128)
    small = dataclasses.replace(
        whole,
        spec={**whole.spec, "image_size": 16},
        config=whole.config._replace(settings=settings, until_step=30),
    )

    def whole_from(step):
        steps = whole.config._replace(from_step=step, until_step=40)
        return dataclasses.replace(whole, config=steps)

    staged = dataclasses.replace(
        plan,
        stages=(small, whole_from(30)),
        needs=(flops._replace(train=flops.train / 4), flops),
        planned=1,
    )
    one = dataclasses.replace(plan, stages=(whole_from(0),))
    share = (2 * 30 / 4 + 10) / 40
    found, alone = cost(staged, Assumptions(price=3.0)), cost(one, Assumptions())
    assert (found["examples"], alone["examples"]) == (30 * 128 + 10 * 64, 40 * 64)
    assert found["chip_hours"] == pytest.approx(share * alone["chip_hours"])
    first, last = found["stages"]
    assert first["images_per_s_host"] == pytest.approx(4 * last["images_per_s_host"])
    assert first["chip_hours"] == pytest.approx(1.5 * last["chip_hours"])
    assert first["cost_usd"] + last["cost_usd"] == pytest.approx(3 * found["chip_hours"])
    page = to_text(staged, Assumptions())
    assert "Planned is stage 2 of 2, which computes most: 32 pixels" in page
    assert "up to step 30, 3,840 examples: 16 pixels" in page
    assert "Planned is stage" not in to_text(plan, Assumptions())


def test_the_stage_that_computes_most_is_planned(topology, monkeypatch):
    """The model's own size is the last stage; more dropout of patches makes it the smaller one."""
    config = small_config()
    config.model.image.patch_dropout = 0.75
    config.stages = ({"until_step": 8, "patch_dropout": 0.0},)
    compiled = []

    def compile_step(program, stage, chip):
        compiled.append(stage)
        return Compiled(memory=None, needed_bytes=2**40, text="", seconds=0.0)

    monkeypatch.setattr("clipjax.plan.planner.compile_step", compile_step)
    found = make_plan(resolve(config), topology)
    assert compiled[0].sizes == "32 pixels, 16 tokens, patch dropout 0"
    assert found.planned == 0
    assert found.step.spec["image"]["patch_dropout"] == 0.0
    assert [stage.num_steps for stage in found.stages] == [8, 16]
    config.stages = ()
    assert make_plan(resolve(config), topology).step.spec["image"]["patch_dropout"] == 0.75


def test_the_row_that_a_run_would_take_is_planned(topology, monkeypatch):
    """The first row's step fits alone, and not beside the batch that is sent while it runs."""
    config = small_config()
    config.remat = "auto"
    room, tried = int(topology.chip.hbm_bytes / topology.chip.devices), []

    def compile_step(program, stage, chip):
        tried.append(program.execution.remat)
        needed = room if len(tried) == 1 else room // 2
        memory = Memory(arguments=needed, temporaries=0, outputs=0, aliased=0, code=0)
        return Compiled(memory=memory, needed_bytes=needed, text="", seconds=0.0)

    monkeypatch.setattr("clipjax.plan.planner.compile_step", compile_step)
    found = make_plan(resolve(config), topology)
    assert tried == list(REMAT)[:2]
    assert found.setting.remat == tried[1] and found.fits
    assert found.needed_bytes == room // 2 + found.next_batch_bytes
    # A row that is asked for is the only one, and is judged alike.
    config.remat, tried[:] = "none", []
    found = make_plan(resolve(config), topology)
    assert found.memory.total == room and not found.fits
    page = to_text(found, Assumptions())
    assert "DOES NOT FIT" in page and "sent while the step runs" in page


def test_the_page_names_bounds_and_assumptions(plan):
    page = to_text(plan, Assumptions(mfu=plan.bounds.mfu / 2, price=1.2))
    for words in ("FITS", "aliased", "at least, limited by", "at most", "ASSUMED MFU of"):
        assert words in page
    assert max(len(line) for line in page.splitlines()) <= 110


def test_small_numbers_keep_their_digits(plan):
    assert [digits(x) for x in (0, 0.0123, 0.96, 1.25, 1234.56)] == [
        "0.0", "0.012", "0.96", "1.2", "1,234.6",
    ]  # fmt: skip
    assert digits(0.0004, 0) == "0.0004"
    assert digits(1e-7) == "1e-07"
    page = to_text(plan, Assumptions())
    assert plan.bounds.step_s < 1e-3
    assert f"{plan.bounds.step_s * 1e3:.2g} ms at least" in page
    assert " 0 chip-hours" not in page and " 0.0 ms" not in page


def test_json_is_plain(plan):
    found = json.loads(json.dumps(to_json(plan, Assumptions())))
    assert found["fits"] is True
    assert found["hbm"]["split"]["total"] + found["hbm"]["next_batch"] == plan.needed_bytes
    assert found["hbm"]["next_batch"] == 8 * (32 * 32 * 3 + 16 * 4)  # bytes of 8 examples
    assert found["flops"]["compiled_over_model"] == plan.flops_over_model
    assert found["stage"] == {"planned": 1, "of": 1, "sizes": plan.stages[0].sizes}


def test_a_plan_that_does_not_fit_names_flags(plan):
    tight = dataclasses.replace(
        plan, fits=False, memory=None, flops=None, bounds=None, traffic=None, collectives=[],
        needed_bytes=20 * GIB,
    )  # fmt: skip
    page = to_text(tight, Assumptions())
    assert "DOES NOT FIT" in page
    assert "20.00  of the temporaries alone" in page
    assert "temporaries alone" not in to_text(plan, Assumptions())
    step = dataclasses.replace(plan.step, batch_per_device=128, num_devices=256)
    current = dataclasses.replace(plan.setting, remat="none", sharding="zero1", fsdp=1)
    needed = predicted_bytes(step, current)
    answers = what_fits(
        step, current, needed_bytes=needed, capacity=0.8 * needed, fsdp_sizes=(16, 256)
    )
    prices = [price for _, _, price in answers]
    assert prices == sorted(prices)
    assert all(predicted < 0.8 * needed for _, predicted, _ in answers)
    flags = answers[0][0].flags(128 * 256)
    assert "--config.remat=names" in flags
    assert "--config.micro_batch_size=None" in flags


def on_h100s(plan, **changes):
    topology = Topology("h100:8", CHIPS["h100"], 8, plan.topology.devices, num_hosts=1)
    capacity = CHIPS["h100"].hbm_bytes
    return dataclasses.replace(plan, topology=topology, capacity_bytes=capacity, **changes)


def test_the_page_of_a_gpu_says_what_is_not_settled_and_what_was_checked(plan):
    page = to_text(on_h100s(plan), Assumptions())
    assert "8 GPUs, 1 host; mesh" in page
    assert "with XLA's GPU compiler; nothing was run." in page
    words = " ".join(page.split())
    assert "Not settled without a device: which kernels are fastest (autotuning), and" in words
    assert "which products are Triton GEMM fusions" in words and "off here" not in words
    assert words.count("a step took") == len(CHECKS) > 0
    assert f"jax 0.11.2, CUDA 13, {STEPS} (benchmarks/results/" in words
    assert "MEM_FRACTION" not in page
    found = to_json(on_h100s(plan), Assumptions())
    without = on_h100s(plan, compiler_options=COMPILER_OPTIONS)
    assert "Triton GEMM fusions are off here" in " ".join(to_text(without, Assumptions()).split())
    assert to_json(without, Assumptions())["compiler_options"]["xla_gpu_autotune_level"] == 0
    assert [row["time_factor"] for row in found["checked"]] == [c.time_factor for c in CHECKS]
    page = to_text(plan, Assumptions())
    assert "Not settled" not in page and "a step took" not in page
    assert "No plan for this chip was checked against a run on it." in page


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_compiler_that_cannot_choose_is_given_fewer_choices(monkeypatch, failures):
    choices, asked = ({}, COMPILER_OPTIONS), []
    monkeypatch.setattr("clipjax.plan.gpu.option_sets", lambda: choices)

    def compile_with(options):
        asked.append(options)
        if len(asked) <= failures:
            raise jax.errors.JaxRuntimeError("no tile sizes")
        return jax.jit(lambda x: x).lower(1.0).compile()

    lowered = SimpleNamespace(compile=compile_with)
    stage = SimpleNamespace(step=SimpleNamespace(lower=lambda *_: lowered))
    program = SimpleNamespace(
        scope=contextlib.nullcontext, abstract_state=None, batch_of=lambda stage: None
    )
    if failures == 2:
        with pytest.raises(jax.errors.JaxRuntimeError, match="no tile sizes"):
            compile_step(program, stage, CHIPS["h100"])
    else:
        assert compile_step(program, stage, CHIPS["h100"]).options == choices[failures]
    assert asked == [None, COMPILER_OPTIONS][: failures + 1]


def test_a_step_that_needs_more_than_jax_takes_names_the_variable(plan):
    whole = 84_942_979_072
    large = on_h100s(plan, needed_bytes=int(0.8 * whole))
    assert "JAX takes 75% of a GPU; this needs XLA_PYTHON_CLIENT_MEM_FRACTION=0.82" in to_text(
        large, Assumptions()
    )
    most = on_h100s(plan, needed_bytes=int(0.915 * whole))
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.92" in to_text(most, Assumptions())


def test_kernels_are_on_the_page(plan):
    flops = plan.flops._replace(kernels={"__cudnn$fmhaSoftmax": (24, 8e9)}, uncounted={"mine": 3})
    page = to_text(dataclasses.replace(plan, flops=flops), Assumptions())
    assert "of it 1.0 in 24 calls of __cudnn$fmhaSoftmax" in page
    assert "NOT COUNTED: 3 calls of mine, which states no FLOPs" in page


def test_attention_kernels_of_a_tpu_are_on_the_page_as_an_estimate(plan):
    times = {"forward": (24, 6e-3), "backward": (12, 8e-3)}
    found = dataclasses.replace(plan, attention_times=times)
    words = " ".join(to_text(found, Assumptions()).split())
    assert (
        "Attention kernels, an estimate: 14.0 ms by themselves (24 forward 6.0, 12 backward 8.0)"
    ) in words
    assert to_json(found, Assumptions())["attention_estimate"]["forward"]["times"] == 24
    assert plan.attention_times == {} and "Attention kernels" not in to_text(plan, Assumptions())


LARGE = Step(
    spec=resolve_spec({"name": "ViT-L-14"}),
    num_parameters=427_616_513,
    optimizer_bytes=8.0,
    batch_per_device=128,
    num_devices=256,
    item_bytes=2,
)


def large(remat, micro_batches):
    return Setting(remat=remat, micro_batches=micro_batches, sharding="zero1", fsdp=1)


def preference(plan, setting, *, needed, capacity):
    """What is preferred, how the page says it, and the line below."""
    fits = needed <= capacity
    found = prefer(LARGE, setting, needed_bytes=needed, capacity=capacity, fits=fits)
    changed = dataclasses.replace(
        plan, step=LARGE, setting=setting, preference=found, fits=fits, batch_size=128 * 256
    )
    lines = to_text(changed, Assumptions()).splitlines()
    (line,) = [line for line in lines if line.startswith("Remat or micro-batches:")]
    assert len(line) <= 110
    return found, line.removeprefix("Remat or micro-batches: "), lines[lines.index(line) + 1]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (large("none", 1), "remat none, whole batch, is the cheapest that fits"),
        (large("dots", 1), "remat dots, whole batch, is the cheapest that fits"),
        (large("attention", 1), "remat attention, whole batch, is the cheapest that fits (dots: "),
        (large("full", 1), "remat full, whole batch, is the cheapest that fits (attention: about"),
        (large("dots", 4), "4 micro-batches with remat dots; no policy fits the whole batch (full"),
        (large("dots", 8), "8 micro-batches with remat dots; no policy fits the whole batch (full"),
    ],
)
def test_the_page_says_which_of_remat_and_micro_batches(plan, setting, expected):
    """Remat until it does not fit, and only then micro-batches."""
    needed = predicted_bytes(LARGE, setting)
    found, line, following = preference(plan, setting, needed=needed, capacity=1.01 * needed)
    assert found.setting == setting
    assert line.startswith(expected)
    assert not following
    # Negative control: with room for it, the least of them is to be preferred.
    roomy, line, _ = preference(plan, setting, needed=needed, capacity=32 * needed)
    assert roomy.setting == large("none", 1)
    assert line.startswith("prefer remat none, whole batch") is (setting != roomy.setting)


def test_the_page_prefers_remat_to_micro_batches_where_both_fit(plan):
    setting, capacity = large("none", 8), 1.1 * predicted_bytes(LARGE, large("full", 1))
    needed = predicted_bytes(LARGE, setting)
    found, line, following = preference(plan, setting, needed=needed, capacity=1.2 * needed)
    assert capacity < predicted_bytes(LARGE, large("dots", 1))
    assert found.setting == large("full", 1)
    assert line.startswith("prefer remat full, whole batch: about")
    assert line.endswith("+23% FLOPs, not +33%")
    assert following.startswith("  --config.remat=full --config.micro_batch_size=None  (by a")


def test_no_mix_that_fits_is_said_so(plan):
    least = predicted_bytes(LARGE, large("full", 16))
    found, line, _ = preference(plan, large("full", 16), needed=least, capacity=0.9 * least)
    assert found.setting is None
    assert line.startswith("no mix fits under this sharding")


def test_state_that_stays_whole_is_on_the_page(plan):
    warned = dataclasses.replace(plan, unsharded_state="each device holds 7 MB of state, because")
    assert "  WARNING: each device holds 7 MB" in to_text(warned, Assumptions())
    assert to_json(warned, Assumptions())["unsharded_state"].startswith("each device holds")
    assert plan.unsharded_state is None
    assert "WARNING" not in to_text(plan, Assumptions())


def test_overrides_of_a_setting():
    setting = Setting(remat="full", micro_batches=4, sharding="zero1", fsdp=1)
    resolved = resolve(small_config())
    changed = with_setting(resolved, setting, 128)
    found = changed.settings
    assert (found.batch_size, found.micro_batch_size, found.remat) == (128, 32, "full")
    assert dataclasses.asdict(found.mesh) == {"data": -1, "fsdp": 1, "tensor": 1}
    assert changed.stages[0].batch_size == 128
    assert resolved.settings.batch_size == 64


def test_flags_of_a_setting_are_what_has_to_change():
    zero1 = Setting(remat="dots", micro_batches=1, sharding="zero1", fsdp=1)
    assert zero1.flags(64, zero1) == ()
    full = dataclasses.replace(zero1, remat="full")
    assert full.flags(64, zero1) == ("--config.remat=full",)
    fsdp = dataclasses.replace(zero1, sharding="fsdp", fsdp=4, micro_batches=2)
    assert fsdp.flags(64, zero1) == (
        "--config.micro_batch_size=32",
        "--config.sharding=fsdp",
        "--config.mesh.data=-1 --config.mesh.fsdp=4",
    )
    assert len(fsdp.flags(64)) == 4
    tensor = dataclasses.replace(zero1, sharding="tensor")
    assert zero1.flags(64, tensor)[1:] == (
        "--config.mesh.data=-1 --config.mesh.fsdp=1",
        "--config.mesh.tensor=1",
    )


def test_a_search_from_tensor_parallelism_tries_meshes_that_the_other_tables_take():
    config = small_config()
    config.sharding, config.mesh.tensor = "tensor", 2
    setting = Setting(remat="dots", micro_batches=1, sharding="zero1", fsdp=1)
    resolved = resolve(config)
    assert with_setting(resolved, setting).settings.mesh.tensor == 1
    same = dataclasses.replace(setting, sharding="tensor")
    assert with_setting(resolved, same).settings.mesh.tensor == 2


def test_a_batch_that_does_not_divide_is_an_error(topology):
    config = small_config()
    config.batch_size = 60
    with pytest.raises(ValueError, match=r"config.batch_size = 60 does not divide"):
        make_plan(resolve(config), topology)


def fake_compiler(plan, bytes_per_example, calls):
    """Plans whose memory grows with the batch alone; `full` takes half, but is slower."""

    def plan_fn(resolved, topology):
        settings = resolved.settings
        per_device = settings.batch_size // len(topology.devices)
        share = {"none": 2.0, "names": 1.2, "dots": 1.0, "attention": 0.8, "full": 0.5}[
            settings.remat
        ]
        micro = settings.batch_size // (settings.micro_batch_size or settings.batch_size)
        needed = int(bytes_per_example * share * per_device / micro)
        calls.append(per_device)
        slower = {"none": 1.0, "names": 1.01, "dots": 1.02, "attention": 1.1, "full": 1.2}[
            settings.remat
        ] * (1.3 if micro > 1 else 1)
        return dataclasses.replace(
            plan,
            fits=needed <= plan.capacity_bytes,
            needed_bytes=needed,
            batch_size=settings.batch_size,
            setting=dataclasses.replace(plan.setting, remat=settings.remat, micro_batches=micro),
            step=dataclasses.replace(plan.step, batch_per_device=per_device),
            memory=Memory(0, needed, 0, 0, 0),
            bounds=plan.bounds._replace(step_s=plan.bounds.step_s * slower),
        )

    return plan_fn


@pytest.mark.parametrize(
    "limit", [8, 900, *(pytest.param(limit, marks=pytest.mark.slow) for limit in (5, 60))]
)
def test_largest_batch_is_found_by_bisection(plan, topology, limit):
    calls = []
    plan_fn = fake_compiler(plan, plan.capacity_bytes / (limit + 0.5), calls)
    resolved = resolve(small_config())
    first = plan_fn(resolved, topology)
    largest, tried = largest_batch(resolved, topology, first, plan_fn=plan_fn)
    assert 0.9 * limit <= largest <= limit
    assert tried[largest]
    assert len(calls) == len(set(calls)) <= 14


def test_settings_are_ordered_by_their_bound(plan, topology):
    calls = []
    plan_fn = fake_compiler(plan, plan.capacity_bytes / 12, calls)
    resolved = resolve(small_config())
    first = plan_fn(resolved, topology)
    found = search_settings(resolved, topology, first, max_compilations=5, plan_fn=plan_fn)
    # Refusals do not count against the number of compilations.
    assert sum(c.plan is not None and c.plan.fits for c in found) == 1 + 5
    fitting = [c.plan.bounds.step_s for c in found if c.plan is not None and c.plan.fits]
    assert fitting == sorted(fitting)
    assert all(c.plan is None or c.plan.fits for c in found[: len(fitting)])
    assert any(c.setting == first.setting and c.plan is first for c in found)
    page = settings_to_text(found, plan)
    assert "not compiled" in page
    # At 8 examples a device and room for 12, `none` would need 16: names, at 9.6, is the cheapest.
    (best,) = [line for line in page.splitlines() if line.startswith("Least recomputation")]
    assert "as compiled: --config.remat=names " in best
    other = next(c for c in found if c.plan is not None and c.setting.remat == "none")
    page = settings_to_text([other], plan)
    assert "does not fit" in page and "Least recomputation" not in page
    longest = max(REMAT, key=len)
    setting = dataclasses.replace(other.setting, remat=longest)
    page = settings_to_text([dataclasses.replace(other, setting=setting)], plan)
    heading, row = page.splitlines()[2:4]
    end = heading.index("micro-batches") + len("micro-batches")
    assert longest in row and row[end - 1 : end + 1] == f"{setting.micro_batches} "
    batch = largest_batch_to_text((8, {8: True, 16: False}), plan)
    assert "8 examples a device, 64 in all (8 fits, 16 does not)" in batch
    json.dumps(search_to_json(found, (8, {8: True})))


def test_a_setting_that_a_config_cannot_take_is_listed_and_ends_nothing(plan, topology):
    config = small_config()
    config.mesh.fsdp, config.mesh.tensor = 2, 2
    config.mesh.data = 2
    compiler, meshes = fake_compiler(plan, plan.capacity_bytes / 12, []), []

    def plan_fn(resolved, topology):
        settings = resolved.settings
        mesh = mesh_shape(dataclasses.asdict(settings.mesh), len(topology.devices))
        meshes.append(mesh)
        if settings.sharding == "zero1":
            raise ValueError("config.mesh.tensor = 2: no rule of zero1 uses the axis")
        made = compiler(resolved, topology)
        setting = dataclasses.replace(made.setting, fsdp=mesh["fsdp"])
        return dataclasses.replace(made, setting=setting, mesh=mesh)

    resolved = resolve(config)
    first = plan_fn(resolved, topology)
    found = search_settings(resolved, topology, first, max_compilations=100, plan_fn=plan_fn)
    refused = [c for c in found if c.refused]
    assert {c.setting.sharding for c in refused} == {"zero1"}
    assert found[-len(refused) :] == refused
    assert {mesh["fsdp"] for mesh in meshes} == {1, 2, 4}  # 8 leave no room for tensor=2
    assert {mesh["tensor"] for mesh in meshes} == {2}
    assert any(c.plan is not None and c.plan.fits for c in found)
    page = settings_to_text(found, plan)
    assert page.count("refused: config.mesh.tensor = 2: no rule") == len(refused)
    rows = search_to_json(found, (8, {8: True}))["settings"]
    assert sum(row["refused"] is not None for row in rows) == len(refused)
    # Anything else than a refusal still ends the search.
    with pytest.raises(ZeroDivisionError):
        search_settings(resolved, topology, first, max_compilations=9, plan_fn=lambda *_: 1 / 0)
    # From the table `tensor`, whose axis the others give up, all devices may share.
    tensor = dataclasses.replace(first.setting, sharding="tensor")
    assert fsdp_sizes(tensor, first.mesh) == (2, 8)
    assert fsdp_sizes(first.setting, first.mesh) == (2, 4)


@pytest.mark.parametrize(
    ("message", "gib"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (19.47G) exceeds available HBM (15.75G).",
            19.47,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 48.04G of 15.75G hbm.",
         48.04),
    ],
)  # fmt: skip
def test_what_the_compiler_says_when_it_gives_up(message, gib):
    assert needed_bytes(message) == int(gib * GIB)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    assert needed_bytes("INVALID_ARGUMENT: 3G exceeds nothing") is None
