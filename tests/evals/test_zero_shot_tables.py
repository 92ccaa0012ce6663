"""Metrics and tables of zero-shot classification against those of plain NumPy, by hand counted
pictures, and the subsets of ImageNet."""

import json

import numpy as np
import pytest
from stand_ins import Source, evaluation, make_params, mesh_of, picture, unit

from clipjax.data.classes.named_lists import load_class_names, load_imagenet_ids
from clipjax.evals import ZeroShot
from clipjax.evals.examples import confused_rows
from clipjax.evals.label_files import load_class_map, load_label_file
from clipjax.metrics import average_precision

NAMES = tuple(f"{c} thing" for c in range(6))


def knowing(answers, num=256):
    """A model whose picture `i` is nearest to text `answers[i]`, and then to the next ones."""
    params = make_params(rows=num)
    params["text"] = np.eye(num, 8, dtype=np.float32)[np.arange(num) % 8]
    near = np.array([1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0, 0], np.float32)
    for row, answer in enumerate(answers):
        params["image"][row] = np.roll(near, answer)
    return params


def zero_shot(examples, names=NAMES, devices=2, **changes):
    own = changes.pop("own", {})
    source = Source([{"image": picture(i), **e} for i, e in enumerate(examples)], names)
    for fact, value in own.items():
        setattr(source, fact, value)
    return evaluation(ZeroShot, source, mesh_of(devices), **{"templates": "plain"} | changes)


LABELS, ANSWERS = [0, 0, 0, 1, 1, 2, 2, 2, 2, 4], [0, 0, 1, 1, 2, 2, 2, 2, 0, 5]


@pytest.mark.parametrize("devices", [1, 8])
def test_tables_are_those_counted_by_hand(devices):
    found = zero_shot([{"label": c} for c in LABELS], devices=devices)
    metrics = found.run(knowing(ANSWERS))
    assert metrics["top1"] == 0.6 and metrics["num_examples"] == 10
    # F1 of class 0: 2 of 3 and 3, of 1: 1 of 2 and 2, of 2: 3 of 4 and 4, of 4: none.
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 3 / 4 + 0) / 4)
    assert tuple(metrics) == found.metric_names
    tables = found.tables()
    json.dumps(tables, allow_nan=False)
    assert tables["confusion"] == {
        "0": {"0": 2, "1": 1},
        "1": {"1": 1, "2": 1},
        "2": {"0": 1, "2": 3},
        "4": {"5": 1},
    }
    assert tables["per_class"][2] == {
        "name": "2 thing",
        "examples": 4,
        "predicted": 4,
        "hits": 3,
        "recall": 0.75,
        "precision": 0.75,
    }
    assert (tables["per_class"][3]["recall"], tables["per_class"][4]["precision"]) == (None, None)


def of_confused(mesh):
    """Wrong answers of `LABELS` among pictures of a class that is left out, by their rows."""
    truths, answers = [LABELS[0], 5, *LABELS[1:]] * 3, [ANSWERS[0], 0, *ANSWERS[1:]] * 3
    source = Source([{"image": picture(i), "label": c} for i, c in enumerate(truths)], NAMES)
    how = {"class_names": NAMES[:5], "classes": "listed", "templates": "plain"}
    # Five names: an answer of the sixth is nearest to the first, of the names that are there.
    params = knowing([a % 5 for a in answers])
    params["image"][14] += 0.5  # the second picture 3 is less sure
    found = evaluation(ZeroShot, source, mesh, **how, logit_scale_fn=lambda p: np.float32(4))
    found.run(params)
    assert "confused" not in found.tables()
    found.keeps_examples = True
    found.run(params)
    return json.loads(json.dumps(found.tables()["confused"]))


