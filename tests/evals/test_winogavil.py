import json

import numpy as np
import pytest
from stand_ins import Source, evaluation, make_params, mesh_of, picture, unit

import clipjax
from clipjax.data import make_source
from clipjax.data.sources.caption_groups import Association
from clipjax.evals import Compositional, Winogavil
from clipjax.evals.suite import load_suite

SIZES = (5, 6, 10, 12)


def by_hand(image, text, right):
    """The index of two sets, as arXiv:2207.12576 scores a player."""
    scores = image @ text
    chosen = {*sorted(range(len(scores)), key=lambda n: -scores[n])[: sum(right)]}
    wanted = {n for n, is_right in enumerate(right) if is_right}
    return len(chosen & wanted) / len(chosen | wanted)


def associations(num):
    random = np.random.default_rng(2)
    for n in range(num):
        size = SIZES[n % 4]
        right = np.arange(size) < random.integers(1, 4)
        images = tuple(random.permutation(40)[:size].tolist())
        yield Association(f"row {n}", str(n), images, tuple(random.permutation(right).tolist()))


def tokenize(texts):
    """Of the prompt "A 7" the stand-in model takes the number."""
    return np.array([[int(text.split()[1]), 0] for text in texts], np.int32)


def make(devices=1, found=None, **fields):
    source = Source([{"image": picture(n)} for n in range(40)])
    source.associations = tuple(associations(24) if found is None else found)
    return source, evaluation(Winogavil, source, mesh_of(devices), tokenizer=tokenize, **fields)


@pytest.mark.parametrize("devices", [1, 8])
def test_index_of_the_nearest_is_that_of_the_definition(devices, tmp_path):
    params, output = make_params(), tmp_path / "found.jsonl"
    source, made = make(devices, output=str(output))
    found = made.run(params)
    image, text = unit(params["image"]), unit(params["text"])
    each = [
        by_hand(image[list(one.images)], text[n], one.right)
        for n, one in enumerate(source.associations)
    ]
    assert 0 < np.mean(each) < 1
    assert found["jaccard"] == pytest.approx(np.mean(each))
    small = [n % 4 < 2 for n in range(24)]
    assert found["jaccard_5_6"] == pytest.approx(np.mean(np.array(each)[small]))
    assert found["jaccard_10_12"] == pytest.approx(np.mean(np.array(each)[np.logical_not(small)]))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["jaccard"] for line in lines] == pytest.approx(each)
    assert tuple(found) == made.metric_names


def test_equal_scores_are_wrong_and_a_picture_takes_its_cues_along():
    params = make_params()
    params["text"][:] = 0.0
    params["text"][:, 0] = params["image"][:, 0] = 1.0
    params["image"][:, 1:] = 0.0
    one = Association("row 0", "0", (0, 1, 2, 3, 4), (True, True, False, False, False))
    assert make(found=[one])[1].run(params)["jaccard"] == 0
    source, made = make(max_bad=1)
    lost = source.associations[0].images[0]
    source.examples[lost]["image"] = b"no picture"
    kept = [lost not in a.images for a in source.associations]
    assert made.run(make_params())["num_groups"] == sum(kept) < len(kept)
    source, made = make(found=[one], max_bad=1)
    source.examples[0]["image"] = b"no picture"
    with pytest.raises(ValueError, match="no association of jaccard has all of its images"):
        made.run(make_params())


ROWS = """cue,candidates,associations,num_candidates
Owl,"[""a"", ""b"", ""c"", ""d"", ""e""]","[""b"", ""e""]",5
pogonophile,"[""e"", ""d"", ""c"", ""a"", ""f""]","[""f""]",5
"""


def test_the_published_file_by_the_command(evaluate, tiny_checkpoint, tmp_path, save_picture):
    for number, name in enumerate("abcdef"):
        save_picture(tmp_path / "winogavil_images" / f"{name}.jpg", number, 40)
    (tmp_path / "winogavil_dataset.csv").write_text(ROWS)
    spec = f"winogavil:{tmp_path}/winogavil_dataset.csv"
    found, entry = evaluate("winogavil", spec)
    model, source = clipjax.load(tiny_checkpoint), make_source(spec)
    images = dict(zip("abcdef", (source[n]["image"] for n in range(6)), strict=True))
    each = []
    for cue, names, right in (("An owl", "abcde", "be"), ("A pogonophile", "edcaf", "f")):
        image = np.asarray(model.encode_image([images[name] for name in names]))
        text = np.asarray(model.encode_text([cue]))[0]
        each.append(by_hand(image, text, [name in right for name in names]))
    assert found["jaccard"] == found["jaccard_5_6"] == pytest.approx(np.mean(each))
    assert "jaccard_10_12" not in found
    assert (found["num_groups"], found["num_images"]) == (2, 6)
    assert entry["data_fingerprint"] == source.fingerprint()
    with pytest.raises(ValueError, match="the source has no groups of captions"):
        evaluation(Compositional, source, mesh_of(1))


def test_files_that_are_not_what_was_published(tmp_path):
    for content, message in (
        ("cue,candidates\na,b\n", "row 1: the record has no associations"),
        (ROWS.replace('"[""b"", ""e""]"', "b"), "row 1: 'b' is no list of names"),
        (ROWS.replace('"[""f""]"', '"[""x""]"'), r"row 2: the cue 'pogonophile' has the cand"),
        (ROWS.replace("Owl", " "), "row 1: the cue ' '"),
        (ROWS.replace('""c""', '""a""'), "candidates that differ"),
    ):
        (tmp_path / "x.csv").write_text(content)
        with pytest.raises(ValueError, match=message):
            make_source(f"winogavil:{tmp_path}/x.csv")
    with pytest.raises(ValueError, match="the source has no associations: give winogavil:FILE"):
        evaluation(Winogavil, Source([{"image": picture(0)}]), mesh_of(1))


def test_the_suite_asks_for_a_metric_that_the_evaluation_gives():
    (one,) = (one for one in load_suite("datacomp").sets if one.kind == "winogavil")
    made = make()[1]
    assert {*one.metric} <= {*made.metric_names}
    assert one.spec.startswith("winogavil:")
