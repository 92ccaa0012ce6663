import errno
import os

import jax
import numpy as np
import pytest
from stand_ins import (
    Source,
    encode_text,
    evaluation,
    make_params,
    mesh_of,
    picture,
    png,
    tokenize,
    unit,
)

from clipjax.encoding import reading
from clipjax.encoding.batches import RowLayout, put_on_mesh
from clipjax.encoding.zero_shot_head import average_prompts
from clipjax.evals import ZeroShot

NAMES = tuple(f"{c} thing" for c in range(11))
TEMPLATES = ("{}", "1{} shiny")  # "4 thing" is id 4 in one and id 14 in the other


def make_eval(source, mesh, **changes):
    return evaluation(ZeroShot, source, mesh, **{"templates": TEMPLATES} | changes)


def make_source(num, seed=0):
    rng = np.random.default_rng(seed)
    rows, labels = rng.integers(0, 256, num), rng.integers(0, len(NAMES) - 1, num)
    examples = [
        {"image": png(picture(row)), "text": NAMES[label], "label": int(label)}
        for row, label in zip(rows, labels, strict=True)
    ]
    return Source(examples, NAMES), rows, labels


def brute_force_classifier(params):
    ids = [[tokenize([t.replace("{}", n)])[0, 0] for t in TEMPLATES] for n in NAMES]
    return unit(unit(params["text"][np.array(ids)]).mean(axis=1))


def brute_force(params, rows, labels):
    scores = unit(params["image"][rows]) @ brute_force_classifier(params).T
    ranks = (scores > scores[np.arange(len(labels)), labels][:, None]).sum(axis=1)
    recalls = [np.mean(ranks[labels == c] == 0) for c in np.unique(labels)]
    best = scores.argmax(axis=1)
    both = [(labels == c, best == c) for c in np.unique(labels)]
    f1 = [2 * np.sum(a & b) / (np.sum(a) + np.sum(b)) for a, b in both]
    return {
        "top1": np.mean(ranks < 1),
        "top5": np.mean(ranks < 5),
        "mean_per_class_recall": np.mean(recalls),
        "macro_f1": np.mean(f1),
        "num_examples": len(labels),
        "num_classes": len(NAMES),
    }


def test_prompts_are_averaged_as_published():
    params, mesh = make_params(), mesh_of(2)
    options = {"encode_text_fn": encode_text, "tokenizer": tokenize, "mesh": mesh}
    found = average_prompts(put_on_mesh(params, mesh), NAMES, TEMPLATES, batch_size=8, **options)
    np.testing.assert_allclose(found, brute_force_classifier(params), rtol=1e-4, atol=1e-6)
    # The control: without the first normalisation the long embeddings would win.
    ids = [[tokenize([t.replace("{}", n)])[0, 0] for t in TEMPLATES] for n in NAMES]
    other = unit(params["text"][np.array(ids)].mean(axis=1))
    assert np.abs(found - other).max() > 0.01


@pytest.mark.parametrize(
    ("num", "num_devices", "sizes"),
    [(23, 1, {}), (23, 2, {}), (23, 8, {"fsdp": 2, "tensor": 2}), (5, 8, {}), (64, 8, {})],
)
def test_equals_brute_force_for_any_length_and_mesh(num, num_devices, sizes):
    source, rows, labels = make_source(num)
    # As inside the training loop, where an implicit transfer is an error.
    with jax.transfer_guard("disallow"):
        metrics = make_eval(source, mesh_of(num_devices, **sizes)).run(make_params())
    assert metrics == pytest.approx(brute_force(make_params(), rows, labels), rel=1e-6)


def test_padding_that_is_not_masked_is_seen(monkeypatch):
    source, _, _ = make_source(23)
    indices = RowLayout.indices
    monkeypatch.setattr(
        RowLayout, "indices", lambda layout, batch: indices(layout, batch) % layout.num_rows
    )
    with pytest.raises(AssertionError, match="counted twice"):
        make_eval(source, mesh_of(2)).run(make_params())