@pytest.mark.parametrize("devices", [1, 8])
def test_confused_pictures_are_those_with_the_surest_wrong_answers(devices):
    found = of_confused(mesh_of(devices))
    pairs = {(p["class"], p["answer"]): p for p in found}
    told = {key: (p["pictures"], p["of"]) for key, p in pairs.items()}
    assert told == {(0, 1): (3, 9), (1, 2): (3, 6), (2, 0): (3, 12), (4, 0): (3, 3)}
    assert list(pairs) == [(4, 0), (1, 2), (0, 1), (2, 0)]
    rows = {key: [each["row"] for each in p["examples"]] for key, p in pairs.items()}
    assert rows == {
        (0, 1): [3, 25, 14],
        (1, 2): [5, 16, 27],
        (2, 0): [9, 20, 31],
        (4, 0): [10, 21, 32],
    }
    sure, _, unsure = (each["score"] for each in pairs[0, 1]["examples"])
    assert 1 > sure > unsure > 0.2


def test_of_many_confused_pairs_and_pictures_few_are_kept():
    rng = np.random.default_rng(4)
    labels, answers = rng.integers(0, 12, (2, 900))
    scores = rng.random(900)
    found = confused_rows(np.arange(900) + 7, labels, answers, scores)
    matrix = np.zeros((12, 12), int)
    np.add.at(matrix, (labels, answers), 1)
    shares = matrix / matrix.sum(axis=1, keepdims=True)
    np.fill_diagonal(shares, 0)
    assert len(found) == 8
    best = [matrix[p["class"], p["answer"]] / p["of"] for p in found]
    assert best == sorted(shares.ravel(), reverse=True)[:8]
    for pair in found:
        these = np.flatnonzero((labels == pair["class"]) & (answers == pair["answer"]))
        surest = these[np.argsort(-scores[these])][:4] + 7
        assert [each["row"] for each in pair["examples"]] == surest.tolist()
    assert confused_rows(np.arange(900), labels, labels, scores) == []


def test_calibration_is_that_of_its_definition():
    params = make_params(3)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 6, 200)
    found = zero_shot([{"label": int(c)} for c in labels], logit_scale_fn=lambda p: np.float32(4))
    metrics = found.run(params)
    cosines = unit(params["image"][:200]) @ unit(params["text"][:6]).T
    scores = np.exp(4 * cosines) / np.exp(4 * cosines).sum(axis=1, keepdims=True)
    confidence, hits = scores.max(axis=1), scores.argmax(axis=1) == labels
    ece = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            gap = abs(hits[inside].mean() - confidence[inside].mean())
            ece += inside.sum() / 200 * gap
    assert metrics["ece"] == pytest.approx(ece, abs=1e-6)
    curve = found.tables()["reliability"]
    assert sum(b["examples"] for b in curve) == 200 and len(curve) > 4
    assert all(b["from"] < b["confidence"] <= b["to"] for b in curve)
    assert "ece" not in zero_shot([{"label": 0}]).metric_names


def by_threshold(scores, targets):
    """Average precision, threshold by threshold."""
    found, recall_before = 0.0, 0.0
    for threshold in np.unique(scores)[::-1]:
        chosen = scores >= threshold
        recall = targets[chosen].sum() / targets.sum()
        found += (recall - recall_before) * targets[chosen].mean()
        recall_before = recall
    return found


def test_average_precision_is_that_of_its_definition():
    rng = np.random.default_rng(1)
    scores = np.round(rng.normal(size=(40, 3)), 1)  # with equal ones
    targets = rng.random((40, 3)) < 0.3
    targets[:, 2] = False
    found = average_precision(scores, targets)
    wanted = [by_threshold(scores[:, c], targets[:, c]) for c in range(2)]
    np.testing.assert_allclose(found[:2], wanted, rtol=1e-12)
    assert np.isnan(found[2])
    constant = average_precision(np.zeros((40, 1)), targets[:, :1])
    np.testing.assert_allclose(constant, targets[:, 0].mean())


