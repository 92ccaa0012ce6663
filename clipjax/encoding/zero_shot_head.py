"""The zero-shot classifier: one text embedding a class, averaged over prompt templates."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from clipjax.array_types import PyTree
from clipjax.encoding.batches import RowLayout, run_batches
from clipjax.encoding.compiled import embed_fn
from clipjax.encoding.encode_fns import EncodeFn
from clipjax.encoding.templates import Templates, fill_templates
from clipjax.layers.normalization import l2_normalise
from clipjax.partitioning import place, replicated


def average_prompts(
    variables: PyTree,
    class_names: Sequence[str],
    templates: Templates,
    *,
    encode_text_fn: EncodeFn,
    tokenizer: Callable[[list[str]], np.ndarray],
    mesh: Mesh,
    batch_size: int,
) -> jax.Array:
    """Builds the zero-shot classifier: one text embedding a class, averaged over the templates.

    w_c = n(mean_t n(f(t(c)))) with n(x) = x / |x| and f the text encoder

    The texts run through the encoder in sharded batches and are summed as they come, so that the
    embeddings of 1,000 classes times 80 templates never stand in memory together.

    Returns:
        `[classes, embed]`, float32, rows of length 1, replicated.

    Reference: arXiv:2103.00020, section 3.1.4.
    """
    prompts = fill_templates(templates, class_names)
    texts = [text for of_class in prompts for text in of_class]
    classes = np.repeat(np.arange(len(prompts)), [len(of_class) for of_class in prompts])
    layout = RowLayout(mesh, len(texts), batch_size)

    def rows(batch: int) -> tuple[np.ndarray, np.ndarray]:
        indices = layout.indices(batch)
        # A padded row repeats the last text and is summed into a class that does not exist.
        real = np.minimum(indices, layout.num_rows - 1)
        tokens = tokenizer([texts[row] for row in real])
        class_ids = np.where(indices < layout.num_rows, classes[real], len(class_names))
        return np.asarray(tokens, np.int32), class_ids.astype(np.int32)

    sums = None
    embed = embed_fn(encode_text_fn, mesh)
    for embeds, class_ids in run_batches(embed, variables, layout, rows):
        if sums is None:
            zeros = np.zeros((len(class_names) + 1, embeds.shape[1]), np.float32)
            sums = place(zeros, replicated(mesh))
        sums = _add_texts(sums, embeds, layout.to_device(class_ids), mesh=mesh)
    return _finish_classifier(sums)


# Compiled once a shape for the whole process: an evaluation that runs every thousand steps must
# not compile every thousand steps.
@functools.partial(jax.jit, static_argnames="mesh")
def _add_texts(
    sums: jax.Array, embeds: jax.Array, class_ids: jax.Array, *, mesh: Mesh
) -> jax.Array:
    sums = sums + jax.ops.segment_sum(embeds, class_ids, num_segments=sums.shape[0])
    return jax.lax.with_sharding_constraint(sums, replicated(mesh))


@jax.jit
def _finish_classifier(sums: jax.Array) -> jax.Array:
    # The sum and the mean have one direction, and the last normalisation keeps only that.
    return l2_normalise(sums[:-1])
