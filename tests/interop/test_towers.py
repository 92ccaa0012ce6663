"""Hugging Face's files without a config.json, and directories of one tower."""

import numpy as np
import pytest
from hugging_face_case import make_directory, save_tensors, save_tower
from small_weights import CLIP, SIGLIP, assert_same, leaves_of, noise

from clipjax.config import merge, to_plain
from clipjax.interop import Hints, export
from clipjax.interop.converting import convert_weights
from clipjax.interop.files import open_tensors
from clipjax.interop.formats import FORMATS
from clipjax.interop.hugging_face import clip, siglip
from clipjax.interop.tensors import of_array

VISION, TEXT = "vision_model.", "text_model."


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """By family: the directory, its tensors, the leaves of its checkpoint."""
    folder, found = tmp_path_factory.mktemp("wholes"), {}
    for case in ("clip", "siglip"):
        _, tensors = make_directory(folder / case, case)
        convert_weights(folder / case, folder / f"{case}_ours", "clipjax")
        found[case] = folder / case, tensors, leaves_of(folder / f"{case}_ours")
    return found


@pytest.fixture
def tower(wholes, tmp_path):
    """Writes the directory of one tower as its own class saves it."""

    def make(family, prefix, *, projected=True, change=lambda tensors: tensors):
        whole, tensors, _ = wholes[family]
        path = tmp_path / f"{family}_{prefix[:-1]}"
        return save_tower(path, whole, prefix, change(tensors), projected=projected)

    return make


def plus_one(tensors):
    return {name: x + 1 for name, x in tensors.items()}


def refused(tmp_path, source, message, **hints):
    with pytest.raises(ValueError, match=message) as error:
        convert_weights(source, tmp_path / "out", "clipjax", hints=Hints(**hints))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


# A file alone


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_file_beside_its_config_is_the_directory(wholes, tmp_path, family):
    path, _, leaves = wholes[family]
    convert_weights(path / "model.safetensors", tmp_path / "out", "clipjax")
    assert_same(leaves_of(tmp_path / "out"), leaves)


GELU = {"activation": "gelu"}


def bare(path, spec, family, prefix=""):
    """Writes the file of a model that has one head a tower, as it is taken to have at width 16."""
    arrays = noise(spec)
    tensors = export(family.leaves(spec), {name: of_array(x) for name, x in arrays.items()})
    save_tensors(path, {prefix + name: x.read() for name, x in tensors.items()})
    return arrays


@pytest.mark.parametrize(
    ("spec", "family", "hints"),
    [
        (CLIP, clip, {"activation": "quick_gelu"}),
        (merge(CLIP, dict.fromkeys(("image", "text"), GELU)), clip, GELU),
        (SIGLIP, siglip, {}),
    ],
    ids=["quick", "gelu", "siglip"],
)
def test_a_file_alone_says_its_sizes_and_the_flag_the_rest(tmp_path, spec, family, hints):
    file = tmp_path / "x.safetensors"
    arrays = bare(file, spec, family, prefix="model.")
    done = convert_weights(file, tmp_path / "out", "clipjax", hints=Hints(**hints))
    assert done.source_format == "hf" and done.notes[0].startswith("'model.' taken off")
    assert_same(leaves_of(tmp_path / "out"), arrays)
    found = FORMATS["clipjax"].read(tmp_path / "out", Hints()).spec
    assert {**found, "source": "", "tokenizer": spec["tokenizer"]} == to_plain(spec)


def test_what_a_file_alone_cannot_say(tmp_path):
    file = tmp_path / "x.safetensors"
    bare(file, CLIP, clip)
    refused(tmp_path, file, r"add activation='gelu' \| 'quick_gelu'. Or give the folder with")
    refused(tmp_path, file, "leaves the|is another model", model="ViT-B-32")
    refused(tmp_path, file, "text_from=: .* has no config.json beside it", text_from=tmp_path)
    tensors = {name: x.read() for name, x in open_tensors(file).tensors.items()}
    del tensors["vision_model.pre_layrnorm.weight"]
    save_tensors(file, tensors)
    refused(tmp_path, file, "of such files CLIPModel's and SiglipModel's are known; give the dir")
    del tensors["text_model.embeddings.token_embedding.weight"]
    save_tensors(file, {name: x for name, x in tensors.items() if name.startswith("vision")})
    refused(tmp_path, file, "holds an image tower alone, and a model here has both")
    save_tensors(file, {name: x for name, x in tensors.items() if name.startswith("text")})
    refused(tmp_path, file, "holds a text tower alone, and a model here has both")


