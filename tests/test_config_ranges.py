"""Every field of a config has a range, every range a field, and the document says the same."""

import dataclasses
import inspect
import math
import os
from pathlib import Path

import pytest

from clipjax.config import default_config, iterate_leaves, to_plain, validate
from clipjax.config_fields import EVAL_FIELDS, FIELDS
from clipjax.data.loading.loader import WORKERS
from clipjax.data.transforms import TRANSFORMS, make_transforms
from clipjax.evals import EVALS
from clipjax.experiment.resolving import EVAL_RUNTIME
from clipjax.layers.execution import ATTENTIONS
from clipjax.layers.remat import REMAT
from clipjax.lengths import Length
from clipjax.losses.layouts import LAYOUTS
from clipjax.losses.make_loss import DTYPES as LOSS_DTYPES
from clipjax.losses.make_loss import POSITIVES
from clipjax.models import IMAGE_ENCODERS, MODELS, TEXT_ENCODERS, build_model, resolve_spec
from clipjax.models.spec_ranges import LOGIT_SCALE, MODEL, PREPROCESS
from clipjax.optim import DECAY_MASKS
from clipjax.partitioning.rules import LOGICAL_AXIS_RULES
from clipjax.ranges import Choice, Flag, Many, Number, Optional, whole

DOCUMENT = Path(__file__).parent.parent / "docs" / "configs.md"


def defaults():
    """path -> default, of every row of the table; groups of free fields stay whole."""
    plain, found = to_plain(default_config()), {}

    def visit(node, prefix):
        for key, value in node.items():
            path = f"{prefix}{key}"
            if isinstance(value, dict) and path not in FIELDS:
                visit(value, f"{path}.")
            else:
                found[path] = value

    visit(plain, "")
    return found


def unwrapped(rule):
    if isinstance(rule, Length):
        return whole(rule.low)
    return rule.rule if isinstance(rule, Optional) else rule


NUMBERS = {
    path: unwrapped(field.allowed)
    for path, field in FIELDS.items()
    if isinstance(unwrapped(field.allowed), Number)
}
LISTS = [path for path, field in FIELDS.items() if isinstance(field.allowed, Many)]


def valid(path=None, value=None):
    config = default_config()
    config.data.source = "synthetic:64"
    if path is not None:
        *groups, name = path.split(".")
        node = config
        for group in groups:
            node = node[group]
        node._fields[name] = value  # as a file of JSON, or another type-free route, would have it
    return config


def test_the_table_and_the_defaults_have_the_same_fields():
    assert set(defaults()) == set(FIELDS)
    leaves = dict(iterate_leaves(to_plain(default_config())))
    for path, default in leaves.items():
        if isinstance(default, bool):
            assert isinstance(FIELDS[path].allowed, Flag), path
        elif isinstance(default, int | float):
            assert path in NUMBERS or path.startswith("model."), path
    validate(valid())
    for path, field in FIELDS.items():
        field.allowed.check(defaults()[path], path)
        assert field.meaning


@pytest.mark.parametrize("path", NUMBERS)
def test_every_number_is_finite_and_in_its_interval(path):
    rule = NUMBERS[path]
    outside = [math.nan, math.inf, -math.inf, "1", True, [1], 10**400]
    outside += [0.5] if rule.whole else []
    outside += [rule.low - 1] if rule.low - 1 not in rule.also else [rule.low - 2]
    outside += [rule.low] if rule.open_low else []
    outside += [max(rule.high + 1, 2 * rule.high)] if rule.high is not None else []
    outside += [rule.high] if rule.open_high else []
    outside += [] if isinstance(FIELDS[path].allowed, Optional) else [None]
    for value in outside:
        with pytest.raises(ValueError, match=rf"config\.{path} = .*expected a (whole|finite)"):
            validate(valid(path, value))
    if isinstance(FIELDS[path].allowed, Optional):
        validate(valid(path, None))
        with pytest.raises(ValueError, match=r"or None \("):
            validate(valid(path, math.inf))


