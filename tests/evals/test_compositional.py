import json
from types import SimpleNamespace

import numpy as np
import pytest
from stand_ins import Source, evaluation, make_params, mesh_of, picture, unit

import clipjax
from clipjax.data import make_source
from clipjax.data.sources.caption_groups import CaptionGroup
from clipjax.evals import Compositional


def make_groups(num, images, captions, categories=("a", "b")):
    """Pictures 0, 1, ... and captions "0", "1", ... of the stand-in model."""
    groups = []
    for n in range(num):
        texts = tuple(str(n * captions + c) for c in range(captions))
        rows = tuple(range(n * images, (n + 1) * images))
        groups.append(CaptionGroup(f"g{n}", rows, texts, categories[n % len(categories)]))
    source = Source([{"image": picture(n)} for n in range(num * images)])
    source.groups = tuple(groups)
    return source


def by_hand(params, groups):
    """The definition of arXiv:2204.03162, section 4, written out for pairs."""
    image, text = unit(params["image"]), unit(params["text"])
    found = []
    for group in groups:
        (i0, i1), (c0, c1) = group.images, map(int, group.captions)
        s = {(c, i): float(text[c] @ image[i]) for c in (c0, c1) for i in (i0, i1)}
        texts = s[c0, i0] > s[c1, i0] and s[c1, i1] > s[c0, i1]
        images = s[c0, i0] > s[c0, i1] and s[c1, i1] > s[c1, i0]
        found.append((texts, images, texts and images))
    return np.array(found, float)


@pytest.mark.parametrize(("devices", "num"), [(1, 41), (8, 41), (8, 3)])
def test_scores_are_those_of_the_definition(devices, num, tmp_path):
    source, params = make_groups(num, 2, 2), make_params()
    output = tmp_path / "found.jsonl"
    found = evaluation(Compositional, source, mesh_of(devices), output=str(output)).run(params)
    judged = by_hand(params, source.groups)
    assert 0 < judged.mean(axis=0)[2] < judged.mean(axis=0)[0] or num == 3
    names = ("text_score", "image_score", "group_score")
    assert [found[name] for name in names] == pytest.approx(judged.mean(axis=0).tolist())
    by_category = np.mean([judged[n::2].mean(axis=0) for n in (0, 1)], axis=0)
    assert [found[f"{n}_category_mean"] for n in names] == pytest.approx(by_category.tolist())
    assert [found[f"num_{w}"] for w in ("groups", "images", "texts")] == [num, 2 * num, 2 * num]
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["group"] for line in lines] == [group.key for group in source.groups]
    assert [[line[name] for name in names] for line in lines] == judged.astype(bool).tolist()


def test_equal_scores_are_wrong_and_what_does_not_decode_takes_its_group_along():
    source, params = make_groups(4, 1, 3), make_params()
    params["text"][:] = 1.0
    run = evaluation(Compositional, source, mesh_of(2))
    assert run.run(params)["text_score"] == 0
    assert "image_score" not in run.metric_names
    source.examples[1]["image"] = b"no picture"
    with pytest.raises(ValueError, match=r"1 image\(s\) or text\(s\) cannot be used, 0 allowed"):
        evaluation(Compositional, source, mesh_of(2)).run(params)
    found = evaluation(Compositional, source, mesh_of(2), max_bad=1).run(make_params())
    assert (found["num_groups"], found["num_images"], found["num_texts"]) == (3, 3, 9)


def test_categories_that_are_left_out_do_not_count_in_the_mean():
    source, params = make_groups(40, 1, 2, ("a", "b", "c")), make_params()
    scores = [g.captions for g in source.groups]
    image, text = unit(params["image"]), unit(params["text"])
    hits = [image[n] @ text[int(a)] > image[n] @ text[int(b)] for n, (a, b) in enumerate(scores)]
    found = evaluation(Compositional, source, mesh_of(1), leave_out=("b",)).run(params)
    expected = np.mean([np.mean(hits[0::3]), np.mean(hits[2::3])])
    assert found["text_score_category_mean"] == pytest.approx(expected)
    with pytest.raises(ValueError, match=r"leave_out names d, which are no categories .* a, b, c"):
        evaluation(Compositional, source, mesh_of(1), leave_out=("d",))
    with pytest.raises(ValueError, match="the source has no groups of captions: give sugarcrepe:"):
        evaluation(Compositional, Source([{"image": picture(0)}]), mesh_of(1))


