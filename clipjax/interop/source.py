"""A file's tensors under the names that the tables of the formats have.

In this order, and each step is said: the set of weights of a file that holds several, the prefix
that a person names, prefixes that all names carry, the person's renamings, what is ignored,
prefixes that all names carry now, LoRA's differences, Long-CLIP's second table.
"""

import dataclasses
from pathlib import Path

from clipjax.interop import lora
from clipjax.interop.files import open_tensors
from clipjax.interop.tensors import LazyTensor, WeightFileError
from clipjax.interop.weights import Hints
from clipjax.interop.wrappers import with_one_position_table, without_prefix, without_wrappers
from clipjax.trees import matching_leaves, rename_leaves


@dataclasses.dataclass(frozen=True)
class Source:
    """What a file of weights holds.

    Attributes:
        tensors: by the names that a format's table has.
        ignored: names that `ignore` left out.
        notes: what was done to come to these names, one line each.
    """

    tensors: dict[str, LazyTensor]
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_source(path: Path, hints: Hints) -> Source:
    """Opens a file of weights and brings its names to their plain form.

    Raises:
        WeightFileError: the file is damaged, or holds what cannot be brought to that form.
        ValueError: a hint is wrong, has no effect, or is needed.
    """
    file = open_tensors(path, which=hints.which)
    tensors, notes = dict(file.tensors), []
    if "which" in file.metadata:
        notes.append(f"the weights under {file.metadata['which']!r}")
    if hints.strip_prefix:
        tensors, said = without_prefix(tensors, hints.strip_prefix)
        notes += said
    tensors, said = without_wrappers(tensors)
    notes += said
    if hints.rename:
        tensors = rename_leaves(tensors, hints.rename, where="in rename=")
    ignored = matching_leaves(hints.ignore, tensors, where="in ignore=")
    tensors = {name: x for name, x in tensors.items() if name not in ignored}
    if not tensors:
        raise ValueError(f"ignore= leaves nothing of {path}")
    try:
        for step in (
            without_wrappers,
            lambda found: lora.merged(found, path, hints),
            with_one_position_table,
        ):
            tensors, said = step(tensors)
            notes += said
    except WeightFileError as error:
        raise WeightFileError(f"{path}: {error}") from error
    return Source(tensors, tuple(sorted(ignored)), tuple(notes))
