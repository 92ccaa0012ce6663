"""How a step runs follows from the devices, and from their memory."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from config_files import shipped

from clipjax.config import default_config
from clipjax.experiment import fitting, program
from clipjax.experiment.execution import choose_execution, rows_that_fit
from clipjax.experiment.memory import Setting, Step
from clipjax.experiment.resolving import resolve
from clipjax.layers.remat import REMAT
from clipjax.models import MODELS
from clipjax.partitioning import global_batch

GB = 10**9


def execution_of(platform, capability=None, count=1, **fields):
    config = default_config()
    for name, value in fields.items():
        config[name] = value
    settings = resolve(config, to_run=False).settings
    device = SimpleNamespace(platform=platform, compute_capability=capability)
    devices = np.array([device] * count)
    mesh = SimpleNamespace(devices=devices, empty=False, abstract_device=device)
    return choose_execution(settings, mesh)


def test_each_platform_has_its_own_way():
    cpu, gpu, tpu = execution_of("cpu"), execution_of("gpu", "9.0"), execution_of("tpu")
    assert (cpu.lean, cpu.unroll, cpu.apart) == (False, 1, False)
    assert (gpu.lean, gpu.unroll, gpu.apart, gpu.attention) == (True, 0, False, "auto")
    assert (tpu.lean, tpu.unroll) == (True, 1)
    assert gpu.row_major and execution_of("gpu", "9.0", 2).row_major
    assert not (tpu.row_major or cpu.row_major)
    assert (tpu.pooled_only, gpu.pooled_only, cpu.pooled_only) == (True, True, False)
    assert execution_of("gpu", "7.5").attention == "xla"
    assert execution_of("gpu", "gfx942").attention == "xla"
    asked = execution_of("gpu", "9.0", scan_layers="true", scan_unroll=4, remat="dots")
    assert (asked.unroll, asked.remat) == (4, "dots")
    for unrolled in (False, "false"):  # of a config, of a command line
        assert execution_of("cpu", scan_layers=unrolled).apart
        assert execution_of("tpu", scan_layers=unrolled).unroll == 0


def rows(memory, *, batch=256, lean=True, platform="gpu", model="ViT-B-16"):
    step = Step(
        spec=MODELS[model], num_parameters=150_000_000, optimizer_bytes=8.0,
        batch_per_device=batch, num_devices=1, item_bytes=2, lean=lean,
    )  # fmt: skip
    setting = Setting(remat="none", micro_batches=1, sharding="replicated", fsdp=1)
    return rows_that_fit(step, setting, memory, platform=platform)


def test_the_memory_says_which_rows_of_recomputation_come_first():
    assert rows(80 * GB) == tuple(REMAT)
    assert rows(20 * GB)[0] == "names"  # compiled: 25 GB of temporaries with none, 13 with names
    assert rows(80 * GB, batch=4096) == ("full",)
    assert rows(1 * GB) == ("full",)
    assert rows(80 * GB, model="RN50") == ("none", "dots", "full")  # the model knows no ResNet's
    assert rows(None) == ("none",)
    assert rows(30 * GB, lean=False)[0] != "none"  # the scores alone are 20 GB


def smoke():
    config = default_config()
    config.model.name, config.batch_size = "ViT-B-32", 8
    return resolve(config, to_run=False)


@pytest.mark.parametrize(
    ("model", "narrow"),
    [
        ({"name": "ViT-B-32"}, ("image", "text")),
        ({"name": "siglip-b-16-256"}, ("text",)),  # whose images are pooled by attention
        ({"name": "RN50"}, ("text",)),
        ({"name": "ViT-B-32", "text": {"dropout": 0.1}}, ("image",)),
        ({"name": "xlm-roberta-base-ViT-B-32"}, ("image",)),  # a mean of the text
    ],
)
def test_whose_last_block_computes_one_token_alone(model, narrow):
    config = default_config()
    config.model, config.batch_size = model, 8
    stage = resolve(config, to_run=False).stages[-1]
    on_tpu, on_cpu = execution_of("tpu"), execution_of("cpu")
    assert (stage.narrow_towers(on_tpu), stage.narrow_towers(on_cpu)) == (narrow, ())
    reading = dataclasses.replace(stage, objective=SimpleNamespace(needs=("text_tokens",)))
    assert reading.narrow_towers(on_tpu) == ()


def test_a_tower_of_ones_own_says_whether_it_pools_one_token():
    stage = smoke().stages[-1]
    towers = {"image_encoder": SimpleNamespace(pools_one_token=True), "text_encoder": object()}
    own = dataclasses.replace(stage, model=SimpleNamespace(**towers))
    assert own.narrow_towers(execution_of("tpu")) == ("image",)


SHARDED = {
    "fsdp": ({"sharding": "fsdp", "mesh.data": 2, "mesh.fsdp": 2, "micro_batch_size": 8}, "names"),
    "tensor": ({"sharding": "tensor", "mesh.data": 2, "mesh.tensor": 2}, "none"),
    "zero1": ({"sharding": "zero1"}, "full"),
}


@pytest.mark.slow
@pytest.mark.parametrize("table", SHARDED)
def test_a_sharded_step_that_computes_one_token_alone_is_the_same(table, monkeypatch):
    """As GPUs and TPUs take it; a CPU is told to."""
    fields, remat = SHARDED[table]

    def stepped(pooled_only):
        config = shipped("smoke", "batch_size=16")
        config.model.image.update(pooling="cls", depth=2)
        config.model.text.update(depth=2, vocab_size=64)
        config.update_from_flattened_dict({**fields, "remat": remat})

        def choose(*where):
            return dataclasses.replace(choose_execution(*where), pooled_only=pooled_only)

        monkeypatch.setattr(program, "choose_execution", choose)
        built = program.build_program(resolve(config, to_run=False), jax.devices()[:4])
        stage = built.stages[-1]
        assert stage.narrow_towers(built.execution) == (("image", "text") if pooled_only else ())
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
        text = rng.integers(1, 64, (16, 16), dtype=np.int32)
        with built.scope():
            batch = global_batch({"image": image, "text": text}, built.mesh)
            state, metrics = stage.step(built.create_state(0), batch)
            assert metrics["loss"] > 0
            return jax.device_get((state.opt_state, metrics["loss"], metrics["grad_norm"]))

    def close(one, other):
        scale = 1e-12 + np.abs(one).max()
        np.testing.assert_allclose(other / scale, one / scale, rtol=0, atol=1e-5)

    jax.tree.map(close, stepped(False), stepped(True))


def test_the_row_that_fits_is_compiled_said_recorded_and_taken_again(monkeypatch, tmp_path, caplog):
    """A CPU does not say its memory; here it does, and its compiler's answer is a given one."""
    needed = {"none": 90 * GB, "names": 70 * GB}
    compiled = []

    def needed_by(candidate):
        compiled.append(candidate.execution.remat)
        return needed[candidate.execution.remat]

    monkeypatch.setattr(program, "memory_of", lambda mesh: 80 * GB)
    monkeypatch.setattr(fitting, "bytes_needed", needed_by)
    resolved = smoke()
    built = program.build_program(resolved)
    assert built.execution.remat == "none" and built.rows == tuple(REMAT)

    def fit():
        return fitting.fitting_program(resolved, built, tmp_path).execution.remat

    with caplog.at_level("INFO"):
        assert fit() == "names"
    assert compiled == ["none", "names"]
    assert "config.remat = auto takes names: compiled, a step needs 65.19 GiB" in caplog.text
    record = json.loads((tmp_path / fitting.RECORD).read_text())
    assert record["remat"] == "names" and record["chosen_for"]["memory_bytes"] == 80 * GB
    assert fit() == "names" and len(compiled) == 2  # a resume compiles nothing to find out
    # On other devices it is chosen anew.
    monkeypatch.setattr(program, "memory_of", lambda mesh: 95 * GB)
    built = program.build_program(resolved)
    assert fit() == "none"


