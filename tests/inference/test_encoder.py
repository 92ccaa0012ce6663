import io

import jax
import numpy as np
import pytest
from absl import logging
from checkpoints import write_checkpoint
from PIL import Image
from tiny import filled, inputs, tiny_spec

from clipjax.encoding.batches import RowLayout
from clipjax.encoding.prompts import prompts_of_run
from clipjax.inference import Model
from clipjax.models import CLIP, build_model
from clipjax.models.images import normalise_images
from clipjax.models.layers_layout import stack_layers, unstack_layers
from clipjax.partitioning import make_mesh
from clipjax.tokenizers import ClipBPE, make_tokenizer

SPEC = tiny_spec(
    image={"patch_size": 8},
    text={"vocab_size": 49408, "context_length": 16},
    preprocess={"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
)
SCALE = SPEC["logit_scale"]["init"]


@pytest.fixture(scope="module")
def variables():
    params = filled(build_model(SPEC), *inputs(SPEC, 1))["params"]
    return {"params": {**params, "logit_scale": np.float32(np.log(SCALE))}}


@pytest.fixture(scope="module")
def workdir(variables, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    write_checkpoint(workdir, SPEC, variables["params"], step=3)
    return workdir


@pytest.fixture(scope="module")
def encoder(workdir):
    return Model.from_checkpoint(workdir)


def pictures(num):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(num)]


def test_a_checkpoint_is_all_it_takes(encoder, variables):
    found = encoder.encode_image(pictures(3))
    model = build_model(SPEC)
    mean, std = SPEC["preprocess"]["mean"], SPEC["preprocess"]["std"]
    pixels = normalise_images(np.stack(pictures(3)), mean, std, "float32")
    encode = jax.jit(lambda x: model.apply(variables, x, method="encode_image"))
    wanted = encode(pixels)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    tokens = make_tokenizer(SPEC["tokenizer"], context_length=16)(["a cat", "two dogs"])
    wanted = jax.jit(lambda x: model.apply(variables, x, method="encode_text"))(tokens)
    np.testing.assert_allclose(encoder.encode_text(["a cat", "two dogs"]), wanted, atol=1e-6)
    assert found.dtype == np.float32
    # The control: pixels that are not normalised embed elsewhere.
    plain = encode(np.stack(pictures(3)) / np.float32(255))
    assert np.abs(found - plain).max() > 1e-3


def test_every_form_of_an_image_embeds_alike(encoder, tmp_path):
    array = pictures(1)[0]
    image = Image.fromarray(array)
    image.save(tmp_path / "a.png")
    data = io.BytesIO()
    image.save(data, "PNG")
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), data.getvalue(), image, array]
    embeds = encoder.encode_image(forms)
    np.testing.assert_allclose(embeds, embeds[:1].repeat(5, axis=0), atol=1e-6)


def test_an_embedding_does_not_depend_on_its_batch(encoder):
    together = encoder.encode_image(pictures(5))
    alone = np.concatenate([encoder.encode_image([p]) for p in pictures(5)])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert encoder.encode_image([]).shape == (0, 8)


def test_more_rows_than_a_batch_on_several_devices(variables):
    mesh = make_mesh({"data": 4, "fsdp": 1, "tensor": 1}, jax.devices()[:4])
    small = Model(SPEC, variables, mesh=mesh, batch_size=8)
    texts = [f"number {i}" for i in range(19)]
    np.testing.assert_allclose(
        small.encode_text(texts), Model(SPEC, variables).encode_text(texts), atol=1e-6
    )


def test_few_sizes_compile():
    def sizes(devices, numbers, max_batch=64):
        mesh = make_mesh({"data": devices}, jax.devices()[:devices])
        return [RowLayout(mesh, n, max_batch).batch_size for n in numbers]

    assert sizes(1, (1, 2, 3, 5, 64, 65, 1000)) == [1, 2, 4, 8, 64, 64, 64]
    assert sizes(8, (1, 9, 64)) == [8, 16, 64]
    assert sizes(6, (1, 1000)) == [6, 66]  # no more than the batch that was asked for


