"""Other ways to run a step: which are tried, which are kept; without compiling."""

import dataclasses
import functools
import re
import subprocess
import sys

import pytest
from small_plan import small_config

from clipjax.experiment import resolve
from clipjax.models import resolve_spec
from clipjax.plan.chips import CHIPS
from clipjax.plan.variations import (
    search_variations,
    variations_to_json,
    variations_to_text,
    with_value,
)


@pytest.fixture
def of_64(plan):
    """The plan, of towers whose heads of 64 the kernels take."""
    step = dataclasses.replace(plan.step, spec=resolve_spec({"name": "ViT-B-32"}))
    return dataclasses.replace(plan, step=step)


@pytest.fixture
def resolved():
    config = small_config()
    config.scan_layers = True
    return resolve(config)


@pytest.fixture
def run(resolved, topology, of_64):
    """Searches on devices of a given capacity, in units of what the step needs."""

    def run(capacity, limit=9, refuse=""):
        first = dataclasses.replace(of_64, capacity_bytes=capacity * of_64.needed_bytes)
        calls = []
        plan_fn = compiler(first, calls, refuse=refuse)
        found = search_variations(
            resolved, topology, first, max_compilations=limit, plan_fn=plan_fn
        )
        return found, calls

    return run


def compiler(first, calls, *, refuse=""):
    """Attention by XLA is slower, no scan faster but of twice the memory, a large tile faster."""

    def plan_fn(resolved, topology):
        settings = resolved.settings
        if settings.loss.tile_size == refuse:
            raise ValueError("config.loss.tile_size: not here")
        seconds = {"auto": 1.0, "xla": 1.2}[settings.attention]
        seconds *= 0.8 if settings.scan_layers is False else 1.0
        seconds *= 0.9 if settings.loss.tile_size == 4096 else 1.0
        needed = first.needed_bytes * (2 if settings.scan_layers is False else 1)
        calls.append((settings.attention, settings.scan_layers, settings.loss.tile_size))
        return dataclasses.replace(
            first,
            needed_bytes=needed,
            fits=needed <= first.capacity_bytes,
            bounds=first.bounds._replace(step_s=seconds * first.bounds.step_s),
        )

    return plan_fn


def test_what_lowers_the_bound_is_kept_for_the_next(run):
    found, calls = run(capacity=3)
    assert calls == [
        ("xla", True, None),
        ("auto", False, None),
        ("auto", False, 4096),
    ]
    kept = [v.flag for v in found if v.kept]
    assert kept == ["--config.scan_layers=false", "--config.loss.tile_size=4096"]
    page = variations_to_text(found)
    assert page.endswith(f"Fastest bound: {' '.join(kept)}")
    assert [row["kept"] for row in variations_to_json(found)] == [False, True, True]


def test_what_does_not_fit_or_is_refused_is_not_kept(run):
    found, calls = run(capacity=1.5, refuse=4096)
    assert [v.flag for v in found if v.kept] == []
    page = variations_to_text(found)
    assert "does not fit" in page
    assert "refused: config.loss.tile_size: not here" in page
    assert page.endswith("none of these; as it is")
    assert len(calls) == 2


def test_compilations_are_limited(run):
    found, calls = run(capacity=3, limit=2)
    assert len(calls) == len(found) == 2


@functools.cache
def default_compilations():
    """As the command has it: its flags cannot be defined here beside those of other commands."""
    shown = subprocess.run(
        [sys.executable, "-m", "clipjax", "plan", "--help"], capture_output=True, text=True
    ).stdout
    default = re.search(r"--search_compilations: [^(]*\(default: '(\d+)'\)", shown)
    assert default is not None
    return int(default[1])


def tried(chip, plan, topology, **fields):
    """The flags that half of the default number of compilations goes to, on a chip."""
    config = small_config()
    for name, value in fields.items():
        config[name] = value
    found = search_variations(
        resolve(config),
        dataclasses.replace(topology, chip=CHIPS[chip]),
        plan,
        max_compilations=default_compilations() // 2,
        plan_fn=compiler(plan, []),
    )
    return [variation.flag.removeprefix("--config.") for variation in found]


@pytest.mark.parametrize(
    ("chip", "scan", "tile"), [("v5e", "false", "4096"), ("h100", "true", "1024")]
)
def test_by_default_all_is_tried_that_the_platform_does_not_do_by_itself(
    plan, of_64, topology, chip, scan, tile
):
    others = [f"scan_layers={scan}", f"loss.tile_size={tile}"]
    assert tried(chip, of_64, topology) == ["attention=xla", *others]
    # What is asked for by name, or by a command line's text, is what `auto` stands for.
    same = {"v5e": "true", "h100": "false"}[chip]
    assert tried(chip, of_64, topology, scan_layers=same) == ["attention=xla", *others]
    assert tried(chip, of_64, topology, attention="xla") == ["attention=auto", *others]
    # cuDNN does not compute in float32; the kernel for TPUs does.
    kernel = ["attention=xla"] if chip == "v5e" else []
    assert tried(chip, of_64, topology, dtype="float32") == [*kernel, *others]
    # Nor are heads of 16 for the kernel for TPUs.
    kernel = ["attention=xla"] if chip == "h100" else []
    assert tried(chip, plan, topology) == [*kernel, *others]


def test_a_value_is_set_at_its_path(resolved):
    settings = resolved.settings
    changed = with_value(settings, "loss.tile_size", 4096)
    assert changed.loss.tile_size == 4096
    assert dataclasses.replace(changed, loss=settings.loss) == settings
