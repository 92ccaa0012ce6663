"""scikit-learn's metrics and classifiers beside ours, on the features of the stand-in model."""

import numpy as np
import pytest
import test_winogavil
import test_zero_shot_tables
from labelled import NAMES, fit_here, rows_of
from stand_ins import evaluation, make_params, mesh_of, picture, unit

from clipjax.evals import KNN, FewShot, LinearProbe, logistic
from clipjax.evals.linear_probe import draw_per_class
from clipjax.metrics import average_precision

pytestmark = pytest.mark.interop


def fitted(rows, labels, strength):
    """Its classifier, in float64 down to where nothing changes."""
    from sklearn.linear_model import LogisticRegression

    exact = LogisticRegression(C=1 / strength, max_iter=100_000, tol=1e-10)
    return exact.fit(rows.astype(np.float64), labels)


def mean_loss(matrix, bias, rows, labels, strength):
    """The objective in float64."""
    scores = rows.astype(np.float64) @ np.asarray(matrix, np.float64) + np.asarray(bias, np.float64)
    top = scores.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(scores - top).sum(axis=1)) + top[:, 0]
    penalty = strength / 2 * np.sum(np.asarray(matrix, np.float64) ** 2)
    return (np.sum(log_sum - scores[np.arange(len(labels)), labels]) + penalty) / len(labels)


@pytest.mark.parametrize("strength", [1e-2, 1.0, 100.0])
def test_the_fit_is_its(sets, strength):
    """Ours ends where float32 no longer tells losses apart, 1e-6 above the least."""
    rows, labels = rows_of(*sets)
    theirs, ours = fitted(rows, labels, strength), fit_here(rows, labels, strength, 1)
    wanted = mean_loss(theirs.coef_.T, theirs.intercept_, rows, labels, strength)
    found = mean_loss(ours.weights.matrix, ours.weights.bias, rows, labels, strength)
    assert wanted - 1e-9 <= found <= wanted + 2e-6
    asked, _ = rows_of(*sets, "test")
    answers = (asked @ ours.weights.matrix + ours.weights.bias).argmax(axis=1)
    assert (answers == theirs.predict(asked)).all()
    # The control: three times the penalty.
    other = fitted(rows, labels, 3 * strength)
    assert mean_loss(other.coef_.T, other.intercept_, rows, labels, strength) > wanted + 2e-6


def accuracies(classifier, rows, labels):
    from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

    answers = classifier.predict(rows)
    shares = classifier.predict_proba(rows)
    return {
        "top1": np.mean(answers == labels),
        "top2": top_k_accuracy_score(labels, shares, k=2),
        "mean_per_class_recall": balanced_accuracy_score(labels, answers),
    }


def test_the_linear_probe_is_its(sets):
    """The strength is searched by its accuracies, too."""
    found, params = sets
    train, held, asked = (rows_of(found, params, name) for name in ("train", "held", "test"))
    strength = logistic.sweep(lambda s: np.mean(fitted(*train, s).predict(held[0]) == held[1]))
    both = [np.concatenate(parts) for parts in zip(train, held, strict=True)]
    theirs = accuracies(fitted(*both, strength), *asked)
    probe = evaluation(LinearProbe, found["test"], mesh_of(2), train="train", validation="held")
    ours = probe.run(params)
    assert ours["strength"] == pytest.approx(strength)
    for name in ("top1", "mean_per_class_recall"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6)
    assert 0.5 < ours["top1"] < 1


def test_few_shots_are_its(sets):
    found, params = sets
    (train, labels), asked = rows_of(found, params), rows_of(found, params, "test")
    ours = evaluation(FewShot, found["test"], mesh_of(2), train="train", shots=(3,), strength=0.1)
    metrics, theirs = ours.run(params), []
    for draw in range(3):
        random = np.random.default_rng([0, 3, draw])
        rows = draw_per_class(labels, lambda of_class: 3, random)
        theirs.append(accuracies(fitted(train[rows], labels[rows], 0.1), *asked)["top1"])
    assert metrics["top1_3_shot"] == pytest.approx(np.mean(theirs), abs=1e-6)
    assert metrics["top1_3_shot_deviation"] == pytest.approx(np.std(theirs, ddof=1), abs=1e-6)
    assert len({*theirs}) > 1


