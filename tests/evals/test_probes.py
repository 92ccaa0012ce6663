import numpy as np
import pytest
import scipy.optimize
from labelled import LABELS, NAMES, Labelled, fit_here, rows_of
from stand_ins import Source, evaluation, mesh_of, picture, unit

from clipjax.evals import KNN, FewShot, LinearProbe, features, logistic, probe
from clipjax.evals.linear_probe import draw_per_class


def knn_by_hand(params, train, test, k, temperature):
    image = unit(params["image"])
    scores = image[test.rows] @ image[train.rows].T
    top = []
    for row in scores:
        near = np.argsort(-row, kind="stable")[:k]
        votes = np.zeros(len(NAMES))
        np.add.at(votes, train.all_labels[near], np.exp(row[near] / temperature))
        top.append(int(votes.argmax()))
    return np.array(top)


@pytest.mark.parametrize(("devices", "k", "temperature"), [(1, 20, 0.07), (8, 3, 1.0)])
def test_knn_is_the_weighted_vote(sets, devices, k, temperature):
    found, params = sets
    options = {"train": "train", "k": k, "temperature": temperature}
    run = evaluation(KNN, found["test"], mesh_of(devices), **options)
    metrics, labels = run.run(params), found["test"].all_labels
    hits = knn_by_hand(params, found["train"], found["test"], k, temperature) == labels
    assert metrics["top1"] == pytest.approx(hits.mean())
    recalls = [hits[labels == label].mean() for label in range(len(NAMES))]
    assert metrics["mean_per_class_recall"] == pytest.approx(np.mean(recalls))
    assert (metrics["num_examples"], metrics["num_train"]) == (71, 150)
    # A class without a vote is no answer, also not among the five best of four.
    image = unit(params["image"])
    near = np.argsort(-image[found["test"].rows] @ image[found["train"].rows].T)[:, :k]
    voted = (found["train"].all_labels[near] == labels[:, None]).any(axis=1)
    assert metrics["top5"] == pytest.approx(voted.mean()) and metrics["top5"] < 1
    # The control: a vote that is not weighted is another one.
    other = knn_by_hand(params, found["train"], found["test"], k, 1e9) == labels
    assert k < 20 or (other != hits).any()


def fit_by_hand(rows, labels, strength):
    """The objective in float64, minimised by SciPy."""
    rows, num = rows.astype(np.float64), len(NAMES)

    def loss(flat):
        matrix, bias = flat[:-num].reshape(-1, num), flat[-num:]
        scores = rows @ matrix + bias
        scores -= scores.max(axis=1, keepdims=True)
        log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        error = (np.exp(log_p) - np.eye(num)[labels]) / len(labels)
        gradient = rows.T @ error + strength * matrix / len(labels)
        value = -log_p[np.arange(len(labels)), labels].mean()
        value += strength * (matrix**2).sum() / 2 / len(labels)
        return value, np.concatenate([gradient.ravel(), error.sum(axis=0)])

    start = np.zeros((rows.shape[1] + 1) * num)
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    return found.fun, found.x[:-num].reshape(-1, num), found.x[-num:]


@pytest.mark.parametrize(
    "strength",
    [pytest.param(1e-3, marks=pytest.mark.slow), 1.0, pytest.param(1e4, marks=pytest.mark.slow)],
)
def test_the_fit_is_that_of_float64(sets, strength):
    rows, labels = rows_of(*sets)
    expected, matrix, bias = fit_by_hand(rows, labels, strength)
    found = fit_here(rows, labels, strength, 8)
    assert float(found.loss) == pytest.approx(expected, abs=1e-4)
    answers = (rows @ found.weights.matrix + found.weights.bias).argmax(axis=1)
    assert np.mean(answers == (rows @ matrix + bias).argmax(axis=1)) > 0.99
    # The control: another strength has another loss.
    assert abs(fit_by_hand(rows, labels, 3 * strength)[0] - expected) > 1e-4
    assert int(found.iterations) < logistic.MAX_ITERATIONS


def test_the_strength_is_searched_as_published():
    asked = []

    def accuracy(strength):
        asked.append(strength)
        return -abs(np.log10(strength) - 1.6)  # best at 10^1.6, which lies between two steps

    assert logistic.sweep(accuracy) == pytest.approx(10**1.625)
    assert asked[:7] == pytest.approx([1e6, 1e4, 1e2, 1, 1e-2, 1e-4, 1e-6])
    assert len(asked) == len(set(asked)) <= 15
    assert logistic.sweep(lambda strength: 0.5) == 1e6  # of equals the simplest


@pytest.mark.slow
def test_a_linear_probe_learns_what_was_held_out_too(sets):
    found, params = sets
    test, mesh = found["test"], mesh_of(2)
    given = evaluation(LinearProbe, test, mesh, train="train", strength=0.1).run(params)
    _, matrix, bias = fit_by_hand(*rows_of(found, params), 0.1)
    scores = unit(params["image"][test.rows]) @ matrix + bias
    assert given["top1"] == pytest.approx((scores.argmax(axis=1) == test.all_labels).mean())
    assert given["top1"] > 0.5 and given["strength"] == 0.1
    probe = evaluation(LinearProbe, test, mesh, train="train", validation="held")
    chosen, tables = probe.run(params), probe.tables()
    tried = {each["strength"]: each["accuracy"] for each in tables["sweep"]}
    assert tried[chosen["strength"]] == max(tried.values()) and len(tried) >= 7
    hits = sum(each["hits"] for each in tables["per_class"])
    assert hits / chosen["num_examples"] == pytest.approx(chosen["top1"])
    assert chosen["num_train"] == 150 + 35
    steps = 8 * (np.log10(chosen["strength"]) + 6)
    assert steps == pytest.approx(round(steps))
    held_out = evaluation(LinearProbe, test, mesh, train="train").run(params)
    assert held_out["num_train"] == 150
    with pytest.raises(ValueError, match="strength and validation are given: leave one out"):
        evaluation(LinearProbe, test, mesh, train="train", validation="held", strength=1.0)


