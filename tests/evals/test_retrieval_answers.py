import numpy as np
import pytest
from report_page import HOSTILE, Page
from stand_ins import picture, unit
from test_retrieval import make_eval, make_source, mesh_of, related_params, rows_of

from clipjax.array_types import Patches
from clipjax.data.images.naflex import PatchPreprocess, to_image
from clipjax.evals.retrieval_answers import Found, Picture, find_pictures
from clipjax.report import answers as report_answers


def by_brute_force(params, rows, captions):
    """Caption -> (places of all pictures, best first, its own rank)."""
    found = {}
    for image in range(len(rows)):
        token = captions[captions[:, 0] == image][0, 1]
        order = np.argsort(-unit(params["image"][rows]) @ unit(params["text"][token]))
        found[image] = order.tolist(), order.tolist().index(image) + 1
    return found


@pytest.mark.parametrize("num_devices", [1, 8])
def test_equals_brute_force(num_devices):
    source, rows, captions = make_source(23)
    found = find_pictures(make_eval(source, mesh_of(num_devices)), related_params(), num_queries=23)
    expected = by_brute_force(related_params(), rows, captions)
    assert len(found) == 23
    for image, answer in enumerate(found):
        order, rank = expected[image]
        assert [p.key for p in answer.pictures] == [f"picture {place}" for place in order[:3]]
        assert (answer.rank, answer.num_searched) == (rank, 23)
        assert [p.is_right for p in answer.pictures] == [place == image for place in order[:3]]
        assert answer.right.key == f"picture {image}" and answer.right.is_right
        np.testing.assert_array_equal(answer.right.image, picture(rows[image]))
        scores = [p.score for p in answer.pictures]
        assert scores == sorted(scores, reverse=True) and answer.right.score <= scores[0]
    assert len({answer.rank for answer in found}) > 1  # the model is neither perfect nor blind


def test_what_is_searched_is_bounded_and_spaced():
    retrieval = make_eval(make_source(23)[0], mesh_of(1))
    found = find_pictures(retrieval, related_params(), num_queries=3, num_pictures=5)
    assert [answer.num_searched for answer in found] == [5, 5, 5]
    keys = {p.key for answer in found for p in (*answer.pictures, answer.right)}
    assert keys <= {"picture 0", "picture 5", "picture 11", "picture 16", "picture 22"}
    assert [answer.right.key for answer in found] == ["picture 0", "picture 11", "picture 22"]


def test_rows_of_one_picture_are_one_and_what_does_not_decode_is_left_out():
    source, _, captions = make_source(23)
    flat = rows_of(source, captions, 1)
    found = find_pictures(make_eval(flat, mesh_of(2)), related_params(), num_queries=100)
    assert len(found) == found[0].num_searched == 23 < len(flat)
    source.examples[4]["image"] = b"not an image"
    found = find_pictures(make_eval(source, mesh_of(2)), related_params(), num_queries=100)
    assert len(found) == found[0].num_searched == 22
    assert "picture 4" not in {answer.right.key for answer in found}


def test_the_page_frames_the_right_picture_and_shows_it_where_it_was_missed():
    def shown(key, score, is_right=False):
        return Picture(key, picture(3), score, is_right)

    others = tuple(shown(f'other "{n}"', 0.3 - n / 10) for n in range(3))
    right = shown("own", 0.25, True)
    hit = Found("a cat", (right, *others[1:]), right, 1, 512)
    miss = Found(HOSTILE, others, right, 1_234, 512)
    text = report_answers.finds("retrieval/c", [hit, miss], {})
    page = Page(text)
    assert [a["class"] for t, a in page.tags if t == "article"] == [
        "find card right",
        "find card wrong",
    ]
    assert HOSTILE in page.text and "script" not in [tag for tag, _ in page.tags]
    framed = [a.get("class") for t, a in page.tags if t == "figure"]
    assert framed == ["own", None, None, None, None, None, "own"]
    for words in ("best of 512", "0.25", "rank 1,234", "1 of 2 captions", "Found in c"):
        assert words in page.text
    assert report_answers.finds("retrieval/c", [], {}) == ""


def test_patches_become_the_picture_again():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    patches = PatchPreprocess(16, 8)(pixels)  # as many patches as it has
    assert isinstance(patches, Patches)
    np.testing.assert_array_equal(to_image(patches), pixels)
    assert to_image(pixels) is pixels
