"""Functions of a tower, compiled for the devices of a mesh."""

import contextlib
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from clipjax.array_types import PyTree
from clipjax.compiler_flags import encoding_flags
from clipjax.encoding.encode_fns import EncodeFn, EncodeTower, compute_dtype
from clipjax.layers.normalization import l2_normalise
from clipjax.partitioning import LOGICAL_AXIS_RULES, batch_sharding
from clipjax.partitioning.boxes import rules_in_force, under_rules
from clipjax.platforms import platform_of

RULES = LOGICAL_AXIS_RULES["replicated"].params  # variables whole, rows over the batch's axes


class CompiledFn:
    """A function of variables and rows, compiled: one result a row, over the mesh's batch axes.

    An `EncodeTower` takes its platform's attention kernel, see its `on`.
    """

    def __init__(self, function: EncodeFn, mesh: Mesh) -> None:
        own = function.on(mesh) if isinstance(function, EncodeTower) else function
        dtype = compute_dtype(function)
        flags = encoding_flags(platform_of(mesh), mesh.devices.size, dtype=dtype)
        compiled = functools.partial(jax.jit, out_shardings=batch_sharding(mesh))
        self._inside = compiled(functools.partial(self._results, function))
        self._run = compiled(functools.partial(self._results, own), compiler_options=flags or None)
        self._function, self._mesh = function, mesh

    @staticmethod
    def _results(function: EncodeFn, variables: PyTree, rows: PyTree) -> jax.Array:
        return function(variables, rows)

    def __call__(self, variables: PyTree, rows: PyTree) -> jax.Array:
        """Computes the results of rows on the mesh, `[batch, ...]`."""
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((variables, rows))):
            return self._inside(variables, rows)  # JAX takes options of the outermost program alone
        try:
            scope = self._scope()
        except ValueError:  # JAX sets no mesh while it traces, be it something else
            return self._inside(variables, rows)
        with scope:
            return self._run(variables, rows)

    def trace(self, variables: PyTree, rows: PyTree) -> jax.stages.Traced:
        """The program, not compiled; shapes with shardings are enough."""
        with self._scope():
            return self._run.trace(variables, rows)

    def _scope(self) -> contextlib.ExitStack:
        """The mesh and rules that say where a kernel's rows lie; those of a run stay in force."""
        own = jax.sharding.get_abstract_mesh() == self._mesh.abstract_mesh
        rules = (rules_in_force() if own else None) or RULES
        stack = contextlib.ExitStack()
        stack.enter_context(jax.set_mesh(self._mesh))
        stack.enter_context(under_rules(rules))
        return stack

    def cut(self, rows: PyTree, mesh: Mesh) -> PyTree:
        """Leaves out what the function does not read of rows on the host."""
        return self._function.cut(rows, mesh) if isinstance(self._function, EncodeTower) else rows


class EmbedFn(CompiledFn):
    """An encode function, compiled: float32, of length 1."""

    @staticmethod
    def _results(function: EncodeFn, variables: PyTree, rows: PyTree) -> jax.Array:
        return l2_normalise(function(variables, rows).astype(jnp.float32))


@functools.lru_cache(maxsize=16)
def embed_fn(encode_fn: EncodeFn, mesh: Mesh) -> EmbedFn:
    """Compiles an encode function.

    Cached, so that evals that share an encode function and a batch size share one compilation.
    """
    return EmbedFn(encode_fn, mesh)
