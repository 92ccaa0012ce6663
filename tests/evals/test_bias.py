import json

import numpy as np
import pytest
from stand_ins import Source, evaluation, make_params, mesh_of, picture, unit

from clipjax.evals import Bias

CLASSES, GROUPS = ("1", "2", "3"), ("4", "5")


def make_source(num=23):
    """Of the prompt "41" the stand-in model takes the number: group 4, class 1."""
    examples = [
        {"image": picture(n), "label": n % 3, "groups": {"who": GROUPS[n % 2]}} for n in range(num)
    ]
    source = Source(examples, CLASSES)
    source.group_names = ("who",)
    return source


def test_groups_are_judged_as_by_hand(tmp_path):
    params, source, output = make_params(), make_source(), tmp_path / "groups.jsonl"
    options = {"prompts": ("{group}{}",), "output": str(output)}
    run = evaluation(Bias, source, mesh_of(8), **options)
    found = run.run(params)
    image, text = unit(params["image"]), unit(params["text"])
    by_group = {}
    for group, other in (GROUPS, GROUPS[::-1]):
        rows = [n for n in range(23) if GROUPS[n % 2] == group]
        labels = np.array(rows) % 3
        cosines, changed = (
            image[rows] @ text[[int(word + c) for c in CLASSES]].T for word in (group, other)
        )
        own = cosines.argmax(axis=1)
        by_group[group] = (
            (own == labels).mean(),
            cosines[np.arange(len(rows)), labels].mean(),
            (own != changed.argmax(axis=1)).mean(),
            len(rows),
        )
    (a, b) = by_group.values()
    assert found["accuracy_gap"] == pytest.approx(abs(a[0] - b[0])) and a[0] != b[0]
    assert found["worst_group_accuracy"] == pytest.approx(min(a[0], b[0]))
    assert found["score_gap"] == pytest.approx(abs(a[1] - b[1]), abs=1e-6)
    assert found["flips"] == pytest.approx((a[2] * a[3] + b[2] * b[3]) / 23) and a[2] > 0
    assert found["worst_group_flips"] == pytest.approx(max(a[2], b[2]))
    assert found["accuracy"] == pytest.approx((a[0] * a[3] + b[0] * b[3]) / 23)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["accuracy"] for line in lines] == pytest.approx(sorted((a[0], b[0])))
    assert run.tables()["bias"] == lines and set(run.metric_names) == {*found}
    # The control: where both groups have one word, nothing flips.
    same = evaluation(Bias, source, mesh_of(1), **options, words={"5": "4"}).run(params)
    assert same["flips"] == 0


def test_mistakes_are_told():
    params, options = make_params(), {"prompts": ("{group}{}",)}
    with pytest.raises(ValueError, match=r"the prompt 'a \{\}' does not hold \{group\}"):
        evaluation(Bias, make_source(), mesh_of(1), prompts=("a {}",))
    with pytest.raises(ValueError, match="words has 'six', and the groups are 4, 5"):
        evaluation(Bias, make_source(), mesh_of(1), **options, words={"six": "6"}).run(params)
    with pytest.raises(ValueError, match="all pictures are of the group '4'; expected 2"):
        evaluation(Bias, make_source(1), mesh_of(1), **options).run(params)
    source = make_source()
    source.examples[3]["groups"] = {"who": ""}
    with pytest.raises(ValueError, match="picture 3 has the label 0 and the group ''; it needs"):
        evaluation(Bias, source, mesh_of(1), **options, max_bad=9).run(params)
    source.group_names = ()
    with pytest.raises(ValueError, match=r"0 columns of groups and 3 classes; .*group_field=NAME"):
        evaluation(Bias, source, mesh_of(1), **options)


def test_bias_by_the_command(evaluate, tmp_path, save_picture):
    rows = ["image,job,gender"]
    for number in range(8):
        save_picture(tmp_path / f"{number}.png", number)
        rows.append(
            f"{number}.png,{('doctor', 'nurse')[number % 2]},{('man', 'woman')[number // 4]}"
        )
    (tmp_path / "t.csv").write_text("\n".join(rows))
    spec = f"csv:{tmp_path}/t.csv?label_field=job&group_field=gender"
    found, entry = evaluate("bias", spec)
    table = entry["tables"]["bias"]
    assert [found["num_examples"], found["num_groups"]] == [8, 2]
    assert {row["group"] for row in table} == {"man", "woman"}
    assert found["worst_group_accuracy"] == table[0]["accuracy"]
