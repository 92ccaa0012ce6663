import contextlib
import dataclasses
import io
import sys

import numpy as np
import pytest
from PIL import Image

from clipjax.building import ANY_MODULE
from clipjax.data import TRANSFORMS, SampleError, make_source, make_transforms
from clipjax.data.images.areas import areas_of
from clipjax.data.images.preprocess import as_array

SIZE = 20
NEEDED = {
    "caption_template": {"templates": ("a photo of a {}",)},
    "drop_prompt": {"templates": ("a {}",)},
    "mask_words": {"max_words": 1},
}


def rng(key=0):
    return np.random.Generator(np.random.Philox(key=key))


def picture(height=30, width=40, channels=3):
    return rng(height).integers(0, 256, (height, width, channels)).astype(np.uint8)


def encoded():
    out = io.BytesIO()
    Image.fromarray(picture()).save(out, "PNG")
    return out.getvalue()


def example(image=None):
    image = picture() if image is None else image
    return {"image": image, "text": ("a red cat", "a cat", "some animal"), "key": "k"}


def build(name, **fields):
    spec = {"name": name, **NEEDED.get(name, {}), **fields}
    return make_transforms([spec], image_size=SIZE)[0]


def images_for(name):
    if name == "compose_layers":
        return [picture(90, 30, 4)]  # with its areas
    return [picture(), picture(30, 40, 4), encoded(), Image.fromarray(picture())]


def same(left, right):
    return left["text"] == right["text"] and np.array_equal(
        as_array(left["image"]), as_array(right["image"])
    )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_depends_on_the_rng_alone_and_spares_its_input(name):
    transform = build(name)
    for image in images_for(name):
        given, before = example(image), as_array(image).copy()
        outs = [transform(given, rng(key)) for key in (1, 1, *range(2, 12))]
        assert given["image"] is image and given["text"] == example()["text"]
        np.testing.assert_array_equal(as_array(image), before)
        assert same(outs[0], outs[1])
        opaque = name == "random_background" and before.shape[2] == 3
        if name not in ("resize_and_crop", "filter_caption") and not opaque:
            assert not all(same(out, outs[0]) for out in outs)
        assert as_array(outs[0]["image"]).dtype == np.uint8


@pytest.mark.parametrize("name", ["random_resized_crop", "resize_and_crop", "warp"])
def test_size_is_the_model_s_unless_given(name):
    for options, size in (({}, SIZE), ({"image_size": 12}, 12)):
        out = build(name, **options)(example(), rng())
        assert out["image"].shape == (size, size, 3)


def test_a_random_crop_keeps_area_and_ratio():
    crop = build("random_resized_crop", scale=(0.25, 0.5), ratio=(0.5, 2.0))
    for key in range(200):
        left, top, right, bottom = crop.box(100, 80, rng(key))
        assert 0 <= left < right <= 100 and 0 <= top < bottom <= 80
        assert 0.22 < (right - left) * (bottom - top) / 8000 < 0.54
    assert crop.box(1, 1000, rng())[2:] != (0, 0)
    assert build("random_resized_crop")(example(picture(1, 500)), rng())["image"].shape[0] == SIZE


def test_strength_zero_changes_nothing():
    plain = picture(SIZE, SIZE)
    for transform in (
        build("random_flip", probability=0.0),
        build("cutout", probability=0.0),
        build("random_blur", probability=0.0),
        build("color_jitter", hue=0, saturation=(1, 1), gain=0, channel_gain=0, offset=0),
        build("warp", rotate=0, scale=(1, 1), aspect=0, shear=0, shift=0, bend=0),
    ):
        out = np.asarray(transform(example(plain), rng())["image"]).astype(int)
        assert np.abs(out - plain).max() <= 1, transform


def test_flip_mirrors():
    flip = build("random_flip", probability=1.0)
    out = flip(example(), rng())["image"]
    np.testing.assert_array_equal(out, picture()[:, ::-1])


def test_a_flip_spares_what_its_caption_tells_from_its_mirror_image():
    flip = build("random_flip", probability=1.0, unless=(r"\bleft\b", "right"))
    for text, spared in (("left arrow", True), (("hand", "right hand"), True), ("cleft", False)):
        out = flip({**example(), "text": text}, rng())["image"]
        np.testing.assert_array_equal(out, picture() if spared else picture()[:, ::-1])


def test_a_blur_takes_no_colour_from_what_is_transparent():
    image = np.zeros((8, 12, 4), np.uint8)
    image[:, :6] = (200, 30, 90, 255)
    out = build("random_blur", probability=1.0, radius=(2.0, 2.0))(example(image), rng())["image"]
    edge = out[(out[..., 3] > 60) & (out[..., 3] < 250)].astype(int)
    assert len(edge) and np.abs(edge[:, :3] - (200, 30, 90)).max() <= 3


