"""Configs with fields changed at random: a sentence that names the field, or a run; no crash."""

import copy
import math
import random

import pytest
from ml_collections import ConfigDict

from clipjax.config import default_config, to_plain
from clipjax.experiment import build_experiment, resolve, run

VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.5, 1.5, 1e-3, 1e30, -1e30, 1e-300, 10**12, 10**30,
    math.nan, math.inf, -math.inf, "", "x", "None", "(", "[", "logit", "a:b", "mlp", "data", "../x",
    "0", "1", "{}", "é\u202e", (), (0,), (1, 2), ("a",), ("(",), ("a", 0.1), (("a", 0.1),), ((),),
    ((1, 2), (3, 4)), (None,), ("mlp", "tensor"), (("mlp", "tensor"),), {}, {"zzz": 1},
    {"name": "x"}, {"name": "vit"}, {"": 1}, ({},), ({"name": 3},), ({"until_step": 2},),
    {1, 2}, b"x", object(),
)  # fmt: skip
NAMES = (
    "vit", "naflex_vit", "efficientnet", "modified_resnet", "bert", "causal_transformer",
    "ViT-B-16", "bidirectional_transformer", "clip_bpe", "wordpiece", "gelu", "swish", "cls",
    "mean", "patch_mean", "map", "eot", "last", "sincos2d", "learned", "squash", "shortest",
    "patches", "bicubic", "clip", "siglip", "adamw", "lion", "cosine", "constant", "dense",
    "grid", "ring", "gather", "zero1", "fsdp", "tensor", "replicated", "none", "full", "dots",
    "float32", "bfloat16", "threads", "processes", "zero_shot", "retrieval", "random_flip",
    "cutout", "color_jitter", "RN50", "siglip-b-16-224", "synthetic:32",
    "mix:0.5*synthetic:32,0.5*synthetic:64", "checkpoint", "all", "kernels", "mlp",
)  # fmt: skip
# Keys here are names of one's own, not fields.
OWN_NAMES = ("target", "evals", "data.transforms.0.weights")
NEVER_MET = "zzz_unknown"


