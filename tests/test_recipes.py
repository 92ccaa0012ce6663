"""The published recipes of configs/: tables of rows, each with its target, each a config."""

import ast
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from config_files import CONFIGS, read_config_module
from golden import golden

from benchmarks import plan
from clipjax.checkpoint.contract import check_contract, make_contract
from clipjax.config import iterate_leaves, to_plain, validate
from clipjax.experiment import resolve
from clipjax.experiment.start import FREE_IN_FINE_TUNING
from clipjax.interop.hugging_face import dual_encoder
from clipjax.interop.section import Section
from clipjax.models import resolve_spec
from clipjax.optim import make_optimizer, make_schedule
from clipjax.recipes import Recipe, choose

DOCS = Path(__file__).parents[1] / "docs" / "recipes.md"
RECORDS = Path(__file__).parents[1] / "benchmarks" / "results"
MODULES = {path.stem: read_config_module(path) for path in sorted(CONFIGS.glob("*.py"))}
TABLES = {name: module for name, module in MODULES.items() if hasattr(module, "RECIPES")}
# The one row of which no result was published that can be named.
UNAIMED = {"conceptual_captions.py:recipe=cc12m-ViT-B-32"}


def rows():
    for name, module in TABLES.items():
        for row in module.RECIPES:
            yield f"{name}.py:recipe={row}", module.get_config, f"recipe={row}"


def leaves(config):
    """Dotted fields of a config and of the model that it stands for; a tuple is one."""
    validate(config, needs_data=False)
    plain = {**to_plain(config), "model": resolve(config, to_run=False).spec}
    return dict(iterate_leaves(plain))


def differences(base, other):
    """Fields of another config as it has them, `absent` where it has none."""
    names = sorted({*base, *other})
    return {
        name: other.get(name, "absent")
        for name in names
        if other.get(name, "absent") != base.get(name, "absent")
    }


@pytest.mark.parametrize("name", TABLES)
def test_the_rows_of_a_table_differ_in_what_is_kept(name):
    """Beside tests/golden/configs/NAME.json, which is the config without arguments."""
    module = TABLES[name]
    base = leaves(module.get_config())
    found = {
        row: differences(base, leaves(module.get_config(f"recipe={row}"))) for row in module.RECIPES
    }
    kept, found = golden(f"recipes/{name}.json", found)
    assert found == kept, "a recipe is another one; UPDATE_GOLDEN=1 writes it down"
    assert [row for row in found if not found[row]], "no row is the config without arguments"


def test_every_kept_table_is_that_of_a_config():
    kept = sorted(path.stem for path in (Path(__file__).parent / "golden" / "recipes").iterdir())
    assert kept == sorted(TABLES)


@pytest.mark.parametrize("name", [*TABLES, "lit_coco"])
def test_a_publication_is_named_and_its_results_are_shares(name):
    module = MODULES[name]
    assert re.search(
        r"arXiv:\d{4}\.\d{5}", ast.get_docstring(ast.parse(source(name))).split("\n")[0]
    )
    for row in getattr(module, "RECIPES", [None]):
        target = module.get_config(f"recipe={row}" if row else None).target.to_dict()
        assert target or f"{name}.py:recipe={row}" in UNAIMED
        for value in target.values():
            assert all(0 < x < 1 for x in (value if isinstance(value, tuple) else (value,)))


def source(name):
    return (CONFIGS / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*TABLES, "lit_coco"])
def test_a_recipe_made_small_is_whole(name):
    for row in getattr(MODULES[name], "RECIPES", [None]):
        config = MODULES[name].get_config(f"recipe={row},smoke" if row else "smoke")
        settings = validate(config)
        assert settings.data.source == "synthetic:64" and settings.total_steps <= 8


def test_a_row_is_chosen_and_its_fields_are_the_defaults():
    table = {
        name: Recipe(model=name, examples=8, batch_size=size, learning_rate=1.0, warmup_steps=1)
        for name, size in (("one", 2), ("two", 4))
    }
    arg, row = choose(" recipe=two,examples=16", table, default="one", batch_size=0, examples=0)
    assert (arg.recipe, arg.batch_size, arg.examples, row) == ("two", 4, 16, table["two"])
    arg, row = choose(None, table, default="one", batch_size=0)
    assert (arg.recipe, arg.batch_size, row) == ("one", 2, table["one"])
    with pytest.raises(ValueError, match=r"recipe=tow: .* one, two\. Did you mean 'two'"):
        choose("recipe=tow", table, default="one")
    with pytest.raises(ValueError, match="no_such"):
        choose("recipe=two,no_such=1", table, default="one")
    with pytest.raises(ValueError, match="batch_size=0: expected a whole number from 1"):
        choose("batch_size=0", table, default="one", batch_size=0)


