"""Data sources by name: `make_source("openmoji:train")`.

Options mean the same in all kinds that take them:

    class_names   names of the classes that are numbers, or the order of those that are names
    first_label   the number of the first class; by default 0
    language      which caption of a map is used; by default all are
    captions      `lines` makes each line of a text a caption; `whole`, the default, does not
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clipjax.building import build, check_values
from clipjax.data.classes.named_lists import known_class_names, load_class_names, warn_of_twins
from clipjax.data.source import DataSource, check_source, parse_spec, split_options
from clipjax.data.sources.arrayrecord import PackedRecords
from clipjax.data.sources.caption_groups import Aro, SugarCrepe, Winogavil, Winoground
from clipjax.data.sources.coco import Coco
from clipjax.data.sources.folder import Folder
from clipjax.data.sources.hashed_subset import HashedSubset
from clipjax.data.sources.idx import Idx
from clipjax.data.sources.mix import Mix
from clipjax.data.sources.openmoji import OpenMoji
from clipjax.data.sources.parquet import Parquet
from clipjax.data.sources.pictures import Pictures
from clipjax.data.sources.score_filter import ScoreFilter
from clipjax.data.sources.synthetic import Synthetic
from clipjax.data.sources.table import Table
from clipjax.data.sources.tar import TarShards
from clipjax.data.sources.tfds import Tfds
from clipjax.data.sources.translated import Crossmodal3600, Xtd10
from clipjax.data.sources.twemoji import Twemoji
from clipjax.data.sources.uid_filter import SUFFIXES as UID_SUFFIXES
from clipjax.data.sources.uid_filter import UidFilter

# kind -> constructor(where, [split,] **options)
SOURCES = {
    "aro": Aro,
    "arrayrecord": PackedRecords,
    "coco": Coco,
    "csv": Table,
    "folder": Folder,
    "idx": Idx,
    "jsonl": Table,
    "openmoji": OpenMoji,
    "parquet": Parquet,
    "pictures": Pictures,
    "sugarcrepe": SugarCrepe,
    "synthetic": Synthetic,
    "tar": TarShards,
    "tfds": Tfds,
    "twemoji": Twemoji,
    "winogavil": Winogavil,
    "winoground": Winoground,
    "xm3600": Crossmodal3600,
    "xtd10": Xtd10,
}


def make_source(
    spec: str | Mapping[str, Any], *, path: str = "data.source", plugins: Sequence[str] = ()
) -> DataSource:
    """Opens a data source.

    Args:
        spec: `kind:where[:split][?option=value&...]`, e.g. `openmoji:train?aliases=true`, or a
            mapping that has it under `spec` and options beside it. `mix:` has a form of its own,
            see `Mix`; every other kind has the option `filter`, see `ScoreFilter` and `UidFilter`.
            Where a kind takes `class_names`, they are a list, or what `load_class_names` takes.
            Or a mapping without `spec`, whose `name` is `module:Name` of a class of one's own and
            whose other keys are its arguments.

    Raises:
        ValueError: for an unknown kind, option or split, or data that is missing or damaged.
    """
    if isinstance(spec, Mapping) and "name" in spec and "spec" not in spec:
        if spec["name"] in [*SOURCES, "mix"]:
            raise ValueError(
                f"{path}.name = {spec['name']!r} is a kind: write "
                f'{{"spec": "{spec["name"]}:where"}}, with options beside it; a name is '
                "module:Name of a class of your own"
            )
        source = build(spec, {}, path=path, plugins=plugins)
        check_source(source, path)
        if len(source) == 0:
            raise ValueError(f"{path} = {spec['name']!r} is empty: it holds no image-text pair")
        return source
    options: dict[str, Any] = dict(spec) if isinstance(spec, Mapping) else {"spec": spec}
    text: Any = options.pop("spec", None)
    if isinstance(text, str) and text.startswith("mix:"):
        if options:
            raise ValueError(f"{path}: {', '.join(options)} belong to the sources of the mix")
        return Mix(text[4:], make=lambda part, i: make_source(part, path=f"{path}[{i}]"))
    text, written = split_options(text)
    if twice := options.keys() & written.keys():
        raise ValueError(f"{path}: {', '.join(sorted(twice))} is given twice")
    options |= written
    rule, examples = options.pop("filter", None), options.pop("examples", None)
    kind, where, split = parse_spec(text)
    if kind not in SOURCES:
        message = (
            f"{path} = {text!r} is of an unknown kind {kind!r}; known are "
            f"{', '.join(sorted([*SOURCES, 'mix']))}, as in `openmoji:train` or `folder:DIR`"
        )
        if kind in known_class_names():
            message += (
                f". Of {kind} names and templates are known (class_names=, templates=); its "
                f"pictures are where you have them, as folder:DIR or tar:DIR/wds_{kind}/test"
            )
        elif os.path.isdir(os.path.expanduser(text)):
            message += (
                f". For this folder write folder:{text}, with classes or captions, or "
                f"pictures:{text}, with neither"
            )
        raise ValueError(message)
    if isinstance(options.get("class_names"), str):
        options["class_names"] = load_class_names(options["class_names"])
    elif isinstance(options.get("class_names"), list | tuple):
        names = enumerate(options["class_names"])
        warn_of_twins({f"{path}.class_names[{place}]": name for place, name in names})
    place: dict[str, Any] = {"where": where}
    if "split" in inspect.signature(SOURCES[kind]).parameters:
        place["split"] = split
    elif split is not None:
        place["where"] = f"{where}:{split}"  # a path may hold a colon
    for key in ("where", "split", "name"):
        if key in options:
            raise ValueError(f"{path}.{key} is part of the spec: `kind:where[:split]`")
    check_options(SOURCES[kind], options, path)
    source = build({"name": kind, **options}, SOURCES, path=path, **place)
    if len(source) == 0:
        raise ValueError(f"{path} = {text!r} is empty: it holds no usable image-text pair")
    rules = rule if isinstance(rule, tuple | list) else [] if rule is None else [rule]
    by_uid = [rule for rule in rules if isinstance(rule, str) and rule.endswith(UID_SUFFIXES)]
    # Uids are those of the whole data; the best of what is left are the last.
    for rule in (*by_uid, *(rule for rule in rules if rule not in by_uid)):
        source = UidFilter(source, rule) if rule in by_uid else ScoreFilter(source, rule)
        if len(source) == 0:
            mend = "lower the `min`, or take a larger `top`"
            raise ValueError(
                f"{path} = {text!r} is empty: its filter {rule!r} keeps none of the examples; "
                f"{'take the list of uids of this data' if rule in by_uid else mend}"
            )
    return source if examples is None else HashedSubset(source, examples)


def check_options(constructor: Callable, options: Mapping[str, Any], path: str) -> None:
    """Compares options with the constructor's annotations; ValueError if one does not fit."""
    note = " (one of digits stands beside `spec` in a mapping)"
    check_values(constructor, options, path, note=note)