def test_a_model_that_knows_exactly_three_of_four():
    params = make_params()
    params["text"] = params["image"] = np.eye(256, 8, dtype=np.float32)[np.arange(256) % 8]
    shown = [0, 1, 2, 3] * 3
    labels = [0, 1, 2, 4] * 3
    examples = [
        {"image": picture(row), "label": label} for row, label in zip(shown, labels, strict=True)
    ]
    evaluation = make_eval(Source(examples, NAMES[:6]), mesh_of(8), templates="plain")
    metrics, predictions = evaluation.run(params), evaluation.predict(params, 4)
    assert metrics["top1"] == 0.75
    assert metrics["mean_per_class_recall"] == 0.75
    assert metrics["num_examples"] == 12
    assert [p.key for p in predictions] == ["picture 0", "picture 3", "picture 7", "picture 11"]
    assert [p.correct for p in predictions] == [True, False, False, False]
    assert predictions[1].label == NAMES[4]
    assert predictions[1].names[0] == NAMES[3]
    assert predictions[0].scores[0] == pytest.approx(1.0)
    np.testing.assert_array_equal(predictions[1].image, picture(3))


def test_scores_are_probabilities_where_the_scale_is_known():
    source, _, _ = make_source(9)
    evaluation = make_eval(
        source, mesh_of(2), logit_scale_fn=lambda params: 10.0, class_names=(*NAMES[:10], "9")
    )
    params = make_params()
    predictions = evaluation.predict(params, 9)
    best = [p.scores for p in predictions]
    assert all(1 > a >= b >= c > 0 for a, b, c in best)


def test_two_runs_compile_once():
    source, _, _ = make_source(9)
    evaluation = make_eval(source, mesh_of(2))
    first = evaluation.run(make_params(1))
    compiled = count_compiles(lambda: evaluation.run(make_params(2)))
    assert compiled == 0
    assert evaluation.run(make_params(1)) == first


def count_compiles(run):
    seen = []

    def listen(name, *_, **__):
        if "backend_compile" in name:
            seen.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run()
        return len(seen)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_images_that_do_not_decode_are_named_and_never_left_out_in_silence():
    source, rows, labels = make_source(12)
    source.examples[3]["image"] = b"not an image"
    source.examples[10]["image"] = b""
    with pytest.raises(
        ValueError, match=r"zero_shot: 2 image\(s\).*0 allowed.*picture 3.*picture 10"
    ):
        make_eval(source, mesh_of(2), batch_size=16).run(make_params())
    metrics = make_eval(source, mesh_of(2), max_bad=2).run(make_params())
    kept = np.delete(np.arange(12), [3, 10])
    assert metrics == pytest.approx(brute_force(make_params(), rows[kept], labels[kept]))
    assert len(make_eval(source, mesh_of(2)).predict(make_params(), 12)) == 10


def test_storage_that_fails_is_no_bad_image(monkeypatch):
    """It would be left out, and the number be another than with a storage that answers."""
    source, _, _ = make_source(12)
    whole = reading.read_example

    def failing(data, index, fields):
        if index == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "picture 3")
        return whole(data, index, fields)

    monkeypatch.setattr(reading, "read_example", failing)
    with pytest.raises(ValueError, match=r"Input/output error.*picture 3"):
        make_eval(source, mesh_of(2), max_bad=5).run(make_params())


def test_bad_input_is_named():
    source, _, _ = make_source(3)
    with pytest.raises(ValueError, match="no class names"):
        make_eval(Source(source.examples), mesh_of(1))
    with pytest.raises(ValueError, match="source is empty"):
        make_eval(Source([], NAMES), mesh_of(1))
    source.examples[1]["label"] = 11
    with pytest.raises(ValueError, match=r"picture 1: the class is 11.*0 to 10.*first_label=1"):
        make_eval(source, mesh_of(1), max_bad=3).run(make_params())
    with pytest.raises(ValueError, match=r"picture 1: the class is 11"):
        make_eval(source, mesh_of(1)).predict(make_params(), 3)
    source.examples[1]["label"] = 12
    with pytest.raises(ValueError, match=r"picture 1 has the label 12.*0 to 10"):
        make_eval(source, mesh_of(1), max_bad=3).run(make_params())