@pytest.mark.parametrize("devices", [1, 8])
def test_pictures_of_several_classes_have_a_mean_average_precision(devices):
    params, rng = make_params(5), np.random.default_rng(2)
    targets = rng.random((21, 6)) < 0.4
    targets[0] = False  # a picture may show none
    examples = [{"labels": tuple(np.flatnonzero(t).tolist())} for t in targets]
    found = zero_shot(examples, devices=devices, own={"several": True})
    metrics = found.run(params)
    scores = unit(params["image"][:21]) @ unit(params["text"][:6]).T
    wanted = np.mean([by_threshold(scores[:, c], targets[:, c]) for c in range(6)])
    assert metrics["mean_ap"] == pytest.approx(wanted, rel=1e-6)
    best = targets[np.arange(21), scores.argmax(axis=1)]
    assert metrics["top1"] == pytest.approx(best.mean()) and metrics["num_examples"] == 21
    assert "mean_per_class_recall" not in metrics
    assert tuple(metrics) == found.metric_names
    predictions = found.predict(params, 21)
    assert [p.correct for p in predictions] == best.tolist()
    with pytest.raises(ValueError, match="picture 0 has no labels"):
        zero_shot([{}], own={"several": True}).run(params)


REGIONS = ["Asia", "Asia", "Africa", "Africa", "Other", "Asia", "Africa", "Asia", "Africa", "Other"]


@pytest.mark.parametrize("devices", [1, 8])
def test_the_worst_group(devices):
    examples = [{"label": c, "groups": {"region": r}} for c, r in zip(LABELS, REGIONS, strict=True)]
    own = {"group_names": ("region",)}
    found = zero_shot(examples, devices=devices, own=own)
    metrics = found.run(knowing(ANSWERS))
    assert tuple(metrics) == found.metric_names
    groups = found.tables()["groups"]["region"]
    assert {name: g["examples"] for name, g in groups.items()} == {
        "Africa": 4,
        "Asia": 4,
        "Other": 2,
    }
    expected = {}
    for region in set(REGIONS):
        rows = [i for i, r in enumerate(REGIONS) if r == region]
        expected[region] = np.mean([LABELS[i] == ANSWERS[i] for i in rows])
    assert {name: g["top1"] for name, g in groups.items()} == pytest.approx(expected)
    assert metrics["worst_region_top1"] == min(expected.values())
    ignoring = zero_shot(examples, own=own, ignored_groups=("region=Other",))
    metrics = ignoring.run(knowing(ANSWERS))
    assert metrics["worst_region_top1"] == min(expected["Asia"], expected["Africa"])


def of_groups_and_several(mesh):
    """Metrics and tables that processes have to agree on; run by test_processes.py."""
    rng = np.random.default_rng(4)
    groups = [{"image": picture(i), "label": i % 6, "groups": {"g": f"{i % 3}"}} for i in range(23)]
    several = [{"image": picture(i), "labels": (i % 6, i * 5 % 6)} for i in range(23)]
    rng.shuffle(groups)
    found = {}
    for name, examples in (("groups", groups), ("several", several)):
        source = Source(examples, NAMES)
        source.group_names, source.several = ("g",) if name == "groups" else (), name == "several"
        made = evaluation(ZeroShot, source, mesh, templates="plain")
        found |= {name: made.run(make_params(6)), f"tables of {name}": made.tables()}
    return found


def test_groups_that_do_not_fit_are_named():
    own = {"group_names": ("region",)}
    params = knowing([0, 0])
    with pytest.raises(ValueError, match="picture 1 says no region"):
        examples = [{"label": 0, "groups": {"region": "x"}}, {"label": 0, "groups": {}}]
        zero_shot(examples, own=own).run(params)
    examples = [{"label": 0, "groups": {"region": "x"}}]
    with pytest.raises(ValueError, match="'region=y', which is none of region=x"):
        zero_shot(examples, own=own, ignored_groups=("region=y",)).run(params)
    with pytest.raises(ValueError, match="leaves none of region: x"):
        zero_shot(examples, own=own, ignored_groups=("region=x",)).run(params)
    with pytest.raises(ValueError, match=r"without groups.*group_field=NAME"):
        zero_shot(examples, ignored_groups=("region=x",))


