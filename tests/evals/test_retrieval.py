import jax
import numpy as np
import pytest
from stand_ins import Source, evaluation, make_params, mesh_of, picture, unit

from clipjax.encoding import reading
from clipjax.evals import EVALS, Retrieval
from clipjax.evals.examples import hits_and_misses


def make_eval(source, mesh, **changes):
    return evaluation(Retrieval, source, mesh, **changes)


def make_source(num, seed=0):
    """Images with one to five captions; a caption alone is a string."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(256)[:num]
    captions, examples = [], []
    for image, row in enumerate(rows):
        ids = rng.integers(0, 256, rng.integers(1, 6))
        captions += [(image, i) for i in ids]
        texts = tuple(f"caption {i}" for i in ids)
        examples.append({"image": picture(row), "text": texts if len(ids) > 1 else texts[0]})
    return Source(examples), rows, np.array(captions)


def related_params():
    """Captions are noisy copies of images, so that recall is neither 0 nor 1."""
    params = make_params(3)
    params["text"] = unit(params["image"]) + 0.3 * params["text"]
    return params


def brute_force(params, rows, captions, ks=(1, 5, 10)):
    scores = unit(params["image"][rows]) @ unit(params["text"][captions[:, 1]]).T
    own = captions[:, 0] == np.arange(len(rows))[:, None]

    def first_own(
        axis,
    ):  # place of the first right answer; others that stand after it do not matter
        order = np.argsort(-scores, axis=axis, kind="stable")
        return 1 + np.take_along_axis(own, order, axis=axis).argmax(axis=axis)

    metrics = {
        "image_retrieval_median_rank": np.median(first_own(0)),
        "text_retrieval_median_rank": np.median(first_own(1)),
    }
    metrics |= {"num_images": len(rows), "num_texts": len(captions), "num_rows": len(rows)}
    owner = captions[:, 0]
    for k in ks:
        images = np.argsort(-scores, axis=0, kind="stable")[:k]
        metrics[f"image_retrieval_recall@{k}"] = np.mean((images == owner).any(axis=0))
        texts = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        own = owner[texts] == np.arange(len(rows))[:, None]
        metrics[f"text_retrieval_recall@{k}"] = np.mean(own.any(axis=1))
    return metrics


@pytest.mark.parametrize(
    ("num", "num_devices", "sizes"),
    [(23, 1, {}), (23, 2, {}), (23, 8, {"fsdp": 2, "tensor": 2}), (3, 8, {}), (40, 8, {})],
)
def test_equals_brute_force_for_any_length_and_mesh(num, num_devices, sizes):
    source, rows, captions = make_source(num)
    with jax.transfer_guard("disallow"):
        metrics = make_eval(source, mesh_of(num_devices, **sizes)).run(related_params())
    assert metrics == pytest.approx(brute_force(related_params(), rows, captions), rel=1e-6)


def test_folds_are_searched_alone_and_averaged():
    source, rows, captions = make_source(24)
    params = related_params()
    metrics = make_eval(source, mesh_of(2), fold=8).run(params)
    assert {name: value for name, value in metrics.items() if "folds" not in name} == pytest.approx(
        brute_force(params, rows, captions), rel=1e-6
    )
    alone = []
    for start in (0, 8, 16):
        own = captions[(captions[:, 0] >= start) & (captions[:, 0] < start + 8)]
        alone.append(brute_force(params, rows[start : start + 8], own - [start, 0]))
    for way in ("image_retrieval", "text_retrieval"):
        for k in (1, 5, 10):
            wanted = np.mean([fold[f"{way}_recall@{k}"] for fold in alone])
            found = metrics[f"{way}_recall@{k}_folds_of_8"]
            assert found == pytest.approx(wanted, rel=1e-6)
    assert metrics["image_retrieval_recall@1_folds_of_8"] > metrics["image_retrieval_recall@1"]
    with pytest.raises(ValueError, match="24 pictures are no multiple of fold=7"):
        make_eval(source, mesh_of(2), fold=7).run(params)


def test_captions_that_belong_together_give_full_recall_and_swapped_ones_do_not():
    params = make_params()
    params["text"] = params["image"]
    examples = [{"image": picture(i), "text": f"{i}"} for i in range(13)]
    metrics = make_eval(Source(examples), mesh_of(2)).run(params)
    assert metrics["image_retrieval_recall@1"] == metrics["text_retrieval_recall@1"] == 1
    swapped = [{"image": picture(i), "text": f"{(i + 1) % 13}"} for i in range(13)]
    metrics = make_eval(Source(swapped), mesh_of(2)).run(params)
    assert metrics["image_retrieval_recall@1"] == metrics["text_retrieval_recall@1"] == 0
    assert metrics["image_retrieval_median_rank"] > 1


def test_an_image_that_does_not_decode_leaves_with_its_captions_or_is_an_error():
    source, rows, captions = make_source(9)
    source.examples[4]["image"] = b"not an image"
    with pytest.raises(ValueError, match=r"retrieval: 1 image\(s\).*picture 4"):
        make_eval(source, mesh_of(2)).run(related_params())
    metrics = make_eval(source, mesh_of(2), max_bad=1).run(related_params())
    captions = captions[captions[:, 0] != 4]
    captions[:, 0] -= captions[:, 0] > 4
    expected = brute_force(related_params(), np.delete(rows, 4), captions) | {"num_rows": 9}
    assert metrics == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("text", ["", (), ("fine 1", " "), None])
def test_an_image_needs_captions(text):
    source, _, _ = make_source(3)
    source.examples[1]["text"] = text
    with pytest.raises(ValueError, match="retrieval: picture 1 has the captions"):
        make_eval(source, mesh_of(1)).run(related_params())


def test_languages_are_not_captions():
    source, _, _ = make_source(3)
    source.examples[1]["text"] = {"de": "Katze", "en": "cat"}
    with pytest.raises(ValueError, match=r"captions in de, en; .*\?language=NAME"):
        make_eval(source, mesh_of(1)).run(related_params())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="source is empty"):
        make_eval(Source([]), mesh_of(1))
    with pytest.raises(ValueError, match="ks"):
        make_eval(make_source(3)[0], mesh_of(1), ks=(0,))
    params = related_params()
    params["text"][:] = np.inf
    with pytest.raises(FloatingPointError, match="not finite"):
        make_eval(make_source(3)[0], mesh_of(1)).run(params)


class Rows(Source):
    """Rows of which each shows picture number `examples[row]["of"]`."""

    def pictures(self):
        return (example["of"] for example in self.examples)


def rows_of(source, captions, per_row):
    """The same pictures and captions, a row for every so many captions, in another order."""
    examples = []
    for image, example in enumerate(source.examples):
        texts = [f"caption {i}" for owner, i in captions if owner == image]
        examples += [
            {"image": example["image"], "of": f"p{image}", "text": tuple(texts[i : i + per_row])}
            for i in range(0, len(texts), per_row)
        ]
    order = np.random.default_rng(1).permutation(len(examples))
    return Rows([examples[i] for i in order])


@pytest.mark.parametrize("per_row", [1, 2])
def test_rows_of_one_picture_are_one_picture_with_several_captions(per_row, caplog):
    source, rows, captions = make_source(23)
    flat = rows_of(source, captions, per_row)
    caplog.set_level("INFO")
    metrics = make_eval(flat, mesh_of(2)).run(related_params())
    expected = brute_force(related_params(), rows, captions) | {"num_rows": len(flat)}
    assert len(flat) > 23 and metrics == pytest.approx(expected, rel=1e-6)
    assert f"{len(flat)} rows show 23 pictures" in caplog.text


def test_each_picture_is_read_and_encoded_once(monkeypatch):
    source, _, captions = make_source(23)
    flat, read = rows_of(source, captions, 1), []
    plain = reading.ImageReader.read_one
    monkeypatch.setattr(
        reading.ImageReader, "read_one", lambda self, i: (read.append(i), plain(self, i))[1]
    )
    make_eval(flat, mesh_of(1)).run(related_params())
    assert sorted(read) == list(range(23))


def test_a_row_that_cannot_be_used_takes_its_picture_along():
    source, _, captions = make_source(9)
    flat = rows_of(source, captions, 1)
    bad = next(row for row, example in enumerate(flat.examples) if example["of"] == "p4")
    flat.examples[bad]["image"] = b"no image"
    with pytest.raises(ValueError, match=rf"retrieval: 1 image\(s\).*picture {bad}"):
        make_eval(flat, mesh_of(1)).run(related_params())


def test_lines_are_captions_unless_the_source_was_told(caplog):
    examples = [{"image": picture(i), "text": f"{i}\n{i}\n\n {i} "} for i in range(7)]
    examples.append({"image": picture(7), "text": "7"})
    params = make_params()
    params["text"] = params["image"]
    caplog.set_level("INFO")
    evaluation = make_eval(Source(examples), mesh_of(2))
    metrics = evaluation.run(params)
    assert (metrics["num_images"], metrics["num_texts"]) == (8, 22)
    assert metrics["image_retrieval_recall@1"] == 1
    told = "7 texts hold several lines, and each line is a caption, 22 in all"
    evaluation.run(params)
    assert caplog.text.count(told) == 1  # in a run that evaluates again and again
    caplog.clear()
    source = Source(examples)
    source.captions = "whole"
    assert make_eval(source, mesh_of(2)).run(params)["num_texts"] == 8
    assert "lines" not in caplog.text


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ([f"{name} {i}" for i in range(10) for name in "ab"], []),
        (["the cat 1"] * 10 + [f"dog {i}" for i in range(10)], ["10 of 20 captions (50 %) are th"]),
        ([f"{i:03d}" for i in range(20)], ["20 of 20 captions of retrieval have no words"]),
        (["the cat 1"] * 2 + [f"dog {i}" for i in range(28)], []),  # some web captions are equal
    ],
)
def test_captions_that_cannot_tell_images_apart_are_told(texts, told, caplog):
    examples = [{"image": picture(i), "text": text} for i, text in enumerate(texts)]
    evaluation = make_eval(Source(examples), mesh_of(1))
    for _ in range(2):
        evaluation.run(related_params())
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == len(told), warnings
    assert all(words in message for words, message in zip(told, warnings, strict=True))


def test_the_table_holds_it():
    assert EVALS["retrieval"] is Retrieval


@pytest.mark.parametrize("field", ["image", "text", "key"])
def test_what_an_example_of_ones_own_lacks_is_named(field):
    example = {"image": picture(0), "text": "0", "key": "a"}
    del example[field]
    with pytest.raises(ValueError, match=rf"the data source, at 0, gives dict without {field};"):
        make_eval([example], mesh_of(1), max_bad=1).run(make_params())


def of_queries(mesh, flat=False):
    """What the captions find that the evaluation notes; of a source of several rows a picture."""
    source, rows, captions = make_source(40)
    params = make_params(3)
    for image, caption in captions.tolist():  # near its picture, or near the last of several
        params["text"][caption] = unit(params["image"][rows[image]]) + 0.3 * params["text"][caption]
    source = rows_of(source, captions, 1) if flat else source
    found = make_eval(source, mesh)
    found.keeps_examples = True
    found.run(params)
    return found.tables()["queries"], (params, source, rows, captions)


@pytest.mark.parametrize(("devices", "flat"), [(1, False), (8, False), (2, True)])
def test_captions_that_find_and_miss_their_picture_are_noted_with_what_they_find(devices, flat):
    queries, (params, source, rows, captions) = of_queries(mesh_of(devices), flat)
    texts = [(q["caption"], q["row"]) for q in queries]
    assert [q["rank"] for q in queries[:6]] == [1] * 6 and len({*texts}) == len(queries) == 12
    scores = unit(params["text"][np.arange(256)]) @ unit(params["image"][rows]).T
    shows = [int(e["image"][0, 0, 0]) for e in source.examples]
    first = {row: shows.index(row) for row in rows.tolist()}  # of a picture its first row
    own = [(i, image) for image, i in captions.tolist()]
    ranks = [1 + int((scores[i] > scores[i, image]).sum()) for i, image in own]
    worst = sorted(ranks, reverse=True)[:6]
    assert [q["rank"] for q in queries[6:]] == worst and worst[-1] > 1
    for query in queries:
        caption = int(query["caption"].split()[1])
        order = np.argsort(-scores[caption])
        of_row = {first[row]: image for image, row in enumerate(rows.tolist())}
        assert query["row"] in of_row and query["rank"] == 1 + order.tolist().index(
            of_row[query["row"]]
        )
        assert [f["row"] for f in query["found"]] == [first[int(rows[p])] for p in order[:4]]
        shown = [f["score"] for f in query["found"]]
        assert shown == pytest.approx(scores[caption][order[:4]].tolist(), abs=1e-4)


def test_of_few_pictures_and_none_that_is_missed_all_are_noted():
    assert hits_and_misses(np.array([1, 1, 1])).tolist() == [0, 1, 2]
    assert hits_and_misses(np.array([2, 4, 4, 3])).tolist() == [1, 2, 3, 0]
    source = make_source(3)[0]
    found = make_eval(source, mesh_of(2))
    found.keeps_examples = True
    found.run(related_params())
    for query in found.tables()["queries"]:
        assert sorted(f["row"] for f in query["found"]) == [0, 1, 2]