@pytest.mark.slow
def test_few_shots_are_drawn_by_the_seed(sets):
    found, params = sets
    options = {"train": "train", "shots": (1, 4), "strength": 0.1}
    runs = [
        evaluation(FewShot, found["test"], mesh_of(2), **options, **changes)
        for changes in ({}, {}, {"seed": 1}, {"draws": 1})
    ]
    first, same, other, once = (run.run(params) for run in runs)
    assert first == same != other
    assert first["top1_1_shot"] < first["top1_4_shot"]
    assert first["top1_1_shot_deviation"] > 0 and "top1_1_shot_deviation" not in once
    assert set(runs[0].metric_names) == {*first} and set(runs[3].metric_names) == {*once}
    rng = np.random.default_rng(0)
    rows = draw_per_class(LABELS, lambda of_class: 4, rng)
    assert np.bincount(LABELS[rows]).tolist() == [4] * 4 and len({*rows}) == 16
    with pytest.raises(ValueError, match=r"has \d+ pictures to learn from, and 99 shots need 99: "):
        evaluation(FewShot, found["test"], mesh_of(1), **options | {"shots": (99,)}).run(params)


def test_classes_have_to_fit(sets):
    found, params = sets
    few = Labelled([0, 1], [0, 1])
    found["train"] = few
    with pytest.raises(ValueError, match=r"2 of the classes .* to learn from: 'blue', 'grey'"):
        evaluation(KNN, found["test"], mesh_of(1), train="train").run(params)
    found["train"] = Labelled([0, 1], [0, 1], ("red", "green"))
    with pytest.raises(ValueError, match=r"2 of the 4 classes of the set to .* e.g. 'blue'; its"):
        evaluation(KNN, found["test"], mesh_of(1), train="train")
    found["train"] = Source([{"image": picture(0)}])
    with pytest.raises(ValueError, match="train = 'train' has no labels; a probe needs them"):
        evaluation(KNN, found["test"], mesh_of(1), train="train")
    # Equal names in another order are the same classes.
    found["train"] = Labelled(np.arange(150), 3 - LABELS[:150], NAMES[::-1])
    turned = evaluation(KNN, found["test"], mesh_of(1), train="train").run(params)
    found["train"] = Labelled(np.arange(150), LABELS[:150])
    plain = evaluation(KNN, found["test"], mesh_of(1), train="train").run(params)
    assert turned == pytest.approx(plain)


def test_features_are_kept_by_weights_pixels_and_data(sets, cache, monkeypatch, caplog):
    found, params = sets
    calls = []
    plain = features.embed_images
    monkeypatch.setattr(probe, "embed_images", lambda *a, **k: calls.append(a[2]) or plain(*a, **k))

    def run(weights="a", **options):
        calls.clear()
        run = evaluation(
            KNN, found["test"], mesh_of(2), train="train", weights_sha256=weights, **options
        )
        return run.run(params), len(calls)

    first, made = run()
    assert made == 2
    assert run() == (first, 0)
    assert run(k=3)[1] == 0
    assert run("b")[1] == run(None)[1] == run(cache=False)[1] == 2
    found["test"].examples[0]["image"] = b"no picture"
    found["test"].rows = found["test"].rows + 1000
    metrics, made = run(max_bad=1)
    assert (made, metrics["num_examples"]) == (1, 70)
    with pytest.raises(ValueError, match="picture 0"):  # named anew, although features are kept
        run()
    for file in (cache / "features").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert run(max_bad=1) == (metrics, 2) and "is damaged and is made anew" in caplog.text


@pytest.fixture
def folders(tmp_path, save_picture):
    """SPECs of 16 pictures to learn from and of 8 others, of two classes."""
    for number in range(24):
        folder = tmp_path / ("train" if number % 3 else "test") / f"class{number % 2}"
        save_picture(folder / f"{number}.png", number)
    return [f"folder:{tmp_path}/{split}" for split in ("train", "test")]


@pytest.mark.slow
def test_linear_probes_by_the_command(evaluate, folders):
    train, test = folders
    found, entry = evaluate("linear_probe", test, f"--eval_field=linear_probe.train={train}")
    assert 1e-6 <= found["strength"] <= 1e6 and entry["validation"] == {"share": 0.2, "seed": 0}
    fields = ("train=" + train, "shots=[2]", "strength=1")
    found, _ = evaluate("few_shot", test, *(f"--eval_field=few_shot.{f}" for f in fields))
    assert {"top1_2_shot", "top1_2_shot_deviation"} < {*found}


def test_knn_by_the_command(evaluate, folders, tmp_path):
    train, test = folders
    found, entry = evaluate("knn", test, f"--eval_field=knn.train={train}", "--eval_field=knn.k=3")
    assert (found["num_examples"], found["num_train"], found["num_classes"]) == (8, 16, 2)
    assert (entry["k"], entry["temperature"]) == (3, 0.07)
    for flags, message in (
        ((), "lacks train"),
        ((f"--eval_field=knn.train=folder:{tmp_path}/none",), "none"),
        ((f"--eval_field=knn.train={train}", "--eval_field=knn.k=0"), "k = 0: expected a whole"),
    ):
        done = evaluate("knn", test, *flags)
        assert done.code == 1 and message in done.err and "Traceback" not in done.err, done.err
