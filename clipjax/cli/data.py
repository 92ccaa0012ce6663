"""`clipjax data check SPEC` verifies a dataset; `clipjax data index SPEC` indexes tar shards.

check   reads everything once and prints a line for each damaged file; exits with 1 if there is one.
index   makes the missing indexes of tar shards and writes them beside the shards, in a bucket too.

SPEC is kind:where[:split][?option=value], as in config.data.source.
"""

import concurrent.futures
import sys

from absl import flags
from tqdm import tqdm

_WORKERS = flags.DEFINE_integer("workers", None, "Files read at the same time; by default, cores.")
_DECODE = flags.DEFINE_bool("decode", False, "check: also decode every picture.")


def main(argv: list[str]) -> int:
    """Runs a command on the dataset of a spec."""
    if len(argv) != 3 or argv[1] not in COMMANDS:
        raise ValueError(
            f"expected `clipjax data COMMAND SPEC`, COMMAND one of {', '.join(COMMANDS)}; found "
            f"{argv[1:]}"
        )
    if _WORKERS.value is not None and _WORKERS.value < 1:
        raise ValueError(f"--workers={_WORKERS.value}: at least 1")
    return COMMANDS[argv[1]](argv[2])


def check(spec: str) -> int:
    """Prints what is damaged; 0 if nothing is."""
    from clipjax.data.checking import check as check_dataset

    examples = parts = 0
    damaged = set()
    results = check_dataset(spec, decode=_DECODE.value, workers=_WORKERS.value)
    with tqdm(unit="part", disable=None) as bar:
        for (count, findings), bar.total in results:
            bar.update()
            parts, examples = parts + 1, examples + count
            for where, what in findings:
                damaged.add(where)
                tqdm.write(f"{where}: {what}", file=sys.stdout)
    print(f"checked {parts} parts with {examples} examples; damaged: {len(damaged) or 'none'}")
    return 1 if damaged else 0


def index(spec: str) -> int:
    """Indexes the tar shards that have no index beside them."""
    from clipjax.data.source import split_options
    from clipjax.data.storage import find_files
    from clipjax.data.tar_indexing import index_beside

    kind, _, where = split_options(spec)[0].partition(":")
    if kind != "tar":
        raise ValueError(f"{spec} has no index: only tar shards have, tar:DIR/*.tar")
    shards = find_files(where)
    with concurrent.futures.ThreadPoolExecutor(_WORKERS.value) as pool:
        made = sum(
            tqdm(pool.map(index_beside, shards), total=len(shards), unit="shard", disable=None)
        )
    print(f"indexed {made} shards; {len(shards) - made} had an index")
    return 0


COMMANDS = {"check": check, "index": index}