@pytest.mark.parametrize("path", LISTS)
def test_a_text_is_no_tuple(path):
    with pytest.raises(ValueError, match=rf"config\.{path} = 'logit': expected a tuple of .*comma"):
        validate(valid(path, "logit"))
    with pytest.raises(ValueError, match=rf"config\.{path} = "):
        validate(valid(path, None))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("optimizer.lr_scale", ("a", 0.1), ["config.optimizer.lr_scale[0] = 'a'", "pair"]),
        ("optimizer.lr_scale", (("a", -0.1),), ["config.optimizer.lr_scale[0][1] = -0.1"]),
        ("optimizer.lr_scale", (("(", 0.1),), ["lr_scale[0][0] = '('", "no regular expression"]),
        ("optimizer.freeze", ("[",), ["config.optimizer.freeze[0] = '['"]),
        ("init.rename", ("a", "b"), ["config.init.rename[0] = 'a'", "pair"]),
        ("init.drop", (3,), ["config.init.drop[0] = 3", "regular expression"]),
        ("init.zzz", 1, ["config.init.zzz is unknown", "drop, initialise, lock_image"]),
        ("init.renam", (), ["config.init.renam is unknown", "Did you mean 'rename'"]),
        ("sharding", "zero", ["config.sharding = 'zero'", "zero1", "module:Name"]),
        ("target", {"top1": math.nan}, ["config.target.top1 = nan", "finite"]),
        ("target", {"top1": "high"}, ["config.target.top1 = 'high'"]),
        ("evals", {"a": 3}, ["config.evals.a = 3"]),
        ("evals", {"a": {"source": "x:y", "every_steps": "x"}}, ["config.evals.a.every_steps"]),
        ("evals", {"a": {"source": "x:y", "every_steps": -1}}, ["config.evals.a.every_steps"]),
        ("data.device_color_jitter", {"hue": math.nan}, ["device_color_jitter.hue = nan"]),
        ("data.source", {"spec": {1, 2}}, ["config.data.source.spec = {1, 2}", "set"]),
        ("mesh.zzz", 1, ["config.mesh.zzz is unknown", "data, fsdp, tensor"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_value_is_named_with_its_path(path, value, words):
    with pytest.raises(ValueError) as error:
        validate(valid(path, value))
    for word in words:
        assert word in str(error.value)


def test_fields_that_depend_on_one_another():
    config = valid()
    config.loss.layout, config.loss.tile_size = "dense", 64
    with pytest.raises(ValueError, match=r"config\.loss\.tile_size .* config\.loss\.layout"):
        validate(config)
    config = valid()
    config.init.lock_image = True
    with pytest.raises(ValueError, match=r"config\.init\.lock_image .* config\.init\.checkpoint"):
        validate(config)


def test_choices_are_those_of_the_tables_that_they_choose_from():
    tables = {
        "data.workers": tuple(WORKERS),
        "loss.dtype": LOSS_DTYPES,
        "loss.layout": {"auto", "dense", *LAYOUTS},
        "loss.positives": POSITIVES,
        "optimizer.decay_mask": DECAY_MASKS,
        "attention": ATTENTIONS,
        "remat": {"auto", *REMAT},
        "sharding": LOGICAL_AXIS_RULES,
    }
    for path, table in tables.items():
        assert set(FIELDS[path].allowed.names) == set(table), path
    choices = {path for path, field in FIELDS.items() if isinstance(field.allowed, Choice)}
    assert choices == {*tables, "dtype", "init.vocabulary", "optimizer.mu_dtype"}


TOWERS = {**IMAGE_ENCODERS, **TEXT_ENCODERS}
# Filled in by the caller, not by a config.
RUNTIME = {"parent", "name", "dtype", "execution", "remat", *EVAL_RUNTIME}
DERIVED = {"table_image_size", "table_length"}  # of a stage, likewise
ROWS = {  # of the zoo, one with each tower
    "vit": "ViT-B-32",
    "causal_transformer": "ViT-B-32",
    "modified_resnet": "RN50",
    "naflex_vit": "siglip2-b-16-naflex",
    "perception_encoder": "PE-Core-B-16",
    "bidirectional_transformer": "siglip2-b-16-naflex",
    "efficientnet": "align-base",
    "bert": "align-base",
}


def fields_of(part):
    return [f for f in dataclasses.fields(part) if f.name not in RUNTIME and f.init]


@pytest.mark.parametrize("part", [*TOWERS.values(), *EVALS.values(), *TRANSFORMS.values()])
def test_every_field_of_a_part_has_a_range(part):
    names = {field.name for field in fields_of(part)}
    assert names == set(part.ranges) - RUNTIME and names
    for field in fields_of(part):
        if field.default is not dataclasses.MISSING:
            part.ranges[field.name].check(field.default, field.name)


def numbers_of(ranges):
    return {n: unwrapped(r) for n, r in ranges.items() if isinstance(unwrapped(r), Number)}


@pytest.mark.parametrize("tower", TOWERS)
def test_every_number_of_a_tower_is_finite_and_in_its_interval(tower):
    side = "image" if tower in IMAGE_ENCODERS else "text"
    spec = MODELS[ROWS[tower]]
    assert spec[side]["name"] == tower
    build_model(spec)
    for name, rule in numbers_of(TOWERS[tower].ranges).items():
        if name in DERIVED | {"image_size"}:
            continue
        absent = [] if isinstance(TOWERS[tower].ranges[name], Optional) else [None]
        for value in (math.nan, math.inf, "1", True, *absent, rule.low - 1, 10**400):
            with pytest.raises(ValueError, match=rf"^{side}\.{name} = "):
                build_model({**spec, side: {**spec[side], name: value}})


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        *((None, "embed_dim", value) for value in (0, 1.5, True, math.nan, "8")),
        *((None, "image_size", value) for value in (0, (224, 160), [224, 224], "224", True)),
        *((None, "logit_bias", value) for value in (math.nan, "x", True)),
        *(("logit_scale", "init", value) for value in (0, -1, math.inf, "x")),
        *(("logit_scale", "max", value) for value in (0, math.nan, "x")),
        *(("logit_scale", "zzz", value) for value in (1,)),
        *(("preprocess", "std", value) for value in ((0, 1, 1), (1, 1), "111", (math.nan, 1, 1))),
        *(("preprocess", "mean", value) for value in (0.5, (math.inf, 0, 0))),
        *(("preprocess", "crop_fraction", value) for value in (0, 1.1, math.nan)),
        *(("preprocess", "resize", value) for value in ("crop", 3)),
        *(("text", "context_length", value) for value in (0, 7.5, "77")),
        *(("image", "patch_size", value) for value in (0, 7.5, "32")),
        *((None, part, "vit") for part in ("image", "text", "tokenizer", "preprocess")),
    ],
)
def test_every_value_of_a_model_is_in_its_range(group, name, value):
    path = f"model.{f'{group}.' if group else ''}{name}"
    with pytest.raises(ValueError) as error:
        resolve_spec({"name": "ViT-B-32", **({group: {name: value}} if group else {name: value})})
    assert str(error.value).startswith(path)
    assert name != "image_size" or not isinstance(value, tuple) or "square" in str(error.value)