# One tower


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_tower_is_completed_by_a_whole_model(wholes, tower, tmp_path, family):
    whole, _, leaves = wholes[family]
    image = tower(family, VISION, change=plus_one)
    hints = Hints(text_from=whole)
    done = convert_weights(image, tmp_path / "a", "clipjax", hints=hints)
    assert done.notes[0] == f"the text tower of {whole}"
    assert "model.safetensors of the text tower" in done.sha256
    found = leaves_of(tmp_path / "a")
    parts = ("image_encoder/", "image_projection/")
    assert_same(found, {n: x + 1 if n.startswith(parts) else x for n, x in leaves.items()})
    text = tower(family, TEXT, change=plus_one)
    convert_weights(whole, tmp_path / "b", "clipjax", hints=Hints(text_from=text))
    parts = ("text_encoder/", "text_projection/")
    wanted = {n: x + 1 if n.startswith(parts) else x for n, x in leaves.items()}
    assert_same(leaves_of(tmp_path / "b"), wanted)


def test_two_towers_are_a_model_with_the_scale_that_is_given(wholes, tower, tmp_path):
    image, text = tower("clip", VISION), tower("clip", TEXT)
    hints = Hints(text_from=text, logit_scale=50.0)
    convert_weights(image, tmp_path / "a", "clipjax", hints=hints)
    leaves = wholes["clip"][2]
    assert_same(leaves_of(tmp_path / "a"), {**leaves, "logit_scale": np.float32(np.log(50.0))})
    refused(tmp_path, image, "neither .* holds logit_scale, .*logit_scale=NUMBER", text_from=text)
    refused(tmp_path, image, "logit_scale=0.0: expected a pos", text_from=text, logit_scale=0.0)
    whole = wholes["clip"][0]
    refused(tmp_path, image, "holds it; leave it out", text_from=whole, logit_scale=50.0)
    refused(tmp_path, whole, "logit_scale= is for two towers", logit_scale=50.0)


def test_a_projection_is_the_other_directorys(wholes, tower, tmp_path):
    whole, _, leaves = wholes["clip"]
    image = tower("clip", VISION, projected=False)
    done = convert_weights(image, tmp_path / "a", "clipjax", hints=Hints(text_from=whole))
    assert done.notes[-1] == f"visual_projection.weight of {whole}"
    assert_same(leaves_of(tmp_path / "a"), leaves)
    text = tower("clip", TEXT)
    refused(tmp_path, image, "no visual_projection.weight, and neither has", text_from=text)


def test_one_tower_alone_is_refused_with_what_to_add(wholes, tower, tmp_path):
    image, text = tower("clip", VISION), tower("siglip", TEXT)
    refused(tmp_path, image, r"image tower alone \(clip_vision_model\).*: add text_from=DIRECTORY")
    refused(tmp_path, text, r"text tower alone .* give it as text_from=, and as source= the d")
    refused(tmp_path, image, "two towers of one family are needed", text_from=text)
    refused(tmp_path, image, "is the image tower alone; the text tower is asked", text_from=image)
    refused(tmp_path, image, "no directory with a config.json", text_from=tmp_path)
    more = {"text_model.head": np.ones(2, np.float32)}
    odd = tower("clip", TEXT, change=lambda tensors: {**tensors, **more})
    with pytest.raises(ValueError, match=r"of no use: text_model.head \(ignore="):
        hints = Hints(text_from=odd, logit_scale=1.0)
        convert_weights(image, tmp_path / "out", "clipjax", hints=hints)
    file = tmp_path / "x.safetensors"
    save_tensors(file, {"visual.proj": np.ones((2, 2), np.float32)})
    refused(tmp_path, file, "holds an image tower alone")
    bare(file, CLIP, clip)
    ours = tmp_path / "ours"
    convert_weights(file, ours, "clipjax", hints=Hints(activation="gelu"))
    refused(
        tmp_path, ours, "completes a directory of Hugging Face's, .* is of clipjax", text_from=image
    )