def numbered(names):
    """A tokenizer for lists of real names: a text is the place of the name that it is."""
    places = {name: place for place, name in enumerate(names)}
    return lambda texts: np.array([[places[text], 0] for text in texts], np.int32)


def test_subsets_of_imagenet_are_matched_by_the_ids_of_their_folders():
    names, ids = load_class_names("imagenet"), load_imagenet_ids()
    some = load_class_names("imagenet-a")
    folders = tuple(ids[names.index(name)] for name in some[:3])
    found = zero_shot(
        [{"label": c} for c in (0, 1, 2)],
        folders,
        class_names="imagenet-a",
        tokenizer=numbered(some),
    )
    metrics = found.run(knowing([0, 1, 7]))
    assert (metrics["num_classes"], metrics["num_examples"]) == (200, 3)
    assert metrics["top1"] == pytest.approx(2 / 3)
    assert found.about()["class_names"]["matched"] == "wordnet"
    with pytest.raises(ValueError, match=r"1 are not, e\.g\. 'n00000000'.*classes='listed'"):
        zero_shot([{"label": 0}], (*folders, "n00000000"), class_names="imagenet-a")


def test_pictures_of_classes_that_are_not_listed_do_not_count_and_are_counted():
    names = load_class_names("objectnet")
    folders = ("alarm_clock", "apron_of_nobody", "binder_closed", "wok")
    examples = [{"label": c} for c in (0, 1, 2, 3, 1, 2)]
    options = {"class_names": "objectnet", "classes": "listed", "tokenizer": numbered(names)}
    found = zero_shot(examples, folders, **options)
    places = [names.index(n) for n in ("alarm clock", "binder (closed)", "wok")]
    answers = [places[0], 0, places[1], places[2] + 1, 0, places[1]]
    metrics = found.run(knowing([a % 8 for a in answers]))
    assert (metrics["num_examples"], metrics["num_classes"]) == (4, 113)
    assert found.about()["left_out"] == {"of a class that is not listed": 2}
    with pytest.raises(ValueError, match="none of its 2 classes is among the 113"):
        zero_shot([{"label": 0}], ("x", "y"), **options)
    with pytest.raises(ValueError, match="give that list"):
        zero_shot(examples, folders, classes="listed")


