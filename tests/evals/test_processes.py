import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import every_kind
import jax
import pytest
import test_budget
import test_retrieval
import test_zero_shot
import test_zero_shot_tables
from counting import HANGS_S
from stand_ins import make_params
from xla_flags import with_devices

from clipjax.evals.retrieval_answers import find_pictures


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path, cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = Path(__file__).parent
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": with_devices(2),
        "PYTHONPATH": f"{here.parents[1]}:{here}:{here.parent / 'helpers'}",
    }
    command = [sys.executable, str(here / "run_process.py"), port, str(tmp_path / "two")]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen([*command, str(i)], env=environment, stdout=-1, stderr=-1)
            )
            for i in range(2)
        ]
        for process in processes:
            stack.callback(process.kill)
        outputs = [process.communicate(timeout=HANGS_S) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    found = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    errors = [f.pop("error") for f in found]
    # Both come to the same verdict, although only one of them met the image.
    assert all("zero_shot: 1 image(s)" in error for error in errors)
    assert sum("picture 22" in error for error in errors) == 1
    assert found[0] == found[1]
    assert "retrieval: picture 22 has the captions" in found[0].pop("refused")

    assert found[0].pop("cut") == 24  # as the longer texts, which one of them has, need it

    # By the clock of the lead, whatever the other's says: else one would wait for the other.
    assert found[0].pop("budget") == test_budget.of_one_clock(slow=False)
    assert test_budget.of_one_clock(slow=True) != test_budget.of_one_clock(slow=False)

    mesh = test_zero_shot.mesh_of(1)
    check_every_kind(found[0].pop("kinds"), mesh, tmp_path)
    zero_shot = test_zero_shot.make_eval(test_zero_shot.make_source(23)[0], mesh)
    metrics, predictions = zero_shot.run(make_params()), zero_shot.predict(make_params(), 5)
    metrics |= test_zero_shot_tables.of_groups_and_several(mesh)
    retrieval = test_retrieval.make_eval(test_retrieval.make_source(23)[0], mesh)
    metrics |= retrieval.run(test_retrieval.related_params())
    flat = test_retrieval.rows_of(*test_retrieval.make_source(23)[::2], 1)
    rows = test_retrieval.make_eval(flat, mesh).run(test_retrieval.related_params())
    metrics |= {f"rows/{name}": value for name, value in rows.items()}
    assert rows["num_images"] == 23 < rows["num_rows"]
    folds = test_retrieval.make_eval(test_retrieval.make_source(24)[0], mesh, fold=6)
    in_folds = folds.run(test_retrieval.related_params())
    metrics |= {f"folds/{name}": value for name, value in in_folds.items()}
    name = "image_retrieval_recall@1"
    assert in_folds[f"{name}_folds_of_6"] != in_folds[name]
    answers = find_pictures(retrieval, test_retrieval.related_params(), num_queries=7)
    metrics["found"] = [[f.caption, f.rank, [p.key for p in f.pictures]] for f in answers]
    for p, (key, names, scores) in zip(predictions, found[0].pop("predictions"), strict=True):
        assert (p.key, list(p.names)) == (key, names)
        assert list(p.scores) == pytest.approx(scores, rel=1e-5)
    metrics["confused"] = test_zero_shot_tables.of_confused(mesh)
    metrics["queries"] = test_retrieval.of_queries(mesh)[0]
    assert found[0] == metrics
    assert jax.process_count() == 1


def check_every_kind(found, mesh, folder):
    """Each example counts once, and counts the same as in one process."""
    wanted = every_kind.figures(mesh, folder / "one")
    assert found.keys() == wanted.keys()
    for name, metrics in wanted.items():
        assert found[name] == pytest.approx(metrics, abs=1e-6), name
    assert found["knn"] == found["knn by kept features"]
    assert len(list((folder / "two" / "cache" / "features").iterdir())) == 2
    counts = {"caption_score": 11, "compositional": 41, "winogavil": 24, "bias": 2}
    for name, count in counts.items():
        two, one = (every_kind.records(folder / of, name) for of in ("two", "one"))
        keys = [record.get("key") or record["group"] for record in two]
        assert len({*keys}) == len(keys) == count, name
        assert keys == [record.get("key") or record["group"] for record in one]
    assert (
        sum(record["num_examples"] for record in every_kind.records(folder / "two", "bias")) == 23
    )
    for name in ("knn", "linear_probe"):
        assert (found[name]["num_examples"], found[name]["num_train"]) == (71, 150)