def test_a_broken_model_is_an_error_and_not_a_score():
    source, _, _ = make_source(3)
    params = make_params()
    params["image"][:] = np.nan
    with pytest.raises(FloatingPointError, match="3 of 3 images"):
        make_eval(source, mesh_of(1)).run(params)


def with_labels(names, labels, rows=None):
    rows = range(len(labels)) if rows is None else rows
    examples = [{"image": picture(r), "label": c} for r, c in zip(rows, labels, strict=True)]
    return Source(examples, names)


def test_given_names_are_matched_by_name_and_absent_classes_compete_or_not():
    params = make_params()
    params["image"][:3] = params["text"][[10, 13, 12]]  # picture i is like a text of given name
    given = tuple(f"{n} thing" for n in (13, 11, 10, 12, 14))
    # The source's own order is another, and it has three of the five.
    source = with_labels(("10_thing", "12 thing", "13 thing"), [0, 2, 1])
    options = {"templates": "plain", "class_names": given}
    found = make_eval(source, mesh_of(1), **options)
    metrics = found.run(params)
    assert (metrics["top1"], metrics["num_classes"]) == (1.0, 5)
    assert [p.label for p in found.predict(params)] == ["10 thing", "13 thing", "12 thing"]
    # A class that is absent is nearer to the first picture: it wins unless it may not compete.
    params["text"][11] = params["image"][0] * 2
    params["text"][10] = params["image"][0] + 0.1
    assert make_eval(source, mesh_of(1), **options).run(params)["top1"] == pytest.approx(2 / 3)
    present = make_eval(source, mesh_of(1), classes="present", **options)
    metrics = present.run(params)
    assert (metrics["top1"], metrics["num_classes"]) == (1.0, 3)
    assert present.class_names == ("13 thing", "10 thing", "12 thing")
    assert present.about()["class_names"]["classes"] == "present"


def test_names_that_do_not_fit_the_source_are_an_error_before_the_work(tmp_path):
    source = with_labels(tuple(f"folder {i}" for i in range(10)), [0])
    with pytest.raises(ValueError, match="10 classes, class_names has 1000"):
        make_eval(source, mesh_of(1), class_names="imagenet", templates="plain")
    file = tmp_path / "names.txt"
    file.write_text("\n".join(f"{i} thing" for i in range(10)))  # equally many: by order
    found = make_eval(source, mesh_of(1), class_names=str(file))
    assert found.class_names == tuple(f"{i} thing" for i in range(10))
    with pytest.raises(ValueError, match="allowed are all, present"):
        make_eval(source, mesh_of(1), classes="some")


def test_scores_of_a_model_with_a_bias_are_questions_of_their_own():
    params, source = make_params(), with_labels(NAMES, [0])
    options = {"templates": "plain", "logit_scale_fn": lambda params: jax.numpy.float32(3)}
    (softmax,) = make_eval(source, mesh_of(1), **options).predict(params)
    (sigmoid,) = make_eval(
        source, mesh_of(1), logit_bias_fn=lambda params: jax.numpy.float32(-1), **options
    ).predict(params)
    cosines = unit(params["image"][0]) @ unit(params["text"][: len(NAMES)]).T
    best = np.sort(cosines)[::-1][:3]
    np.testing.assert_allclose(sigmoid.scores, 1 / (1 + np.exp(1 - 3 * best)), rtol=1e-5)
    wanted = np.exp(3 * best) / np.exp(3 * cosines).sum()
    np.testing.assert_allclose(softmax.scores, wanted, rtol=1e-5)
    assert softmax.names == sigmoid.names


def test_class_names_without_words_are_told_with_their_share(caplog):
    source, _, _ = make_source(5)
    given = (*NAMES[:9], "007", "n01440764")
    with caplog.at_level("WARNING"):
        make_eval(source, mesh_of(1), class_names=NAMES)
        assert not caplog.records
        make_eval(source, mesh_of(1), class_names=given)
    (record,) = caplog.records
    assert "2 of 11 class names of zero_shot have no words" in record.message
    assert "(18 %)" in record.message and "?class_names=FILE" in record.message
