"""`clipjax data COMMAND SPEC`: verify, index, pack and look at datasets.

check   reads everything once and prints a line for each damaged file; exits with 1 if there is one.
index   makes the missing indexes of tar shards and writes them beside the shards, in a bucket too.
pack    writes shards: clipjax data pack --from SPEC --to DIR --format tar|arrayrecord
stats   counts, sizes, captions, languages, duplicates; --sheet FILE.html or .png shows pairs.
score   CLIP scores of all pairs: clipjax data score SPEC --checkpoint PATH --out scores.parquet;
        a source takes the best of them by 'tar:DIR/*.tar?filter=scores.parquet:top=0.3'
split   holds examples out: clipjax data split SPEC --holdout 0.1 --out DIR; DIR/train.parquet and
        DIR/holdout.parquet are filters, 'tar:DIR/*.tar?filter=DIR/train.parquet:min=1'

SPEC is kind:where[:split][?option=value], as in config.data.source.
"""

import concurrent.futures
import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from absl import flags
from tqdm import tqdm

from clipjax.cli import hints
from clipjax.cli.main import given
from clipjax.cli.output import show

T = TypeVar("T")

_WORKERS = flags.DEFINE_integer("workers", None, "Files read at the same time; by default, cores.")
_FROM = flags.DEFINE_string("from", None, "pack: the dataset that is packed.")
_TO = flags.DEFINE_string("to", None, "pack: directory of the shards, new or of the same job.")
_FORMAT = flags.DEFINE_string("format", "tar", "pack: tar or arrayrecord.")
_SHARD_SIZE = flags.DEFINE_integer("shard_size", 10_000, "pack: examples a shard.")
_RESIZE = flags.DEFINE_integer("resize", None, "pack: pixels of the shorter side of larger ones.")
_MAX_BAD = flags.DEFINE_float("max_bad_fraction", 0.01, "pack: of examples that are unusable.")
_LIMIT = flags.DEFINE_integer("limit", None, "stats: so many random examples; by default, all.")
_JSON = flags.DEFINE_string("json", None, "stats: also write them to this file.")
_SHEET = flags.DEFINE_string("sheet", None, "stats: .html or .png of random pairs.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "score: of the model that judges.")
_PREPROCESS = flags.DEFINE_enum(
    "preprocess",
    "clipjax",
    ["clipjax", "open_clip"],
    "score: whose pixels; open_clip's to compare with.",
)
_OUT = flags.DEFINE_string("out", None, "score: the Parquet file to write; split: the folder.")
_HOLDOUT = flags.DEFINE_float("holdout", None, "split: the fraction of examples to hold out.")
_TOGETHER = flags.DEFINE_enum(
    "together",
    "pictures",
    ["pictures", "captions"],
    "split: what goes to one side: rows of equal pictures, or of equal captions, too.",
)
_STRATIFY = flags.DEFINE_bool(
    "stratify",
    True,
    "split: of every class the same share; else a hash alone decides, whatever is added later.",
)
_DECODE = flags.DEFINE_bool("decode", False, "check: also decode every picture.")
flags.adopt_module_key_flags(hints)


def main(argv: list[str]) -> int:
    """Runs a command on the dataset of a spec."""
    spec = [_FROM.value] if argv[1:] == ["pack"] and _FROM.value else argv[2:]
    if len(argv) < 2 or argv[1] not in COMMANDS or len(spec) != 1:
        raise ValueError(
            f"expected `clipjax data COMMAND SPEC`, COMMAND one of {', '.join(COMMANDS)}; found "
            f"{argv[1:]}"
        )
    if _WORKERS.value is not None and _WORKERS.value < 1:
        raise ValueError(f"--workers={_WORKERS.value}: at least 1")
    return COMMANDS[argv[1]](spec[0])


def check(spec: str) -> int:
    """Prints what is damaged; 0 if nothing is."""
    from clipjax.data.inspect.checking import check as check_dataset

    examples = parts = 0
    damaged: set[str] = set()
    left_out: Counter[str] = Counter()
    results = check_dataset(spec, decode=_DECODE.value, workers=_WORKERS.value)
    with tqdm(unit="part", disable=None) as bar:
        for checked, bar.total in results:
            bar.update()
            parts, examples = parts + 1, examples + checked.examples
            left_out.update(checked.left_out)
            for where, what in checked.findings:
                damaged.add(where)
                show(f"{where}: {what}")
    left = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    show(
        f"checked {parts} parts with {examples} examples; "
        f"{f'left out on purpose: {left}; ' if left else ''}damaged: {len(damaged) or 'none'}"
    )
    return 1 if damaged else 0


def index(spec: str) -> int:
    """Indexes the tar shards that have no index beside them."""
    from clipjax.data.source import split_options
    from clipjax.data.tar.benchmark_folder import find_shards
    from clipjax.data.tar.index import SUFFIXES
    from clipjax.data.tar.indexing import index_beside

    text, options = split_options(spec)
    kind, _, where = text.partition(":")
    if kind != "tar":
        raise ValueError(f"{spec} has no index: only tar shards have, tar:DIR/*.tar")
    key_ends = options.get("key_ends", "first_dot")
    if key_ends not in SUFFIXES:
        raise ValueError(f"{spec}: key_ends is {key_ends!r}; allowed are {', '.join(SUFFIXES)}")
    shards = find_shards(where)
    with concurrent.futures.ThreadPoolExecutor(_WORKERS.value) as pool:
        done = pool.map(lambda shard: index_beside(shard, key_ends), shards)
        made = sum(tqdm(done, total=len(shards), unit="shard", disable=None))
    show(f"indexed {made} shards; {len(shards) - made} had an index")
    return 0


def pack(spec: str) -> int:
    """Packs a dataset to shards."""
    from clipjax.data.packed.folder import MANIFEST, read_manifest
    from clipjax.data.packing.packer import Packing
    from clipjax.data.packing.packer import pack as pack_source
    from clipjax.data.sources import make_source
    from clipjax.data.storage.files import local_path
    from clipjax.data.storage.paths import DataPath

    if not _TO.value:
        raise ValueError("--to DIR is missing: where the shards go")
    directory = local_path(_TO.value)
    how = Packing(
        format=_FORMAT.value,
        shard_size=_SHARD_SIZE.value,
        resize=_RESIZE.value,
        max_bad_fraction=_MAX_BAD.value,
    )
    source = make_source(spec, path="--from")
    with tqdm(unit="shard", disable=None) as bar:
        for _, bar.total in pack_source(source, directory, how, workers=_WORKERS.value):
            bar.update()
    manifest = read_manifest(DataPath(str(directory / MANIFEST)))
    for reason, count in manifest["skipped"].items():
        show(f"left out, {reason}: {count:,}")
    size = sum(shard["bytes"] for shard in manifest["shards"])
    shards = len(manifest["shards"])
    show(f"{directory}: {manifest['count']:,} examples in {shards:,} shards, {size / 1e6:,.1f} MB")
    return 0


def stats(spec: str) -> int:
    """Prints what a dataset holds."""
    import numpy as np

    from clipjax.data.inspect.contact_sheet import SUFFIXES, contact_sheet
    from clipjax.data.inspect.statistics import measure, summarise
    from clipjax.data.sources import make_source
    from clipjax.data.storage.files import check_writable, write
    from clipjax.data.storage.paths import data_path

    if _LIMIT.value is not None and _LIMIT.value < 1:
        raise ValueError(f"--limit={_LIMIT.value}: at least 1; without it, all examples")
    table, sheet = (data_path(to) if to else None for to in (_JSON.value, _SHEET.value))
    if sheet and sheet.suffix not in SUFFIXES:
        raise ValueError(f"--sheet={_SHEET.value}: a sheet is a file {' or '.join(SUFFIXES)}")
    for to in filter(None, (table, sheet)):
        check_writable(to)  # before the work
    source = make_source(spec)
    order = np.random.default_rng(0).permutation(len(source))[: _LIMIT.value]
    chunks = measure(source, np.sort(order), workers=_WORKERS.value)
    found = summarise(_shown_as_made(chunks, len, len(order), "example"))
    for name, value in found.items():
        if isinstance(value, dict):
            value = "  ".join(f"{key} {_shown(part)}" for key, part in value.items())
        show(f"{name}: {value or 'none'}")
    if table:
        write(table, (json.dumps(found, indent=1) + "\n").encode("utf-8"))
    if sheet:
        write(sheet, contact_sheet(source, spec, order[:96], sheet.suffix))
        show(f"{sheet}: {len(order[:96])} pairs")
    return 0


def score(spec: str) -> int:
    """Scores all pairs of a dataset."""
    from clipjax.data.source import split_options, with_filter
    from clipjax.data.sources import make_source
    from clipjax.data.storage.files import check_writable
    from clipjax.data.storage.paths import data_path
    from clipjax.inference.loading import read_model
    from clipjax.inference.scoring import new_file, score_pairs, write_scores
    from clipjax.interop import Hints

    checkpoint, out = given(_CHECKPOINT.value, "--checkpoint PATH"), given(_OUT.value, "--out FILE")
    if spec.startswith("mix:"):
        raise ValueError(f"{spec}: score the sources of a mix one by one, each has its own filter")
    options = split_options(spec)[1]
    if "filter" in options:
        raise ValueError(
            f"{spec} has a filter: score all of the data, and give both afterwards, "
            "filter=FILE.parquet:min=1,SCORES.parquet:top=0.3"
        )
    new_file(out)  # before the model is loaded
    check_writable(data_path(out))
    source = make_source(spec)
    model = read_model(checkpoint, Hints(**hints.hints()), preprocess=_PREPROCESS.value)
    unusable: Counter[str] = Counter()
    scored = score_pairs(model, source, unusable)
    count = write_scores(
        out,
        _shown_as_made(scored, lambda part: len(part[0]), len(source), "pair"),
        source=spec,
        fingerprint=source.fingerprint(),
        model=model.spec["name"],
        pixels=_PREPROCESS.value,
    )
    for reason, number in sorted(unusable.items()):
        show(f"without a score, {reason}: {number:,}")
    show(f"{out}: {count:,} scores; use {shlex.quote(with_filter(spec, f'{out}:top=0.3'))}")
    return 0


def split(spec: str) -> int:
    """Divides a dataset in two, by a hash."""
    from clipjax.data.inspect.splitting import count_classes
    from clipjax.data.inspect.splitting import split as split_source
    from clipjax.data.source import keys_of, with_filter
    from clipjax.data.sources import make_source
    from clipjax.data.storage.files import check_writable
    from clipjax.data.storage.paths import data_path
    from clipjax.inference.scoring import new_file, write_scores

    holdout, out = given(_HOLDOUT.value, "--holdout 0.1"), given(_OUT.value, "--out DIR")
    if spec.startswith("mix:"):
        raise ValueError(f"{spec}: split the sources of a mix one by one, each has its own filter")
    files = {side: str(data_path(out) / f"{side}.parquet") for side in ("train", "holdout")}
    for file in files.values():
        new_file(file)
        check_writable(data_path(file))
    source = make_source(spec)
    by_captions = _TOGETHER.value == "captions"
    found = split_source(source, holdout, captions=by_captions, stratify=_STRATIFY.value)
    held, total = int(found.held.sum()), len(source)
    show(f"held out: {held:,} of {total:,} examples ({held / total:.1%}); {total - held:,} left")
    show(f"decided one by one: {found.units:,} {_TOGETHER.value}")
    for reason, count in sorted(found.unusable.items()):
        show(f"by the picture alone, {reason}: {count:,}")
    parts, sizes = count_classes(found.labels, found.held)
    there = sizes > 0
    if there.any():
        shares = parts[there] / sizes[there]
        none = int((parts[there] == 0).sum())
        show(
            f"of {there.sum():,} classes, {shares.min():.1%} to {shares.max():.1%} of the "
            f"examples are held out; {none:,} {'class has' if none == 1 else 'classes have'} none"
        )
    keys, whole = list(keys_of(source)), getattr(source, "whole", source)
    facts = {"source": spec, "fingerprint": whole.fingerprint(), "holdout": holdout}
    facts |= {"together": _TOGETHER.value, "stratify": _STRATIFY.value}
    for side, file in files.items():
        chosen = (found.held == (side == "holdout")).astype("float32")
        write_scores(file, iter([(keys, chosen)]), **facts)
        show(f"{file}: use {shlex.quote(with_filter(spec, f'{file}:min=1'))}")
    return 0


def _shown_as_made(
    parts: Iterable[T], size: Callable[[T], int], total: int, unit: str
) -> Iterator[T]:
    with tqdm(total=total, unit=unit, disable=None) as bar:
        for part in parts:
            bar.update(size(part))
            yield part


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return f"{value:,g}" if isinstance(value, float) else f"{value:,}"
    largest = f", largest {value['largest'][0]}" if value["largest"] else ""
    return f"{value['superfluous']:,} superfluous in {value['groups']:,} groups{largest};"


COMMANDS = {
    "check": check,
    "index": index,
    "pack": pack,
    "score": score,
    "split": split,
    "stats": stats,
}