def test_labels_of_each_picture_from_a_file(tmp_path):
    def named(keys):
        return [{"key": f"a/{key}.JPEG", "label": 0} for key in keys]

    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"x": [0, "2 thing"], "y.png": [1], "z": [], "unused": [3]}))
    found = zero_shot(named("xyz"), label_file=str(file))
    metrics = found.run(knowing([2, 0, 5]))
    assert (metrics["top1"], metrics["num_examples"]) == (0.5, 2)
    assert found.about()["left_out"] == {"without a label": 1}
    assert "mean_ap" not in metrics and tuple(metrics) == found.metric_names
    assert [p.correct for p in found.predict(knowing([2, 0, 5]))] == [True, False]
    with pytest.raises(ValueError, match=r"1 of 2 pictures are not in label_file .*, e\.g\. 'w'"):
        zero_shot(named("xw"), label_file=str(file))
    for content, message in (
        ({"x": [6]}, "'x' has the class 6, which is none of the 6"),
        ({"x": 1}, "'x' has 1, not a list"),
        ({"x.png": [1], "x.jpg": [1]}, "the picture 'x' twice"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            zero_shot(named("x"), label_file=str(file))
    with pytest.raises(ValueError, match="neither imagenet_real nor a JSON file"):
        zero_shot(named("x"), label_file="real")


def test_a_class_that_is_several_of_the_names(tmp_path):
    file = tmp_path / "map.json"
    file.write_text(json.dumps({"Alarm-Clock": ["0 thing", 3], "wok": [5]}))
    own = ("alarm_clock", "apron", "wok")
    examples = [{"label": label} for label in (0, 0, 0, 1, 2, 2)]
    found = zero_shot(examples, own, class_names=NAMES, class_map=str(file))
    metrics = found.run(knowing([0, 3, 5, 0, 5, 3]))  # pictures by their place in the whole source
    assert (metrics["top1"], metrics["num_examples"], metrics["num_classes"]) == (0.6, 5, 6)
    assert tuple(metrics) == found.metric_names
    assert found.about()["left_out"] == {"of a class that class_map does not have": 1}
    assert found.about()["class_map"]["from"] == str(file)
    assert [p.correct for p in found.predict(knowing([0, 3, 5, 0, 5, 3]))] == [1, 1, 0, 1, 0]
    for changes, message in (
        ({"class_names": None}, "give that list"),
        ({"classes": "listed"}, "class_map says itself which classes count"),
        ({"class_map": "objektnet"}, "neither objectnet nor a JSON file"),
    ):
        with pytest.raises(ValueError, match=message):
            options = {"class_names": NAMES, "class_map": str(file)} | changes
            zero_shot(examples, own, **options)
    for content, message in (
        ({"wok": [6]}, "'wok' has the class 6, which is none of the 6"),
        ({"wok": []}, r"'wok' has \[\], not a list of classes"),
        ({"wok": [1], "Wok": [2]}, "the class 'Wok' twice"),
        ({"hat": [1]}, "has none of the source's 3 classes"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            load_class_map(str(file), own, NAMES)


def test_objectnets_classes_among_the_thousand():
    names = load_class_names("imagenet")
    own = ("alarm_clock", "apron_of_nobody", "full_sized_towel", "wok")
    places = load_class_map("objectnet", own, names)
    found = [[names[place] for place in each] for each in places]
    assert found == [["analog clock", "digital clock"], [], ["bath towel"], ["wok"]]
    # By the names that CLIP_benchmark has for the folders, too.
    by_name = load_class_map("objectnet", load_class_names("objectnet"), names)
    assert sum(map(len, by_name)) == len({place for each in by_name for place in each}) == 125
    assert all(by_name) and len(by_name) == 113


def test_names_of_some_of_imagenets_classes_in_a_language(tmp_path):
    file, ids = tmp_path / "babel.json", load_imagenet_ids()
    languages = {"DE": [[0, 3, 999], ["Schleie", "Tigerhai", "Klopapier"]], "XX": [[0], ["a", "b"]]}
    file.write_text(json.dumps(languages))
    names = load_class_names(f"{file}:DE")
    own = (ids[3], ids[4], ids[999], ids[0])
    found = zero_shot(
        [{"label": label} for label in (0, 1, 2, 3)],
        own,
        class_names=f"{file}:DE",
        classes="listed",
        tokenizer=numbered(names),
    )
    metrics = found.run(knowing([1, 0, 2, 1]))
    assert (metrics["num_classes"], metrics["num_examples"]) == (3, 3)
    assert metrics["top1"] == pytest.approx(2 / 3)
    assert found.about()["left_out"] == {"of a class that is not listed": 1}
    some = zero_shot([{"label": 0}], own[2:], class_names=f"{file}:DE", tokenizer=numbered(names))
    assert some.about()["class_names"]["matched"] == "wordnet"
    with pytest.raises(ValueError, match="1 numbers and 2 names"):
        load_class_names(f"{file}:XX")


def test_real_has_the_labels_of_its_authors():
    keys = [f"ILSVRC2012_val_{n:08}" for n in (1, 2, 3)]
    names = load_class_names("imagenet")
    examples = [{"key": f"val/{key}.JPEG", "label": 0} for key in keys]
    found = zero_shot(
        examples,
        None,
        class_names="imagenet",
        label_file="imagenet_real",
        tokenizer=numbered(names),
    )
    assert len(found.source) == 2  # the first has none
    labels = load_label_file("imagenet_real", names)
    assert [labels[key] for key in keys] == [(), (970, 795), (230, 231)]
