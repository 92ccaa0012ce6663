"""CLIP_benchmark's own code on the sets, weights and pixels that `clipjax eval` has."""

import json
from pathlib import Path

import numpy as np
import pytest
from golden import golden
from peer_sets import NAMES, SCORES, SHARDS, evaluate_sets, write_sets

from clipjax.evals.zero_shot_scores import mean_ap

# Not from the library that is tested; torch and its libraries warn of their own use of themselves.
pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def metrics():
    """The package clip_benchmark.metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "golden" / "models")
        import torchvision_operators  # noqa: F401  # before what imports torchvision
        from clip_benchmark import metrics
        from clip_benchmark.metrics import (  # noqa: F401
            image_caption_selection,
            zeroshot_classification,
            zeroshot_retrieval,
        )

        def number(x):  # since NumPy 2.4 an array of one number is none by itself
            return float(x) if isinstance(x, str) else np.asarray(x).item()

        patch.setattr(metrics.zeroshot_classification, "float", number, raising=False)
        yield metrics


def load(folder):
    from clip_benchmark.models import load_clip

    name = f"local-dir:{folder / 'model'}"
    model, transform, tokenizer = load_clip("open_clip", name, None, None, "cpu")
    return model.eval(), transform, tokenizer


def shards_of(root, transform):
    """Its reader of shards, as its command batches it."""
    from clip_benchmark.datasets.builder import build_wds_dataset
    from torch.utils.data import DataLoader

    data = build_wds_dataset(root.name, transform, data_dir=str(root))
    return data, DataLoader(data.batched(16), batch_size=None)


def winoground_of(folder, transform):
    """Batches of one group, as its reader of Winoground gives them, which fetches the set."""
    import torch
    from PIL import Image

    for line in (folder / "examples.jsonl").read_text().splitlines():
        group = json.loads(line)
        files = [folder / "images" / f"{group[f'image_{i}']}.png" for i in (0, 1)]
        images = torch.stack([transform(Image.open(file)) for file in files])
        yield images[None], [[group["caption_0"], group["caption_1"]]]


def figures_of_shards(folder, name, loaded, metrics):
    """What it gives for one set of SHARDS."""
    model, transform, tokenizer = loaded
    data, batches = shards_of(folder / name, transform)
    given = {"device": "cpu", "amp": False}
    if SHARDS[name] == "retrieval":
        given["recall_k_list"] = [1, 5, 10]
        return metrics.zeroshot_retrieval.evaluate(model, batches, tokenizer, **given)
    return metrics.zeroshot_classification.evaluate(
        model, batches, tokenizer, data.classes, data.templates, **given
    )


def figures_of_groups(folder, loaded, metrics):
    """What it gives for each set of GROUPS."""
    from clip_benchmark.datasets.sugar_crepe import SugarCrepe
    from torch.utils.data import DataLoader

    model, transform, tokenizer = loaded
    crepe = SugarCrepe(str(folder / "images"), str(folder / "swap_obj.json"), transform)
    of_kind = {
        "sugarcrepe": DataLoader(crepe, collate_fn=lambda rows: (rows[0][0][None], [rows[0][1]])),
        "winoground": winoground_of(folder, transform),
    }
    evaluate = metrics.image_caption_selection.evaluate
    return {
        kind: evaluate(model, batches, tokenizer, device="cpu", amp=False)
        for kind, batches in of_kind.items()
    }


def test_figures_are_those_of_clip_benchmark(metrics, command, cache, tmp_path):
    loaded = load(write_sets(tmp_path))
    theirs = {name: figures_of_shards(tmp_path, name, loaded, metrics) for name in SHARDS}
    theirs |= figures_of_groups(tmp_path, loaded, metrics)
    kept, now = golden("evals/clip_benchmark.json", theirs)
    for name, ours in evaluate_sets(tmp_path, command).items():
        assert kept[name] == pytest.approx(now[name], abs=1e-6), name
        of_both = {k: v for k, v in ours.items() if SCORES.get(k, k) in theirs[name]}
        wanted = {key: theirs[name][SCORES.get(key, key)] for key in of_both}
        assert of_both == pytest.approx(wanted, abs=1e-6), name
        assert of_both
    # The control: its figures of other templates are others.
    (tmp_path / "classes" / "zeroshot_classification_templates.txt").write_text("no {c} at all\n")
    others = figures_of_shards(tmp_path, "classes", loaded, metrics)
    assert others != pytest.approx(theirs["classes"], abs=1e-3)


def test_a_class_that_no_picture_shows_counts_as_zero_there(metrics):
    """The one difference of the mean average precision: ours is over the classes that occur."""
    import torch

    random = np.random.default_rng(0)
    scores = random.normal(size=(50, len(NAMES))).astype(np.float32)
    targets = random.random((50, len(NAMES))) < 0.3
    of_classes = metrics.zeroshot_classification.average_precision_per_class
    for lacking in (0, 2):
        targets[:, :lacking] = False
        theirs = of_classes(torch.from_numpy(scores), torch.from_numpy(targets)).mean().item()
        found = mean_ap(scores, targets, NAMES)[0] * (1 - lacking / len(NAMES))
        assert found == pytest.approx(theirs, abs=1e-6)
