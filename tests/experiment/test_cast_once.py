"""What a step casts once is cast at every use by every model of the zoo."""

import jax
import jax.numpy as jnp
import pytest

from clipjax.experiment.program import casts_of
from clipjax.models import MODELS, abstract_variables, build_model, resolve_spec
from clipjax.partitioning.boxes import unbox
from clipjax.trees import flatten_with_names

# What changes no number: the cast of a slice is the slice of the cast.
SAME_NUMBERS = ("reshape", "squeeze", "slice", "transpose", "broadcast_in_dim")
QUICK = ("ViT-B-32",)
SLOW = (
    "RN50", "siglip-b-16-224", "siglip2-b-16-naflex", "ViT-L-14-CLIPA", "align-base",
    "xlm-roberta-base-ViT-B-32", "xlm-roberta-large-ViT-H-14",
)  # fmt: skip


def inner_jaxprs(equation):
    """(jaxpr, number of the equation's inputs before those of the jaxpr)."""
    for value in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
    ):
        jaxpr = getattr(value, "jaxpr", value)
        if hasattr(jaxpr, "eqns"):
            yield jaxpr, len(equation.invars) - len(jaxpr.invars)


def uses(jaxpr, variable):
    """What a variable becomes: names of the primitives that change its numbers, with the dtype."""
    for equation in jaxpr.eqns:
        for position, found in enumerate(equation.invars):
            if found is not variable:
                continue
            inner = list(inner_jaxprs(equation))
            for body, before in inner:
                yield from uses(body, body.invars[position - before])
            name = equation.primitive.name
            if name in SAME_NUMBERS:
                yield from uses(jaxpr, equation.outvars[0])
            elif not inner:
                yield f"{name} to {equation.outvars[0].aval.dtype}"


def uses_of_kernels(spec):
    """Of each parameter that the step casts, by name, what the model does with it."""
    model = build_model(spec, dtype=jnp.bfloat16)
    variables = unbox(abstract_variables(spec))
    size, length = spec["image_size"], spec["text"]["context_length"]
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)
    traced = jax.make_jaxpr(lambda v, i, t: model.apply(v, i, t))(variables, images, tokens).jaxpr
    names = [name for name, _ in flatten_with_names(variables)]
    is_cast = casts_of(spec)
    return {
        name: set(uses(traced, variable))
        for name, variable in zip(names, traced.invars, strict=False)
        if is_cast(name.removeprefix("params/"))
    }


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_what_the_step_casts_a_model_uses_in_no_other_dtype(name):
    assert name in MODELS
    found = uses_of_kernels(resolve_spec({"name": name}))
    assert len(found) >= 6
    for parameter, kinds in found.items():
        assert kinds == {"convert_element_type to bfloat16"}, (parameter, kinds)