def test_background_only_shows_through():
    image = picture(8, 8, 4)
    image[:4, :, 3], image[4:, :, 3] = 255, 0
    ground = build("random_background", probability=1.0)
    out = ground(example(image), rng(3))["image"]
    np.testing.assert_array_equal(out[:4], image[:4, :, :3])
    assert (out[4:] == out[4, 0]).all() and (out[4, 0] != 255).any()
    white = build("random_background", probability=0.0)(example(image), rng())["image"]
    assert (white[4:] == 255).all()


def test_layers_compose_to_the_drawing():
    sheet = np.zeros((20, 10, 4), np.uint8)
    sheet[2:8, 2:8] = (200, 30, 30, 255)
    sheet[12:18, 5] = (0, 0, 0, 255)
    plain = build("compose_layers", background=0, fade=0, shade_probability=0)
    out = plain(example(sheet), rng())["image"]
    assert (
        (out[0, 0] == 255).all() and (out[3, 3] == (200, 30, 30)).all() and (out[4, 5] == 0).all()
    )
    with pytest.raises(ValueError, match="layers=true"):
        plain(example(picture(30, 40, 4)), rng())
    with pytest.raises(ValueError, match="areas=true"):
        build("compose_layers", hair=1.0)(example(sheet), rng())


def drawing():
    """A red square with brown hair and an eye, and a ring beside it: fill, lines and areas."""
    fill, line, hair = np.zeros((3, 24, 24, 4), np.uint8)
    fill[4:20, 2:10] = (200, 30, 30, 255)
    hair[4:8, 2:12] = fill[6:8, 4:8] = (90, 50, 20, 255)  # hidden beside the square and above
    line[4:20, 2:10, 3] = 255
    line[6:18, 4:8, 3] = 0  # the outline of the square
    line[10:12, 5:7, 3] = 255  # the eye
    line[4:20, 12:22, 3] = 255
    line[6:18, 14:20, 3] = 0  # the ring
    return fill, line, areas_of(fill, line, hair)


def test_areas_are_holes_outlines_and_hair():
    _, _, areas = drawing()
    assert (areas[6:18, 14:20, 0] == 1).all() and areas[5, 16, 0] == 1  # out into the line
    assert (areas[:, :12, 0] == 0).all() and areas[4, 16, 0] == 0  # the outside is no hole
    assert areas[4, 4, 1] == 255 and areas[4, 16, 1] == 255 and areas[10, 5, 1] == 0  # an eye
    assert (areas[..., 2] > 0).sum() == 8 and (areas[6:8, 4:8, 2] == 255).all()


def test_holes_are_painted_outlines_left_out_and_details_kept():
    sheet = np.concatenate(drawing())
    still = {"background": 0, "fade": 0, "shade_probability": 0}
    bare = build("compose_layers", no_outline=1.0, **still)(example(sheet), rng())["image"]
    assert (bare[4:6, 2:10] == (200, 30, 30)).all() and (bare[10, 5] == 0).all()
    painted = [
        build("compose_layers", paint=1.0, **still)(example(sheet), rng(key))["image"]
        for key in range(12)
    ]
    assert 12 > sum((out[8, 16] != 255).any() for out in painted) > 4
    assert all((out[8, 4] == (200, 30, 30)).all() and (out[0] == 255).all() for out in painted)
    # Most of this one is line: without it nothing would be left.
    fill, line, areas = drawing()
    kept = np.concatenate([fill * 0, line, areas])
    out = build("compose_layers", no_outline=1.0, **still)(example(kept), rng())["image"]
    assert (out[4, 4] == 0).all()


def test_hair_is_dyed_unless_the_caption_says_its_colour():
    sheet = np.concatenate(drawing())
    still = {"background": 0, "fade": 0, "shade_probability": 0}
    dye = build("compose_layers", hair=1.0, **still)
    plain = build("compose_layers", **still)(example(sheet), rng())["image"]
    outs = [dye(example(sheet), rng(key))["image"] for key in range(8)]
    assert len({tuple(out[7, 5]) for out in outs}) == 8
    for out in outs:
        changed = (out != plain).any(axis=-1)
        assert changed[6:8, 4:8].all() and changed.sum() == 8
    told = dye({**example(sheet), "text": "man red hair"}, rng())["image"]
    np.testing.assert_array_equal(told, plain)
    assert (dye({**example(sheet), "text": "a chair"}, rng())["image"] != plain).any()


def test_cool_fills_turn_and_skin_does_not():
    sheet = np.zeros((20, 10, 4), np.uint8)
    sheet[:5], sheet[5:10] = (97, 178, 228, 255), (222, 187, 144, 255)
    still = {"background": 0, "fade": 0, "shade_probability": 0}
    out = build("compose_layers", cool_hue=90.0, **still)(example(sheet), rng(3))["image"]
    assert (out[5:] == (222, 187, 144)).all()
    assert abs(out[0, 0].astype(int) - (97, 178, 228)).max() > 20
    assert abs(int(out[0, 0].sum()) - (97 + 178 + 228)) <= 3  # a turn about the grey axis


