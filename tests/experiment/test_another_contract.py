"""Evaluating, fine-tuning or resuming with another contract than the checkpoint's is an error."""

import gzip
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from config_files import shipped

from clipjax.checkpoint import CheckpointManager, make_contract
from clipjax.config import to_plain
from clipjax.evaluate import evaluate
from clipjax.experiment import resolve
from clipjax.experiment.start import make_load_init
from clipjax.tokenizers import make_tokenizer
from clipjax.train_state import TrainState

ROOT = Path(__file__).parents[2]
# What a person changes in the config -> the key of the contract that the error names.
CHANGES = {
    "activation": ({"model.image.activation": "quick_gelu"}, "model.image.activation"),
    "text activation": ({"model.text.activation": "gelu_tanh"}, "model.text.activation"),
    "eps": ({"model.text.layer_norm_eps": 1e-6}, "model.text.layer_norm_eps"),
    "pad rule": ({"model.tokenizer.pad_id": 1}, "tokenizer.pad_id"),
    "cleaning": ({"model.tokenizer.cleaning": ()}, "tokenizer.cleaning"),
    "clamp": ({"model.logit_scale.max": 50.0}, "logit_scale.max"),
    "crop": ({"model.preprocess.crop_fraction": 0.875}, "preprocess.crop_fraction"),
    "vocabulary": ({}, "tokenizer.sha256"),
}


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    """A vocabulary, and another one of as many pieces."""
    data = gzip.decompress((ROOT / "tests/golden/tokenizers/gemma.model.gz").read_bytes())
    folder = tmp_path_factory.mktemp("vocabularies")
    (folder / "a.model").write_bytes(data)
    (folder / "b.model").write_bytes(data.replace(b"photo", b"phoot"))
    return folder


def config_of(vocabulary, changes):
    config = shipped("smoke")
    with config.unlocked():
        config.model.tokenizer = {"name": "sentencepiece", "model": str(vocabulary)}
        config.update_from_flattened_dict(changes)
    return config


def contract_of(config):
    spec = resolve(config).spec
    tokenizer = make_tokenizer(spec["tokenizer"], context_length=spec["text"]["context_length"])
    return make_contract(spec, tokenizer.contract())


@pytest.fixture(scope="module")
def workdir(vocabularies, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = config_of(vocabularies / "a.model", {})
    save(workdir, 1, config, contract_of(config))
    return workdir


def save(workdir, step, config, contract):
    zero = np.zeros((), np.int32)
    metadata = {"config": to_plain(config), "contract": contract}
    metadata |= {"dataset_fingerprint": "", "global_batch_size": 8, "seed": 0}
    state = TrainState(
        step=zero,
        params={"logit_scale": zero},
        opt_state={},
        model_state={},
        ema_params=None,
        skipped=zero,
        skipped_in_a_row=zero,
    )
    with CheckpointManager(workdir / "checkpoints", metadata=metadata) as manager:
        manager.save(step, jax.device_put(state), block=True)


@pytest.fixture
def changed(vocabularies):
    """The config and the contract after a change; None changes nothing."""

    def change(name):
        file = "b.model" if name == "vocabulary" else "a.model"
        config = config_of(vocabularies / file, CHANGES[name][0] if name else {})
        return config, contract_of(config)

    return change


def fine_tune(workdir, config, contract):
    with config.unlocked():
        config.init.checkpoint = str(workdir)
    return make_load_init(resolve(config), contract)


def evaluate_run(workdir, config, contract):
    """As `clipjax eval` does, with an evaluation that must not be reached."""
    run = SimpleNamespace(
        key="zero_shot",
        name=SimpleNamespace(kind="zero_shot", prefix="zero_shot/x"),
        about={},
        which=None,
    )
    experiment = SimpleNamespace(
        evals=[run],
        workdir=workdir,
        settings=SimpleNamespace(),
        metadata={"contract": contract},
    )
    return evaluate(experiment, ["zero_shot"])


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("use", [fine_tune, evaluate_run])
def test_it_is_an_error_that_names_the_field(use, name, changed, workdir):
    config, contract = changed(name)
    with pytest.raises(ValueError, match="another model contract") as error:
        use(workdir, config, contract)
    assert f"  {CHANGES[name][1]}: " in str(error.value)


def test_the_same_contract_is_none(changed, workdir):
    """Negative control: nothing is refused without a change; the evaluation goes on to run."""
    config, contract = changed(None)
    assert fine_tune(workdir, config, contract) is not None
    with pytest.raises(AttributeError, match="program"):
        evaluate_run(workdir, config, contract)


def test_the_step_to_start_from_is_chosen_once(changed, tmp_path):
    """A source that trains on saves another step, here of another model, between two looks."""
    (config, contract), (other, other_contract) = changed(None), changed("activation")
    save(tmp_path, 1, config, contract)
    with config.unlocked():
        config.init.checkpoint = str(tmp_path)
    resolved = resolve(config)
    save(tmp_path, 2, other, other_contract)
    assert make_load_init(resolved, contract) is not None
    with pytest.raises(ValueError, match="another model contract"):
        make_load_init(resolve(config), contract)
