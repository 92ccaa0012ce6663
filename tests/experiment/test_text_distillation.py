"""The objective `text_distillation`: a text tower of another vocabulary in a teacher's space."""

import json
import sys
import types

import jax
import numpy as np
import pytest
from checkpoints import write_checkpoint
from config_files import shipped

from clipjax import load
from clipjax.data.source import SampleError
from clipjax.data.transforms.captions import first_of
from clipjax.experiment import build_experiment, resolve
from clipjax.models import build_model
from clipjax.partitioning.boxes import unbox
from clipjax.train import train
from clipjax.train_state import init_variables
from clipjax.trees import flatten_with_names

COLORS = {"red": "rot", "green": "gruen", "blue": "blau", "black": "schwarz"}
THINGS = {"car": "auto", "tree": "baum", "house": "haus", "dog": "hund"}
PAIRS = [(f"{c} {t}", f"{COLORS[c]} {THINGS[t]}") for c in COLORS for t in THINGS]


class Names:
    """Grey pictures with a caption in each of two languages."""

    def __len__(self):
        return len(PAIRS)

    def __getitem__(self, index):
        english, german = PAIRS[index]
        picture = np.full((32, 32, 3), 128, np.uint8)
        text = {"en": (english, "something else"), "de": (german,)}
        return {"image": picture, "text": text, "key": str(index)}

    def fingerprint(self):
        return "names"


@pytest.fixture(autouse=True)
def lab(monkeypatch):
    parts = types.ModuleType("my_names")
    parts.Names = Names
    monkeypatch.setitem(sys.modules, "my_names", parts)


def config_of(teacher, **changes):
    """A student that reads WordPiece, in German."""
    config = shipped("smoke", "steps=80,batch_size=16")
    config.model.image.depth = config.model.text.depth = 1
    config.model.text.update({"vocab_size": 30522, "eot_id": 102})
    config.model.tokenizer = {"name": "wordpiece"}
    with config.ignore_type():
        config.data.source = {"name": "my_names:Names"}
    config.data.transforms = ({"name": "choose_caption", "weights": {"de": 1.0}},)
    config.data.num_workers = 0
    config.objective = {"name": "text_distillation", "teacher": str(teacher), "caption": "en"}
    config.optimizer.learning_rate = 1e-2
    config.optimizer.freeze = ("^image_",)
    config.tensorboard = config.report = False
    config.checkpoint.every_steps = 80
    del config.evals.zero_shot
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A model of the smoke config's sizes as it begins, which reads CLIP's BPE."""
    folder, spec = tmp_path_factory.mktemp("teacher"), resolve(shipped("smoke"), to_run=False).spec
    batch = {"image": np.zeros((1, 32, 32, 3)), "text": np.zeros((1, 16))}
    drawn = unbox(init_variables(build_model(spec).init, jax.random.key(0), batch))
    write_checkpoint(folder, spec, drawn["params"])
    return folder


@pytest.mark.slow
def test_a_batch_holds_what_the_teacher_reads(teacher, tmp_path):
    experiment = build_experiment(resolve(config_of(teacher)), tmp_path)
    batch, model = experiment.loader.batch(0), load(teacher)
    assert batch["text"].shape == batch["teacher_text"].shape == (16, 16)
    english = {tuple(model.tokenizer([a])[0]): b for a, b in PAIRS}
    student = resolve(config_of(teacher)).spec["text"]["vocab_size"]
    assert batch["text"].max() < student == 30522
    # Every row is a pair: the student's German beside the teacher's English.
    read = [english[tuple(row)] for row in batch["teacher_text"]]
    order = experiment.loader.indices(0)
    assert read == [PAIRS[i][1] for i in order] and len(set(read)) == 16
    experiment.loader.close()


def test_a_caption_that_an_example_lacks_makes_it_unusable():
    assert first_of({"en": ("a", "b")}, "en") == first_of({"en": "a"}, "en") == "a"
    for text, found in (({"de": "x"}, "the text has de"), ({"en": ()}, "en"), ("x", "no names")):
        with pytest.raises(SampleError, match=f"no caption 'en'; .*{found}"):
            first_of(text, "en")


@pytest.mark.slow
def test_a_teacher_of_another_space_is_refused_before_the_first_step(teacher, tmp_path):
    with pytest.raises(ValueError, match=r"embed_dim 32, the model 16: a student lies in"):
        build_experiment(resolve(config_of(teacher, **{"model.embed_dim": 16})), tmp_path)
    with pytest.raises(ValueError, match=r"config\.objective.*no_such"):
        build_experiment(resolve(config_of("no_such")), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pair_weight", [0.0, 0.1])
def test_a_student_comes_to_its_teacher(teacher, tmp_path, pair_weight):
    config = config_of(teacher, **{"objective.pair_weight": pair_weight})
    state = train(build_experiment(resolve(config), tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert abs(rows[0]["teacher_cosine"]) < 0.5 and rows[-1]["teacher_cosine"] > 0.9
    for row in rows if not pair_weight else ():
        np.testing.assert_allclose(row["loss"], 2 - 2 * row["teacher_cosine"], atol=1e-5)
    # The teacher is as it was, to the bit, and the student is a model to everybody else.
    kept = jax.device_get(state.model_state["teacher"]["objective"]["params"])
    wanted = dict(flatten_with_names(jax.device_get(load(teacher).variables["params"])))
    texts = {name: x for name, x in wanted.items() if name.startswith(("text_", "logit_"))}
    found = dict(flatten_with_names(kept))
    assert found.keys() == texts.keys()
    for name, value in texts.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    english, german = (list(each) for each in zip(*PAIRS, strict=True))
    cosines = load(tmp_path).encode_text(german) @ load(teacher).encode_text(english).T
    assert np.diag(cosines).mean() > 0.9
    assert (cosines.argmax(axis=1) == np.arange(len(PAIRS))).mean() > 0.9
