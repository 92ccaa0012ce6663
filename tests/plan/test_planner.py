"""A whole plan, of a small step compiled for the devices at hand; search without compiling."""

import dataclasses
import json

import jax
import pytest

from clipjax.plan import Assumptions, make_plan, to_json, to_text
from clipjax.plan.advice import Setting, predicted_bytes, what_fits
from clipjax.plan.chips import CHIPS, GIB, Topology
from clipjax.plan.compiling import Memory, needed_bytes
from clipjax.plan.report import run_cost, search_to_json, search_to_text
from clipjax.plan.search import largest_batch, search_settings, with_setting
from configs.smoke import get_config


def small_config():
    config = get_config("batch_size=64")
    config.dtype = "bfloat16"
    config.remat = "dots"
    config.mesh.data, config.mesh.fsdp = 4, 2
    config.sharding = "fsdp"
    return config


@pytest.fixture(scope="module")
def topology():
    devices = tuple(jax.devices())
    return Topology("v5e:2x4", CHIPS["v5e"], len(devices), devices, num_hosts=2)


@pytest.fixture(scope="module")
def plan(topology):
    return make_plan(small_config(), topology)


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


def test_the_run_costs_what_the_stated_mfu_makes_of_it(plan):
    run = run_cost(plan, Assumptions(mfu=0.5, price=2.0))
    seconds = run["examples"] * plan.model_flops.train / (0.5 * plan.topology.chip.flops)
    assert run["examples"] == 64 * plan.total_steps
    assert run["chip_hours"] == pytest.approx(seconds / 3600)
    assert run["cost_usd"] == pytest.approx(2 * run["chip_hours"])
    assert run["images_per_s_host"] == pytest.approx(4 * run["samples_per_s_chip"])
    assert run_cost(plan, Assumptions())["cost_usd"] is None


def test_the_page_names_bounds_and_assumptions(plan):
    page = to_text(plan, Assumptions(mfu=0.999, price=1.2))
    for words in ("FITS", "aliased", "at least, limited by", "at most", "ASSUMED MFU of 100%"):
        assert words in page
    assert "above the bound" in page
    assert "above the bound" not in to_text(plan, Assumptions(mfu=plan.bounds.mfu / 2))
    assert max(len(line) for line in page.splitlines()) <= 110


def test_json_is_plain(plan):
    found = json.loads(json.dumps(to_json(plan, Assumptions())))
    assert found["fits"] is True
    assert found["hbm"]["split"]["total"] == plan.needed_bytes
    assert found["flops"]["compiled_over_model"] == plan.flops_over_model


def test_a_plan_that_does_not_fit_names_flags(plan):
    tight = dataclasses.replace(
        plan, fits=False, memory=None, flops=None, bounds=None, traffic=None, collectives=[],
        needed_bytes=20 * GIB,
    )  # fmt: skip
    assert "DOES NOT FIT" in to_text(tight, Assumptions())
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
    assert "--config.remat=dots" in flags
    assert "--config.micro_batch_size=None" in flags


def test_overrides_of_a_setting():
    setting = Setting(remat="full", micro_batches=4, sharding="zero1", fsdp=1)
    changed = with_setting(small_config(), setting, 128)
    assert (changed.batch_size, changed.micro_batch_size, changed.remat) == (128, 32, "full")
    assert changed.mesh.to_dict() == {"data": -1, "fsdp": 1, "tensor": 1}
    assert small_config().batch_size == 64


def test_a_batch_that_does_not_divide_is_an_error(topology):
    config = small_config()
    config.batch_size = 60
    with pytest.raises(ValueError, match=r"config.batch_size = 60 does not divide"):
        make_plan(config, topology)


def fake_compiler(plan, bytes_per_example, calls):
    """Plans whose memory grows with the batch alone; `full` takes half, but is slower."""

    def plan_fn(config, topology):
        per_device = config.batch_size // len(topology.devices)
        share = {"none": 2.0, "dots": 1.0, "full": 0.5}[config.remat]
        micro = config.batch_size // (config.micro_batch_size or config.batch_size)
        needed = int(bytes_per_example * share * per_device / micro)
        calls.append(per_device)
        slower = {"none": 1.0, "dots": 1.02, "full": 1.2}[config.remat] * (1.3 if micro > 1 else 1)
        return dataclasses.replace(
            plan,
            fits=needed <= plan.capacity_bytes,
            needed_bytes=needed,
            batch_size=config.batch_size,
            setting=dataclasses.replace(plan.setting, remat=config.remat, micro_batches=micro),
            step=dataclasses.replace(plan.step, batch_per_device=per_device),
            memory=Memory(0, needed, 0, 0, 0),
            bounds=plan.bounds._replace(step_s=plan.bounds.step_s * slower),
        )

    return plan_fn


@pytest.mark.parametrize("limit", [5, 8, 60, 900])
def test_largest_batch_is_found_by_bisection(plan, topology, limit):
    calls = []
    plan_fn = fake_compiler(plan, plan.capacity_bytes / (limit + 0.5), calls)
    first = plan_fn(small_config(), topology)
    largest, tried = largest_batch(small_config(), topology, first, plan_fn=plan_fn)
    assert 0.9 * limit <= largest <= limit
    assert tried[largest]
    assert len(calls) == len(set(calls)) <= 14


def test_settings_are_ordered_by_their_bound(plan, topology):
    calls = []
    plan_fn = fake_compiler(plan, plan.capacity_bytes / 12, calls)
    first = plan_fn(small_config(), topology)
    found = search_settings(small_config(), topology, first, max_compilations=5, plan_fn=plan_fn)
    # Refusals do not count against the number of compilations.
    assert sum(c.plan is not None and c.plan.fits for c in found) == 1 + 5
    fitting = [c.plan.bounds.step_s for c in found if c.plan is not None and c.plan.fits]
    assert fitting == sorted(fitting)
    assert all(c.plan is None or c.plan.fits for c in found[: len(fitting)])
    assert any(c.setting == first.setting and c.plan is first for c in found)
    page = search_to_text(found, (8, {8: True, 16: False}), plan)
    assert "not compiled" in page
    assert "8 examples a device, 64 in all" in page
    json.dumps(search_to_json(found, (8, {8: True})))


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
