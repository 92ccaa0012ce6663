"""Targets beside what was measured, and results in another package's form."""

import json
import math

import pytest
from scipy.stats import binomtest

from clipjax.evals.clip_benchmark import clip_benchmark_results, files_of
from clipjax.evals.naming import EvalName
from clipjax.evals.running import EvalResult
from clipjax.evals.targets import find_goals, judge, wilson


def named(kind, dataset):
    return EvalName(kind=kind, dataset=dataset, spec=f"tar:{dataset}")


IMAGENET, COCO = named("zero_shot", "tar_data_imagenet_val"), named("retrieval", "mscoco_captions")


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (7, 7), (31, 50), (31_660, 50_000)])
def test_the_interval_is_that_of_scipy(hits, count):
    wanted = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson(hits / count, count) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_a_target_is_missed_where_the_whole_interval_is_below_it():
    def verdict(share, count):
        goals = find_goals({"imagenet_top1": 0.6332}, [IMAGENET, COCO], "it")
        metrics = {"top1": share, "num_examples": count}
        (found,) = judge(goals, [EvalResult(name=IMAGENET, metrics=metrics)])
        return found

    assert verdict(0.6305, 50_000)["is_met"]  # within chance
    assert not verdict(0.628, 50_000)["is_met"]
    assert verdict(0.628, 5_000)["is_met"]  # a smaller set says less
    assert verdict(0.7, 50_000)["is_met"] and verdict(0.7, 50_000)["low"] > 0.6332


def test_recalls_are_shares_of_their_queries():
    goals = find_goals({"coco_recall_at_1": (0.5, 0.7)}, [IMAGENET, COCO], "it")
    metrics = {"image_retrieval_recall@1": 0.5, "text_retrieval_recall@1": 0.6}
    metrics |= {"num_images": 5000.0, "num_texts": 25010.0}
    image, text = judge(goals, [EvalResult(name=COCO, metrics=metrics)])
    assert (image["count"], text["count"]) == (25010, 5000)
    assert (image["wanted"], text["wanted"]) == (0.5, 0.7)
    assert image["is_met"] and not text["is_met"]
    assert image["metric"] == "retrieval/mscoco_captions/image_retrieval_recall@1"


@pytest.mark.parametrize(
    ("target", "datasets", "told"),
    [
        ({}, ["imagenet"], "has no target"),
        ({"imagenet_top1": 0.6}, ["cars"], "no evaluation measures it"),
        ({"imagenet_top1": 0.6}, ["imagenet_v2", "imagenet-a", "imagenetv2"], "no evaluation"),
        ({"imagenet_top1": 0.6}, ["imagenet1k", "data_imagenet"], "measure it"),
        ({"imagenet_top1": (0.6, 0.7)}, ["imagenet"], "has 2 numbers"),
        ({"imagenet accuracy": 0.6}, ["imagenet"], "no known form"),
        ({"zero_shot/cars/top1": 0.6}, ["imagenet"], "no evaluation measures it"),
        ({"zero_shot/cars/ece": 0.6}, ["cars"], "no share of examples"),
    ],
)
def test_a_target_that_cannot_be_compared_is_an_error(target, datasets, told):
    names = [named("zero_shot", dataset) for dataset in datasets]
    with pytest.raises(ValueError, match=told):
        judge(find_goals(target, names, "it"), [EvalResult(name=names[0], metrics={"ece": 0.1})])


def test_a_target_whose_evaluation_failed_is_an_error():
    goals = find_goals({"imagenet_top1": 0.6}, [IMAGENET], "it")
    with pytest.raises(ValueError, match="was not measured"):
        judge(goals, [])


def test_the_form_of_clip_benchmark_has_its_keys():
    shares = {"top1": 0.5, "top5": 1.0, "mean_per_class_recall": 0.4, "ece": 0.1}
    few = {**shares, "num_examples": 8.0, "num_classes": 3.0}
    recalls = {"image_retrieval_recall@5": 0.5, "text_retrieval_recall@5": 0.25, "num_rows": 4.0}
    german = EvalName(kind="zero_shot", dataset="cars", languages=("de",), spec="tar:cars")
    several = {"top1": 0.1, "mean_ap": 0.7, "num_classes": 20.0}
    results = [
        EvalResult(name=german, metrics=few),
        EvalResult(name=COCO, metrics=recalls),
        EvalResult(name=named("zero_shot", "voc"), metrics=several),
    ]
    made = clip_benchmark_results(results, model="ViT-B-32", pretrained="a/b.pt")
    files = files_of(made, "out/{dataset}_{pretrained}_{language}.json")
    assert next(iter(files)) == "out/cars_a_b.pt_de.json"
    first, second, third = (json.loads(text) for text in files.values())
    assert math.isnan(first["metrics"].pop("acc5"))
    assert first == {
        "dataset": "cars",
        "model": "ViT-B-32",
        "pretrained": "a/b.pt",
        "task": "zeroshot_classification",
        "metrics": {"acc1": 0.5, "mean_per_class_recall": 0.4},
        "language": "de",
    }
    del recalls["num_rows"]
    assert (second["task"], second["metrics"]) == ("zeroshot_retrieval", recalls)
    assert third["metrics"] == {"mean_average_precision": 0.7}
    with pytest.raises(ValueError, match=r"write \{dataset\} into the name"):
        files_of(made, "out.json")
    with pytest.raises(ValueError, match="no task for probe/cars"):
        probe = EvalResult(name=named("probe", "cars"), metrics={})
        clip_benchmark_results([probe], model="", pretrained="")