def test_a_new_number_of_rows_compiles_nothing(variables, monkeypatch):
    traces = []
    encode = CLIP.encode_image, CLIP.encode_text

    def counted(number):
        def call(self, rows, **options):
            traces.append((number, rows.shape[0]))
            return encode[number](self, rows, **options)

        return call

    monkeypatch.setattr(CLIP, "encode_image", counted(0))
    monkeypatch.setattr(CLIP, "encode_text", counted(1))
    mesh = make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices()[:2])
    encoder = Model(SPEC, variables, mesh=mesh, batch_size=8)
    single = Model(SPEC, variables)
    images, wanted = pictures(7), single.encode_image(pictures(7))
    traces.clear()
    for count in (5, 7, 6):
        np.testing.assert_allclose(encoder.encode_image(images[:count]), wanted[:count], atol=1e-5)
        encoder.encode_text([f"text {i}" for i in range(count)])
    assert traces == [(0, 8), (1, 8)]
    encoder.encode_text(["one"])  # the control: a smaller bucket is another program
    assert traces[2:] == [(1, 2)]


@pytest.fixture
def said(monkeypatch):
    lines = []
    for level in ("info", "warning"):
        monkeypatch.setattr(logging, level, lambda text, *values: lines.append(text % values))
    return lines


def test_labels_go_into_the_templates_of_the_run(encoder, said, monkeypatch):
    def train_with(templates):
        config = {"evals": {"a": {"name": "zero_shot", "templates": templates}}}
        monkeypatch.setattr(encoder, "run_prompts", lambda: prompts_of_run(config, "runs/x"))

    labels, images = ["a cat", "dog"], pictures(1)
    simple = encoder.classify(images, labels)
    assert any("default: 'simple'" in line for line in said)
    assert any("'a photo of a a cat.'" in line for line in said)
    for templates in ("plain", ["the {} of it", "{}"]):
        train_with(templates)
        assert encoder.classify(images, labels) == encoder.classify(images, labels, templates)
        assert encoder.classify(images, labels) != simple
        assert encoder.classify(images, labels, "simple") == simple
    assert any("the run's: 'plain'" in line for line in said)
    train_with("/etc/templates.txt")
    with pytest.raises(ValueError, match="templates=FILE"):
        encoder.classify(images, labels)
    encoder.encode_text(labels)  # which needs none


def test_pixels_of_open_clip(variables, encoder):
    picture = Image.fromarray(np.full((16, 16, 4), (200, 10, 10, 0), np.uint8))
    theirs = Model(SPEC, variables, preprocess="open_clip").encode_image([picture])
    np.testing.assert_allclose(theirs, encoder.encode_image([picture.convert("RGB")]), atol=1e-6)
    assert np.abs(theirs - encoder.encode_image([picture])).max() > 1e-3  # laid on white


def test_labels_are_ranked_with_probabilities(encoder):
    labels = ["cat", "dog", "house"]
    ranked = encoder.classify(pictures(2), labels, templates="openai_7")
    assert len(ranked) == 2
    scores = encoder.zero_shot(labels, "openai_7")(pictures(2))
    assert scores.logits.shape == scores.probabilities.shape == (2, 3)
    assert scores.top() == scores.top(9) == ranked
    assert scores.top(2) == [answers[:2] for answers in ranked]
    with pytest.raises(ValueError, match="k is 0"):
        scores.top(0)
    embeds = encoder.encode_image(pictures(2))
    for row, answers in zip(embeds, ranked, strict=True):
        assert {label for label, _ in answers} == set(labels)
        probabilities = [p for _, p in answers]
        assert sum(probabilities) == pytest.approx(1)
        assert probabilities == sorted(probabilities, reverse=True)
        logits = SCALE * encoder.zero_shot([n for n, _ in answers], "openai_7").weights @ row
        np.testing.assert_allclose(np.diff(np.log(probabilities)), np.diff(logits), atol=1e-4)


def test_a_model_with_a_bias_asks_one_question_a_label(variables):
    spec = SPEC | {"logit_bias": -10.0}
    params = variables["params"] | {"logit_bias": np.float32(-10)}
    encoder = Model(spec, {"params": params})
    answers = dict(encoder.classify(pictures(1), ["cat", "dog"])[0])
    cosine = encoder.encode_image(pictures(1)) @ encoder.zero_shot(["cat"]).weights.T
    wanted = 1 / (1 + np.exp(-(SCALE * cosine[0, 0] - 10)))
    assert answers["cat"] == pytest.approx(wanted, rel=1e-3)