def base(number):
    """A whole config of a small model, which uses every group, or one of a row of the zoo."""
    config = to_plain(default_config())
    config["batch_size"], config["total_steps"] = 16, 8
    config["schedule"]["warmup_steps"] = 2
    config["data"]["source"] = (
        {"spec": "synthetic:64", "side": 24} if number % 2 else "synthetic:64"
    )
    config["data"]["transforms"] = [
        {"name": "choose_caption", "weights": [0.5, 0.5]},
        {"name": "random_resized_crop", "scale": [0.8, 1.0]},
        {"name": "warp", "rotate": 8.0, "cells": 2},
        {"name": "filter_caption", "patterns": ["x+"], "max_words": 40},
    ]
    config["optimizer"]["lr_scale"] = [["^image", 0.5]]
    config["optimizer"]["freeze"] = ["^text_projection"]
    config["logical_axes"] = [["mlp", "fsdp"]]
    config["evals"] = {
        "zero_shot": {"source": "synthetic:8", "templates": "plain", "every_steps": 4},
        "found": {"name": "retrieval", "source": "synthetic:8", "ks": [1, 5], "max_bad": 1},
    }
    config["target"] = {"imagenet_top1": 0.5}
    if number % 3 == 2:
        config["model"]["name"] = "ViT-B-32"
        config["model"]["image"]["dropout"] = 0.1
        return config
    config["data"]["device_color_jitter"] = {"hue": 8.0, "saturation": [0.8, 1.2]}
    config["stages"] = [{"until_step": 4, "image_size": 16, "context_length": 8}]
    tower = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "activation": "gelu"}
    text = ("bert", "causal_transformer")[number % 2]
    config["model"] = {
        "name": "own",
        "embed_dim": 8,
        "image_size": 32,
        "image": {"name": "vit", "patch_size": 8, "patch_dropout": 0.5, "pooling": "map", **tower},
        "text": {"name": text, "vocab_size": 49408, "context_length": 16, **tower},
        "tokenizer": {"name": "clip_bpe", "end_token": "<end>"},
        "preprocess": {
            "resize": "squash",
            "interpolation": "bilinear",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "logit_scale": {"init": 10.0, "max": 100.0},
        "logit_bias": -10.0,
        "image_projection": "linear",
    }
    return config


def places(node, path=()):
    """Every (path, holder, key) of nested dicts and lists."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in list(items):
        yield (*path, key), node, key
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def mutated(number):
    """A config with one to three changes, and the names of unknown keys that it has."""
    draw = random.Random(number)
    config, unknown = base(number), []
    for _ in range(draw.choice((1, 1, 2, 3))):
        path, holder, key = draw.choice(list(places(config)))
        change = draw.choice(
            ("near", "near", "near", "replace", "wrap", "text", "delete", "unknown")
        )
        if change == "replace":
            holder[key] = (
                copy.deepcopy(draw.choice(VALUES[:-1])) if draw.random() < 0.98 else object()
            )
        elif change == "near":
            holder[key] = near(holder[key], draw)
        elif change == "wrap":
            holder[key] = [holder[key]]
        elif change == "text":
            holder[key] = str(holder[key])
        elif change == "delete":
            del holder[key]
        elif isinstance(holder, dict):
            holder[NEVER_MET] = copy.deepcopy(draw.choice(VALUES[:20]))
            where = ".".join(map(str, path[:-1]))
            unknown += [] if where in OWN_NAMES else [where]
    return config, any(holds(config, where) for where in unknown)


def near(value, draw):
    """Another value of the same kind, which may well be allowed."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((value + 1, value - 1, 2 * value, value // 2, value * 1000, -value))
    if isinstance(value, float):
        return draw.choice((value + 1, value - 1, 2 * value, value / 2, value * 1e6, -value, 1))
    if isinstance(value, str):
        return draw.choice(NAMES)
    if value is None:
        return draw.choice((1, 2, 8, 16, 0.5, 0.999))
    if isinstance(value, list) and value:
        return draw.choice((value[:-1], [*value, value[0]], value[::-1]))
    return value


def holds(config, where):
    """Whether the unknown key is still there: a later change may have taken its group away."""
    node = config
    for part in filter(None, where.split(".")):
        node = (
            node[int(part)]
            if isinstance(node, list) and part.isdigit()
            else node.get(part)
            if (isinstance(node, dict))
            else None
        )
    return isinstance(node, dict) and NEVER_MET in node


class BuiltError(Exception):
    """All was checked that is checked before a device is touched."""


def try_config(number, workdir):
    """True if the config starts; a ValueError that names a field is False; all else goes on."""
    config, has_unknown = mutated(number)
    try:
        build_experiment(resolve(ConfigDict(config, type_safe=False)), workdir)
    except BuiltError:
        pass
    except ValueError as error:
        assert "config." in str(error), f"{number}: no field is named: {error}"
        return False
    assert not has_unknown, f"{number}: an unknown key starts"
    return True


@pytest.fixture
def no_program(monkeypatch):
    def build_program(resolved):
        raise BuiltError

    monkeypatch.setattr(run, "build_program", build_program)


def test_the_bases_start(no_program, monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), "mutated", lambda number: (base(number), False))
    assert all(try_config(number, tmp_path) for number in range(6))


def test_mutated_configs(no_program, tmp_path):
    started = [try_config(number, tmp_path) for number in range(80)]
    assert 8 < sum(started) < 40  # the changes are neither harmless nor hopeless


def test_the_fuzz_sees_a_check_that_is_left_out(no_program, monkeypatch, tmp_path):
    """Negative control: keys and ranges unchecked, there are crashes, and unknown keys start."""
    monkeypatch.setattr("clipjax.config.check_keys", lambda *_, **__: None)
    unknown = crash = False
    for number in range(300):  # which of them it is changes with the fields
        try:
            try_config(number, tmp_path)
        except Exception as error:
            unknown |= "an unknown key starts" in str(error)
            crash |= isinstance(error, AttributeError | TypeError)
        if unknown and crash:
            break
    assert unknown and crash


@pytest.mark.nightly
@pytest.mark.parametrize("first", range(0, 2000, 100))
def test_two_thousand_mutated_configs(first, tmp_path):
    for number in range(first, first + 100):
        try_config(number, tmp_path)