def test_without_known_memory_nothing_is_recomputed_and_nothing_recorded(tmp_path):
    resolved = smoke()
    built = program.build_program(resolved)
    assert fitting.fitting_program(resolved, built, tmp_path) is built
    assert built.execution.remat == "none" and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_step_that_is_too_large_gives_way_to_the_next_row(monkeypatch, tmp_path):
    """The compiler of the CPU itself says what a step needs."""
    config = default_config()
    config.model.name, config.batch_size, config.dtype = "ViT-B-32", 8, "float32"
    resolved = resolve(config, to_run=False)
    monkeypatch.setattr(program, "memory_of", lambda mesh: 10**15)
    built = program.build_program(resolved)
    most = fitting.bytes_needed(built)
    monkeypatch.setattr(program, "memory_of", lambda mesh: most - 1)
    small = dataclasses.replace(built, memory_bytes=most - 1)
    assert fitting.fitting_program(resolved, small, tmp_path).execution.remat != "none"


def test_a_text_tower_of_ones_own_is_none_that_the_model_of_the_memory_knows():
    spec = {**MODELS["ViT-B-16"], "text": {"name": "my_lab.towers:Text", "width": 64}}
    step = Step(
        spec=spec, num_parameters=10**8, optimizer_bytes=8.0,
        batch_per_device=8, num_devices=1, item_bytes=2,
    )  # fmt: skip
    setting = Setting(remat="none", micro_batches=1, sharding="replicated", fsdp=1)
    assert rows_that_fit(step, setting, 80 * GB, platform="gpu") == ("none", "dots", "full")


def test_a_factor_of_a_single_block_of_a_stack_is_refused_where_it_would_be_apart():
    config = shipped("smoke", "batch_size=8")
    config.scan_layers = False
    pattern = "text_encoder/transformer/block_0/"
    config.optimizer.lr_scale = ((pattern, 0.1),)
    with pytest.raises(ValueError, match=rf"config.optimizer.lr_scale: '{pattern}' matches no"):
        program.build_program(resolve(config, to_run=False))