def test_none_takes_away_what_a_row_has():
    model = {"name": "siglip-b-16-224", "logit_bias": None}
    assert resolve_spec(model)["logit_bias"] is None
    assert resolve_spec({"name": "siglip-b-16-224"})["logit_bias"] == -10.0
    scale = resolve_spec({"name": "ViT-B-32", "logit_scale": {"max": None}})["logit_scale"]
    assert scale == {**MODELS["ViT-B-32"]["logit_scale"], "max": None}
    assert MODELS["ViT-B-32"]["logit_scale"]["max"] == 100.0


def test_a_size_that_patches_do_not_fill_is_a_published_one_or_refused():
    assert resolve_spec({"name": "siglip-so400m-14-384"})["image_size"] == 384
    own = {**MODELS["siglip-so400m-14-384"], "name": "own"}
    assert resolve_spec(own)["image_size"] == 384
    with pytest.raises(ValueError, match=r"image_size = 384 .*patch_size = 14: .* 378 or 392"):
        resolve_spec({"name": "ViT-L-14", "image_size": 384})
    with pytest.raises(ValueError, match=r"image_size = 225 .*; take 224 or 256"):
        resolve_spec({"name": "ViT-B-32", "image_size": 225})


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_number_of_a_transform_is_finite(name):
    fields, given = dataclasses.fields(TRANSFORMS[name]), {"templates": ["{}"], "max_words": 1}
    needed = {field.name for field in fields if field.default is dataclasses.MISSING} & given.keys()
    spec = {"name": name, **{field: given[field] for field in needed}}
    make_transforms([spec], image_size=32)
    for field in fields:
        annotation = str(inspect.signature(TRANSFORMS[name]).parameters[field.name].annotation)
        if "int" not in annotation and "float" not in annotation:
            continue
        for value in (math.nan, math.inf, -math.inf, "1", True, -1):
            with pytest.raises(ValueError, match=rf"^config\.t\[0\].*{field.name}"):
                make_transforms([{**spec, field.name: value}], image_size=32, path="config.t")


