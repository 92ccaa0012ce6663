"""The evaluations of whole features, of the stand-in model, on a mesh of any processes."""

import json
from unittest import mock

import labelled
import test_bias
import test_caption_score
import test_compositional
import test_winogavil
from stand_ins import evaluation, make_params

from clipjax.evals import KNN, Bias, CaptionScore, Compositional, FewShot, LinearProbe, Winogavil
from clipjax.evals import probe as probing


def figures(mesh, folder):
    """What each gives, by its kind; records are written to `folder/KIND.jsonl`."""
    found, params = labelled.make_sets()
    probes = {
        "knn": (KNN, {"weights_sha256": "a"}),
        "knn by kept features": (KNN, {"weights_sha256": "a"}),
        "linear_probe": (LinearProbe, {"strength": 0.1}),
        "few_shot": (FewShot, {"shots": (2,), "draws": 2}),
    }
    metrics = {}
    with mock.patch.object(probing, "make_source", lambda spec, path: found[spec]):
        for name, (kind, fields) in probes.items():
            probe = evaluation(kind, found["test"], mesh, train="train", **fields)
            metrics[name] = probe.run(params)
    candidates = folder / "candidates.json"  # both processes write the same
    candidates.write_text(json.dumps({f"picture {n}": f"{3 * n + 2}" for n in range(11)}))
    for name, kind, source, fields in (
        (
            "caption_score",
            CaptionScore,
            test_caption_score.make_source(),
            {"candidates": str(candidates)},
        ),
        ("compositional", Compositional, test_compositional.make_groups(41, 2, 2), {}),
        (
            "winogavil",
            Winogavil,
            test_winogavil.make()[0],
            {"tokenizer": test_winogavil.tokenize},
        ),
        ("bias", Bias, test_bias.make_source(), {"prompts": ("{group}{}",)}),
    ):
        output = str(folder / f"{name}.jsonl")
        metrics[name] = evaluation(kind, source, mesh, output=output, **fields).run(make_params())
    return metrics


def records(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