def test_captions():
    draw = [build("choose_caption", first=0.5)(example(), rng(k))["text"] for k in range(300)]
    assert 100 < draw.count("a red cat") < 200 and len(set(draw)) == 3
    named = {**example(), "text": {"de": "Katze", "en": "cat"}}
    for temperature, low, high in ((1.0, 240, 290), (1e6, 120, 180)):
        choose = build("choose_caption", weights={"en": 9, "de": 1}, temperature=temperature)
        assert low < sum(choose(named, rng(k))["text"] == "cat" for k in range(300)) < high
    sentence = build("caption_template", probability=1.0)
    assert sentence({**example(), "text": "cat"}, rng())["text"] == "a photo of a cat"
    drop = build("drop_word", probability=1.0)
    texts = {drop({**example(), "text": "a red cat"}, rng(k))["text"] for k in range(50)}
    assert texts == {"red cat", "a cat", "a red"}
    assert drop({**example(), "text": "cat"}, rng())["text"] == "cat"


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"name": "crop"}, "unknown"),
        ({"name": "random_flip", "p": 0.5}, "is not a field"),
        (
            {"name": "random_flip", "probability": 2},
            r"transforms\[0\]\.probability = 2: expected a finite number in \[0, 1\]",
        ),
        ({"name": "random_resized_crop", "scale": (0.9, 0.1)}, "scale"),
        ({"name": "random_resized_crop", "scale": 0.5}, "scale"),
        ({"name": "random_resized_crop", "ratio": (0, 1)}, "ratio"),
        ({"name": "random_resized_crop", "interpolation": "nearest"}, "bicubic"),
        ({"name": "warp", "bend": -1}, "bend"),
        ({"name": "caption_template", "templates": ("no place",)}, "no place"),
        ({"name": "caption_template"}, "templates"),
        ({"name": "caption_template", "templates": "a {}"}, "a tuple of sentences"),
        ({"name": "caption_template", "templates": (3,)}, r"templates\[0\] = 3"),
        ({"name": "caption_template", "templates": None}, "a tuple of sentences"),
        ({"name": "random_background", "darkest": 300}, r"darkest = 300: .* in \[0, 255\]"),
        ({"name": "warp", "cells": 0}, "cells = 0: expected a whole number"),
        ({"name": "warp", "cells": SIZE + 1}, "cells = 21: expected at most image_size = 20"),
        ({"name": "resize_and_crop", "image_size": "x"}, r"transforms\[0\]\.image_size = 'x'"),
        ({"name": "resize_and_crop", "interpolation": ["bicubic"]}, "bicubic"),
    ],
)
def test_bad_options(spec, message):
    with pytest.raises(ValueError, match=message):
        make_transforms([spec], image_size=SIZE)


@pytest.mark.parametrize("specs", [{"name": "random_flip"}, "random_flip", ("name",), (None,)])
def test_transforms_that_are_no_list(specs):
    with pytest.raises(
        ValueError, match=r"data\.transforms = .*: expected a tuple or list of dicts"
    ):
        make_transforms(specs, image_size=SIZE)


WRONG = (None, "x", b"1", -1, float("nan"), float("inf"), 1e308, 10**400, (1,), ("a", "b"), {})
NUMBERS = [
    (name, field.name)
    for name, transform in TRANSFORMS.items()
    for field in dataclasses.fields(transform)
    if field.type in (float, int, tuple[float, float]) and field.name != "temperature"
]


def test_every_number_of_a_transform_is_met():
    assert len(NUMBERS) > 30 and ("color_jitter", "hue") in NUMBERS and ("warp", "cells") in NUMBERS


@pytest.mark.parametrize("name, field", NUMBERS)
def test_a_number_is_refused_before_the_run(name, field):
    for value in WRONG:
        with pytest.raises(ValueError, match=field):
            build(name, **{field: value})


@pytest.mark.parametrize("name, field", NUMBERS)
def test_what_is_not_refused_runs(name, field):
    for value in (0, 1, 1e-9, 255, 1e6, 1_000, (0, 0), (1, 1), (0.5, 1e6), (1e6, 1e6)):
        if field == "image_size" and isinstance(value, int) and value > 255:
            continue  # of many gigabytes
        try:
            transform = build(name, **{field: value})
        except ValueError:
            continue
        with np.errstate(all="ignore"):
            for key in range(3):
                for image in images_for(name)[:2]:
                    with contextlib.suppress(SampleError):  # a filter may leave it out
                        transform(example(image), rng(key))


class Mine:
    def __call__(self, example, rng):
        return {**example, "text": "mine"}


def test_a_transform_of_one_s_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_lab", sys.modules[__name__])
    (transform,) = make_transforms([{"name": "my_lab:Mine"}], image_size=SIZE, plugins=ANY_MODULE)
    assert transform(make_source("synthetic:1")[0], rng())["text"] == "mine"
