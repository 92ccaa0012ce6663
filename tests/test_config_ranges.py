"""Every field of a config has a range, every range a field, and the document says the same."""

import math
import os
from pathlib import Path

import pytest

from clipjax.config import default_config, iterate_leaves, to_plain, validate
from clipjax.config_fields import EVAL_FIELDS, FIELDS
from clipjax.data.workers import KINDS
from clipjax.layers.transformer import REMAT_POLICIES
from clipjax.losses.layouts import LAYOUTS
from clipjax.optim import DECAY_MASKS
from clipjax.partitioning.rules import LOGICAL_AXIS_RULES
from clipjax.ranges import Choice, Flag, Many, Number, Optional

DOCUMENT = Path(__file__).parent.parent / "docs" / "configs.md"
BEGIN, END = "<!-- fields: begin -->\n", "<!-- fields: end -->\n"


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
        ("sharding", "zero", ["config.sharding = 'zero'", "zero1"]),
        ("target", {"top1": math.nan}, ["config.target.top1 = nan", "finite"]),
        ("target", {"top1": "high"}, ["config.target.top1 = 'high'"]),
        ("evals", {"a": 3}, ["config.evals.a = 3"]),
        ("evals", {"a": {"source": "x:y", "every_steps": "x"}}, ["config.evals.a.every_steps"]),
        ("evals", {"a": {"source": "x:y", "every_steps": -1}}, ["config.evals.a.every_steps"]),
        ("data.device_color_jitter", {"hue": math.nan}, ["device_color_jitter.hue = nan"]),
        ("data.source", {1, 2}, ["config.data.source = {1, 2}", "set"]),
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
        "data.workers": KINDS,
        "loss.layout": {"auto", "dense", *LAYOUTS},
        "optimizer.decay_mask": DECAY_MASKS,
        "remat": {"none", *REMAT_POLICIES},
        "sharding": LOGICAL_AXIS_RULES,
    }
    for path, table in tables.items():
        assert set(FIELDS[path].allowed.names) == set(table), path
    choices = {path for path, field in FIELDS.items() if isinstance(field.allowed, Choice)}
    assert choices == {*tables, "dtype", "optimizer.mu_dtype"}


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


def test_the_document_holds_the_table():
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    found, _, after = rest.partition(END)
    assert rest and after, f"{DOCUMENT} lacks {BEGIN.strip()} and {END.strip()}"
    if os.environ.get("UPDATE_GOLDEN"):
        DOCUMENT.write_text(f"{before}{BEGIN}{table_of_fields()}{END}{after}")
    else:
        assert found == table_of_fields(), "write it anew: UPDATE_GOLDEN=1 pytest tests/..."