@pytest.mark.parametrize(
    ("name", "decay"), {"siglip": 1e-4, "siglip2": 1e-4, "lit_coco": 1e-2}.items()
)
def test_the_decay_of_big_visions_recipes_is_what_it_is_there(name, decay):
    """There the schedule multiplies the decay and the rate does not, which comes before it."""
    config = MODULES[name].get_config()
    optimizer, warmup = config.optimizer, config.schedule.warmup_steps
    rates = {rate: make_schedule("cosine", learning_rate=rate, total_steps=config.total_steps,
                                 warmup_steps=warmup) for rate in (1.0, 1e-3)}  # fmt: skip
    params = {"a": {"kernel": jnp.array([[2.0, -3.0]])}, "b": {"bias": jnp.array([4.0])}}
    ours = make_optimizer(
        params, schedule=rates[1e-3], weight_decay=optimizer.weight_decay,
        mask=optimizer.decay_mask, b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps,
        clip_norm=optimizer.clip_norm,
    )  # fmt: skip
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=optimizer.b2),
        optax.scale(1e-3),
        optax.add_decayed_weights(decay, {"a": {"kernel": True}, "b": {"bias": False}}),
    )
    state, reference = ours.init(params), theirs.init(params)
    for step in (0, warmup // 2, warmup, 2 * warmup):
        gradients = jax.tree.map(lambda x, step=step: x * (step + 1), params)
        updates, state = ours.update(gradients, state, params, step=jnp.asarray(step))
        expected, reference = theirs.update(gradients, reference, params)
        expected = jax.tree.map(lambda x, step=step: -rates[1.0](step) * x, expected)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), updates, expected)


def test_lit_starts_from_a_dual_encoder_as_it_is_converted():
    """transformers' VisionTextDualEncoderModel of a ViT-B/16 and BERT-base, by its defaults."""
    parts = {"config": {}, "text": {"model_type": "bert"}, "vision": {"model_type": "vit"}}
    defaults = {
        "config": dual_encoder.DEFAULTS,
        "text": dual_encoder.TEXT_DEFAULTS(parts["text"]),
        "vision": dual_encoder.VISION_DEFAULTS(parts["vision"]),
    }
    spec = dual_encoder.spec_of(
        *(Section(values, name, defaults[name]) for name, values in parts.items())
    )
    spec = resolve_spec({**spec, "name": "dual", "tokenizer": {"name": "wordpiece"}})
    config = MODULES["lit_coco"].get_config()
    found, wanted = (make_contract(x, {}) for x in (spec, resolve(config, to_run=False).spec))
    override = [name for name in config.init.override if name != "tokenizer"]
    check_contract(found, wanted, free=FREE_IN_FINE_TUNING, override=override)
    with pytest.raises(ValueError, match=r"model\.image\.pooling: 'pooler' in the checkpoint"):
        check_contract(found, wanted, free=FREE_IN_FINE_TUNING, override=override[:1])
    assert config.init.lock_image and config.init.checkpoint


def table_of_docs():
    """Cells of the rows of docs/recipes.md."""
    text = DOCS.read_text(encoding="utf-8").split("<!-- recipes: begin -->\n")[1]
    for line in text.split("<!-- recipes: end -->")[0].splitlines()[2:]:
        yield [cell.strip() for cell in line.split("|")[1:-1]]


def written(number):
    """12.8 million as 12.8M, of three digits."""
    power = int(math.log10(number)) // 3
    return f"{number / 1000**power:.3g}{('', 'k', 'M', 'B')[power]}"


def seen(config):
    """Examples of all stages."""
    settings = validate(config, needs_data=False)
    total = first = 0
    for stage in settings.stages:
        total += (stage["until_step"] - first) * stage.get("batch_size", settings.batch_size)
        first = stage["until_step"]
    return total + (settings.total_steps - first) * settings.batch_size


def test_the_page_has_every_recipe_as_it_is():
    """Command, samples seen, batch and top-1 of docs/recipes.md are those of the configs."""
    found = {}
    for command, _, samples, batch, top1, *_ in table_of_docs():
        found[command.strip("`").removeprefix("configs/")] = (samples, batch, top1)
    wanted = {}
    for command, get_config, arg in [
        *rows(),
        ("lit_coco.py", MODULES["lit_coco"].get_config, None),
    ]:
        config = get_config(arg)
        first = next(iter(config.stages), {}).get("batch_size", config.batch_size)
        top1 = config.target.get("imagenet_top1")
        wanted[command] = (
            written(seen(config)),
            f"{first:,}",
            f"{100 * top1:.1f}" if top1 else "not known",
        )
    assert found == wanted


def test_every_recipe_has_a_recorded_plan():
    """By `python benchmarks/plan.py --cases recipes`."""
    records = "".join(path.read_text(encoding="utf-8") for path in RECORDS.glob("*plan_*aot*.md"))
    rows = {cells[0].strip("`").removeprefix("configs/"): cells[-1] for cells in table_of_docs()}
    assert all(rows.values()), rows
    for topology, case in (cell.split(", ") for cell in {*rows.values()}):
        name = case.strip("`")
        assert plan.CASES[name][1] == topology
        assert re.search(rf"^\| {re.escape(name)} \| [\d,]+ \| {topology} \|", records, re.M), name