def table_of_parts():
    owners = {}  # (field, default, allowed) -> the parts that have just this

    def add(part, ranges, defaults, hidden=()):
        for name, rule in ranges.items():
            default = defaults.get(name, dataclasses.MISSING)
            shown = "" if default is dataclasses.MISSING else f"`{default!r}`"
            if name not in hidden:
                owners.setdefault((name, shown, str(rule)), []).append(f"`{part}`")

    add("model", MODEL, {})
    add("model.preprocess", PREPROCESS, {"crop_fraction": 1.0})
    add("model.logit_scale", LOGIT_SCALE, {})
    for name, part in {**TOWERS, **EVALS, **TRANSFORMS}.items():
        # The size of images stands one level up, for all towers; a transform may have its own.
        hidden = RUNTIME | DERIVED | (set() if name in TRANSFORMS else {"image_size"})
        add(name, part.ranges, {f.name: f.default for f in fields_of(part)}, hidden)
    rows = ["| of | field | default | allowed |", "|---|---|---|---|"]
    rows += [
        f"| {', '.join(parts)} | `{name}` | {shown} | {allowed} |"
        for (name, shown, allowed), parts in owners.items()
    ]
    return "\n".join(rows) + "\n"


def table_of_fields():
    rows = ["| field | default | allowed | means |", "|---|---|---|---|"]
    default = {**defaults(), "model": defaults()["model"]["name"]}
    for path, field in FIELDS.items():
        shown = "()" if default[path] == [] else repr(default[path])
        rows.append(f"| `{path}` | `{shown}` | {field.allowed} | {field.meaning} |")
    rows += ["", "An entry of `evals` has, beside the fields of what its `name` is:", ""]
    rows += ["| field | allowed | means |", "|---|---|---|"]
    rows += [f"| `{name}` | {f.allowed} | {f.meaning} |" for name, f in EVAL_FIELDS.items()]
    return "\n".join(rows) + "\n"


@pytest.mark.parametrize("name", ["fields", "parts"])
def test_the_document_holds_the_table(name):
    table = {"fields": table_of_fields, "parts": table_of_parts}[name]()
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
    before, _, rest = DOCUMENT.read_text().partition(begin)
    found, _, after = rest.partition(end)
    assert rest and after, f"{DOCUMENT} lacks {begin.strip()} and {end.strip()}"
    if os.environ.get("UPDATE_GOLDEN"):
        DOCUMENT.write_text(f"{before}{begin}{table}{end}{after}")
    else:
        assert found == table, "write it anew: UPDATE_GOLDEN=1 pytest tests/test_config_ranges.py"