@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (5, 1.0)])
def test_nearest_neighbours_are_its(sets, k, temperature):
    from sklearn.neighbors import KNeighborsClassifier

    found, params = sets
    train, asked = rows_of(found, params), rows_of(found, params, "test")

    def classifier(weights):
        return KNeighborsClassifier(k, metric="cosine", weights=weights).fit(*train)

    voting = classifier(lambda distances: np.exp((1 - distances) / temperature))
    theirs = accuracies(voting, *asked)
    ours = evaluation(
        KNN, found["test"], mesh_of(2), train="train", k=k, temperature=temperature
    ).run(params)
    for name in ("top1", "mean_per_class_recall"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6)
    shares = voting.predict_proba(asked[0])
    voted = shares[np.arange(len(asked[1])), asked[1]] > 0  # among five of four: if it has a vote
    assert ours["top5"] == pytest.approx(voted.mean(), abs=1e-6) and len(NAMES) < 5
    # The control: votes that all weigh the same.
    assert k < 20 or accuracies(classifier("uniform"), *asked) != theirs


def test_zero_shot_tables_are_its():
    from sklearn import metrics as theirs
    from sklearn.calibration import calibration_curve

    params, random = make_params(3), np.random.default_rng(0)
    labels = random.choice(5, 200, p=[0.4, 0.3, 0.2, 0.06, 0.04])  # nothing is of class 5
    run = test_zero_shot_tables.zero_shot(
        [{"label": int(c)} for c in labels], logit_scale_fn=lambda p: np.float32(4)
    )
    found, tables = run.run(params), run.tables()
    cosines = unit(params["image"][:200]) @ unit(params["text"][:6]).T
    answers = cosines.argmax(axis=1)
    every = range(6)
    wanted = {
        "top1": theirs.accuracy_score(labels, answers),
        "top5": theirs.top_k_accuracy_score(labels, cosines, k=5, labels=every),
        "mean_per_class_recall": theirs.recall_score(
            labels, answers, average="macro", labels=range(5)
        ),
        # WILDS gives scikit-learn the classes that occur, too.
        "macro_f1": theirs.f1_score(labels, answers, average="macro", labels=range(5)),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert found["top1"] < found["top5"] < 1
    matrix = theirs.confusion_matrix(labels, answers, labels=every)
    confusion = np.zeros((6, 6), int)
    for row, columns in tables["confusion"].items():
        for column, count in columns.items():
            confusion[int(row), int(column)] = count
    assert (confusion == matrix).all()
    precision = theirs.precision_score(labels, answers, average=None, labels=every, zero_division=0)
    ours = [one["precision"] or 0 for one in tables["per_class"]]
    assert ours == pytest.approx(precision.tolist(), abs=1e-6)
    shares = np.exp(4 * cosines) / np.exp(4 * cosines).sum(axis=1, keepdims=True)
    accuracy, confidence = calibration_curve(answers == labels, shares.max(axis=1), n_bins=15)
    curve = tables["reliability"]
    assert [one["accuracy"] for one in curve] == pytest.approx(accuracy.tolist(), abs=1e-6)
    assert [one["confidence"] for one in curve] == pytest.approx(confidence.tolist(), abs=1e-6)


def test_average_precision_is_its():
    from sklearn.metrics import average_precision_score

    random = np.random.default_rng(1)
    targets = random.random((300, 4)) < 0.2
    for decimals in (8, 1, 0):  # many equal scores, too
        scores = np.round(random.normal(size=(300, 4)), decimals)
        theirs = average_precision_score(targets, scores, average=None)
        np.testing.assert_allclose(average_precision(scores, targets), theirs, rtol=1e-12)
    assert not np.allclose(average_precision(-scores, targets), theirs)


def test_pictures_of_several_classes_are_its():
    from sklearn.metrics import average_precision_score

    params, random = make_params(5), np.random.default_rng(2)
    targets = random.random((60, 6)) < 0.4
    examples = [
        {"image": picture(i), "labels": tuple(np.flatnonzero(row).tolist())}
        for i, row in enumerate(targets)
    ]
    run = test_zero_shot_tables.zero_shot(examples, own={"several": True})
    scores = unit(params["image"][:60]) @ unit(params["text"][:6]).T
    wanted = average_precision_score(targets, scores, average="macro")
    assert run.run(params)["mean_ap"] == pytest.approx(wanted, abs=1e-6)


def test_the_index_of_associations_is_its():
    """DataComp's own code scores WinoGAViL by this function."""
    from sklearn.metrics import jaccard_score

    params = make_params()
    source, made = test_winogavil.make(2)
    scores = []
    for number, one in enumerate(source.associations):
        right = np.array(one.right)
        cosines = unit(params["image"])[list(one.images)] @ unit(params["text"])[number]
        chosen = np.isin(np.arange(len(right)), np.argsort(cosines)[-right.sum() :])
        scores.append(jaccard_score(right, chosen))
    assert made.run(params)["jaccard"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert len({*scores}) > 2
