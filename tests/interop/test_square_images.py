"""Images here are square: what is made for others is one sentence on every route."""

import json
import shutil

import numpy as np
import pytest
from hugging_face_case import edit, make_directory, read
from naming_case import open_clip_tensors, save
from small_weights import CLIP, arrays_of

from clipjax.config import merge
from clipjax.interop import WeightFileError, expected_shapes
from clipjax.interop.converting import convert_weights

TABLE, KERNEL = "visual.positional_embedding", "visual.conv1.weight"


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    path = tmp_path_factory.mktemp("theirs") / "clip"
    make_directory(path, "clip")
    return path


def open_clip_folder(path, config, tensors):
    path.mkdir()
    save(path / "open_clip_model.safetensors", tensors)
    (path / "open_clip_config.json").write_text(json.dumps(config))
    return path


def refused(source, tmp_path, message):
    with pytest.raises(ValueError, match=message) as error:
        convert_weights(source, tmp_path / "out", "clipjax")
    assert "\n" not in str(error.value)
    assert not [x for x in tmp_path.iterdir() if "out" in x.name]


@pytest.mark.parametrize("size", [[128, 288], [288, 128]])
def test_open_clip_config(tmp_path, size):
    """8 x 18 patches are as many as 12 x 12: the tensors alone do not tell."""
    tensors = {**open_clip_tensors(), **arrays_of({TABLE: (145, 16)})}
    vision = {"image_size": size, "patch_size": 16, "width": 16, "layers": 2, "head_width": 16}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": {"width": 16}}}
    folder = open_clip_folder(tmp_path / "in", config, tensors)
    message = rf"vision_cfg\.image_size = \[{size[0]}, {size[1]}\]; only square images are"
    refused(folder, tmp_path, message)
    vision["image_size"] = [192, 192]
    config["preprocess_cfg"] = {"size": size}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    refused(folder, tmp_path, r"preprocess_cfg\.size = \[.*\]; only square images are supported")


def test_open_clip_tensors(tmp_path):
    changes = {TABLE: (1 + 4 * 6, 16)}, {KERNEL: (16, 3, 16, 8)}
    for i, (change, message) in enumerate(
        zip(
            changes,
            ("24 patches; only square images", "16 x 8 pixels; only square ones"),
            strict=True,
        )
    ):
        file = save(tmp_path / f"{i}.safetensors", {**open_clip_tensors(), **arrays_of(change)})
        refused(file, tmp_path, message)


@pytest.mark.parametrize(
    ("file", "keys", "value", "message"),
    [
        (
            "config.json",
            ("vision_config", "image_size"),
            [32, 64],
            r"image_size is \[32, 64\]; .*sq",
        ),
        ("config.json", ("vision_config", "patch_size"), [8, 16], r"size is \[8, 16\]; .*square"),
        (
            "preprocessor_config.json",
            ("crop_size",),
            {"height": 32, "width": 64},
            r"crop_size is .*'width': 64\}; supported is .* a square",
        ),
        (
            "preprocessor_config.json",
            ("size",),
            {"height": 32, "width": 64},
            r"size is .*'width': 64\}; supported is .*: images here are square",
        ),
    ],
)
def test_hugging_face(hugging_face, tmp_path, file, keys, value, message):
    path = shutil.copytree(hugging_face, tmp_path / "in")
    edit(path, file, *keys, value=value)
    refused(path, tmp_path, message)


def test_two_equal_numbers_are_a_square(hugging_face, tmp_path):
    path = shutil.copytree(hugging_face, tmp_path / "clip")
    edit(path, "config.json", "vision_config", "image_size", value=[32, 32])
    assert read(path).spec == read(hugging_face).spec


def test_big_vision(tmp_path):
    block = "Transformer/encoderblock_0/M"
    shapes = {
        "t": (1,),
        "img/embedding/kernel": (16, 16, 3, 16),
        "img/pos_embedding": (1, 24, 16),
        f"img/{block}ultiHeadDotProductAttention_0/query/kernel": (16, 2, 8),
        f"img/{block}lpBlock_0/Dense_0/kernel": (16, 32),
        "img/MAPHead_0/probe": (1, 1, 16),
        "txt/Embed_0/embedding": (50, 16),
        "txt/pos_embedding": (1, 8, 16),
        f"txt/{block}ultiHeadDotProductAttention_0/query/kernel": (16, 2, 8),
        f"txt/{block}lpBlock_0/Dense_0/kernel": (16, 32),
    }
    shapes = {
        name.replace("txt/Transformer/", "txt/Encoder_0/"): shape for name, shape in shapes.items()
    }
    np.savez(tmp_path / "a.npz", **arrays_of(shapes))
    refused(tmp_path / "a.npz", tmp_path, "24 positions, which are no square; only square images")
    shapes |= {"img/pos_embedding": (1, 25, 16), "img/embedding/kernel": (16, 8, 3, 16)}
    np.savez(tmp_path / "b.npz", **arrays_of(shapes))
    refused(tmp_path / "b.npz", tmp_path, "16 x 8 pixels; only square ones")


def test_clipjax():
    with pytest.raises(WeightFileError, match=r"image_size = \[224, 336\]: .* images are square"):
        expected_shapes(merge(CLIP, {"image_size": [224, 336]}))