@pytest.fixture
def published(tmp_path, save_picture):
    """A file of each format."""
    for number in range(4):
        save_picture(tmp_path / "images" / f"ex_{number}.png", number, 40)
    pair = {"caption": "a red dog and a cat", "negative_caption": "a red cat and a dog"}
    crepe = {"7": {"filename": "ex_0.png", **pair}, "9": {"filename": "ex_1.png", **pair}}
    (tmp_path / "swap_obj.json").write_text(json.dumps(crepe))
    wino = {"id": 3, "image_0": "ex_0", "image_1": "ex_1", "caption_0": "some dogs"}
    wino |= {"caption_1": "dogs some", "collapsed_tag": "Object"}
    (tmp_path / "examples.jsonl").write_text(json.dumps(wino) + "\n\n")
    box = {"bbox_x": 10, "bbox_y": 0, "bbox_w": 10, "bbox_h": 20}
    captions = {"true_caption": "a cup on a table", "false_caption": "a table on a cup"}
    aro = [
        {"image_path": "ex_0.png", **box, **captions, "relation_name": "on"},
        {"image_path": "ex_0.png", **box, **captions, "relation_name": "under"},
        {"image": "ex_3.png", "caption_options": ["a cup", "cup a", "u cap", "p cua", "acup"]},
    ]
    (tmp_path / "aro.json").write_text(json.dumps(aro))
    return SimpleNamespace(
        root=tmp_path,
        specs={
            "sugarcrepe": f"sugarcrepe:{tmp_path}/swap_obj.json",
            "winoground": f"winoground:{tmp_path}/examples.jsonl",
            "aro": f"aro:{tmp_path}/aro.json?root={tmp_path}/images",
        },
    )


@pytest.mark.slow
def test_published_files_by_the_command(published, evaluate, tiny_checkpoint):
    """Against the model's own embeddings, group by group."""
    model = clipjax.load(tiny_checkpoint)
    for kind, spec in published.specs.items():
        found, entry = evaluate("compositional", spec)
        source = make_source(spec)
        images = model.encode_image([source[i]["image"] for i in range(len(source))])
        hits = []
        for group in source.groups:
            scores = (
                np.asarray(images)[list(group.images)]
                @ np.asarray(model.encode_text(list(group.captions))).T
            )
            hits.append((scores.argmax(axis=1) == np.arange(len(scores))).all())
        assert found["text_score"] == np.mean(hits), kind
        assert found["num_images"] == {"sugarcrepe": 2, "winoground": 2, "aro": 2}[kind]
        assert found["num_groups"] == len(source.groups)
        assert entry["data_fingerprint"] == source.fingerprint()
    # The box of ARO: the second column of a picture of 4 x 4 squares, its first two rows.
    cut = np.asarray(make_source(published.specs["aro"])[0]["image"])
    noise = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    assert cut.shape == (20, 10, 3)
    assert (cut == np.repeat(np.repeat(noise[:2, 1:2], 10, 0), 10, 1)).all()


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("sugarcrepe", "[]", "holds list, and a file of SugarCrepe holds an object"),
        ("sugarcrepe", '{"1": {"filename": "a.jpg"}}', "1: the record has no caption, negative_c"),
        ("sugarcrepe", '{"1": {}, "1": {}}', "is no JSON: the key '1' stands twice"),
        ("sugarcrepe", "{}", "is empty"),
        ("winoground", '{"id": 1}', "line 1: the record has no image_0, image_1"),
        ("winoground", "no", "line 1 is no JSON"),
        ("aro", '[{"caption_options": ["a"], "image": "b"}]', "nothing to choose from: 1 caption"),
        ("aro", '[{"caption_options": ["a", ""], "image": "b"}]', "'' is no name of a picture, or"),
        (
            "aro",
            '[{"image_path": "a", "true_caption": "b", "false_caption": "c", "bbox_x": 0, '
            '"bbox_y": 0, "bbox_w": 0, "bbox_h": 3}]',
            "width and height of at least 1",
        ),
    ],
)
def test_files_that_are_not_what_was_published(tmp_path, kind, content, message):
    (tmp_path / "x").write_text(content)
    with pytest.raises(ValueError, match=message):
        make_source(f"{kind}:{tmp_path}/x")


def test_mistakes_of_the_command_are_told(evaluate, published):
    spec = published.specs["sugarcrepe"]
    for kind, where, flags, message in (
        ("compositionl", spec, (), "--eval compositionl is unknown; the kinds are zero_shot"),
        ("compositional", spec, ("--eval_field=zero_shot.x=1",), "no evaluation of this kind"),
        ("compositional", spec, ("--eval_field=max_bad=1",), "expected KIND.NAME=VALUE"),
        ("compositional", "", (), "--eval compositional=: expected KIND=SPEC"),
        ("compositional", spec, ("--eval_field=compositional.x=1",), "x is not a field of"),
        ("compositional", "synthetic:8?side=16", (), "the source has no groups of captions"),
    ):
        done = evaluate(kind, where, *flags)
        assert done.code == 1 and message in done.err and "Traceback" not in done.err, message