def test_layers_may_have_been_trained_unrolled(workdir, variables, encoder):
    again = Model(SPEC, stack_layers(unstack_layers(variables)))
    np.testing.assert_array_equal(
        again.encode_image(pictures(2)), encoder.encode_image(pictures(2))
    )


def test_another_tokenizer_is_refused(workdir, monkeypatch):
    contract = ClipBPE.contract
    monkeypatch.setattr(ClipBPE, "contract", lambda self: contract(self) | {"pad_id": 7})
    with pytest.raises(ValueError, match=r"tokenizer\.pad_id"):
        Model.from_checkpoint(workdir)


def test_bad_input_is_named(encoder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"bad\.png cannot be used"):
        encoder.encode_image([pictures(1)[0], tmp_path / "bad.png"])
    with pytest.raises(ValueError, match=r"none\.png cannot be used: there is no such file"):
        encoder.encode_image([tmp_path / "none.png"])
    with pytest.raises(ValueError, match=r"s3://b/a\.png .* download the picture first"):
        encoder.encode_image(["s3://b/a.png"])
    with pytest.raises(ValueError, match="put the one image in a list"):
        encoder.encode_image("a.png")
    with pytest.raises(ValueError, match="list of strings"):
        encoder.encode_text("a cat")
    for labels in ([], ["cat", "cat"], ["cat", " "]):
        with pytest.raises(ValueError, match="labels"):
            encoder.classify(pictures(1), labels)
    with pytest.raises(ValueError, match="no checkpoint"):
        Model.from_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="a path is None"):
        Model.from_checkpoint(None)


BAD = {
    "encode_image takes a list of images, not None": lambda m: m.encode_image(None),
    r"an array of shape \(9, 8, 3\); put the one": lambda m: m.encode_image(np.ones((9, 8, 3))),
    r"image 0 cannot be used: the image is uint8\[0, 3, 3\]": lambda m: m.encode_image(
        [np.zeros((0, 3, 3), np.uint8)]
    ),
    "encode_text takes a list of strings, not None": lambda m: m.encode_text(None),
    "list of strings; entry 1 is 2": lambda m: m.encode_text(iter(["cat", 2])),
    "zero_shot takes a list of strings; entry 0 is 1": lambda m: m.zero_shot([1, 2]),
    "zero_shot takes a list of strings; entry 0 is b'cat'": lambda m: m.zero_shot([b"cat"]),
    "zero_shot takes a list of strings, not None": lambda m: m.zero_shot(None),
    r"not usable \(\['cat', 'cat '\]\)": lambda m: m.zero_shot(["cat", "cat "]),
    "k is 1.5": lambda m: m.zero_shot(["cat"])([]).top(1.5),
    "k is '2'": lambda m: m.zero_shot(["cat"])([]).top("2"),
    r"a list, \['a photo of \{\}'\]": lambda m: m.zero_shot(["cat"], "a photo of {}"),
    "layer = 1.5": lambda m: m.image_tokens([], layer=1.5),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_list_of_them_is_named(encoder, message):
    with pytest.raises(ValueError, match=message):
        BAD[message](encoder)


def test_texts_may_come_from_a_generator(encoder):
    texts = ["a cat", "two dogs"]
    wanted = encoder.encode_text(texts)
    assert wanted.shape == (2, 8)
    for found in (encoder.encode_text(map(str, texts)), encoder.encode_text(np.array(texts))):
        np.testing.assert_array_equal(found, wanted)
    assert encoder.text_tokens(x for x in texts).shape[0] == 2
    head = encoder.zero_shot(name for name in ("cat", "dog"))
    assert head.class_names == ("cat", "dog")


def test_heads_and_scores_are_equal_to_themselves(encoder, tmp_path):
    (tmp_path / "t.txt").write_text("a photo of {}\n")
    head = encoder.zero_shot(["cat", "dog"], tmp_path / "t.txt")
    assert head.prompts.templates == ("a photo of {}",)
    scores = head([])
    assert head == head and scores == scores and len({head, scores}) == 2
    assert head != encoder.zero_shot(["cat", "dog"]) and scores != head([])
    assert repr(encoder) == "Model('tiny', image_size=16, dtype='float32')"
