"""`clipjax embed --checkpoint C --data SPEC --out DIR`: embeddings of all pictures of a dataset.

DIR gets shards with keys, captions and embeddings of length 1, and `index.json`, which `clipjax
search`, `dedup` and `cluster` take. A job that was stopped goes on where it stood: start it again.
"""

import os

from absl import flags
from tqdm import tqdm

from clipjax import compile_cache
from clipjax.cli import hints, joining
from clipjax.cli.main import given, no_positional
from clipjax.cli.output import show
from clipjax.processes import distributed

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Whatever `clipjax.load` reads.")
_DATA = flags.DEFINE_string("data", None, "The dataset: kind:where[:split].")
_OUT = flags.DEFINE_string("out", None, "Folder of the shards, new or of the same job.")
_FORMAT = flags.DEFINE_enum(
    "format", "parquet", ["parquet", "npy"], "Of shards: npy has the rest in Parquet beside it."
)
_STORE = flags.DEFINE_enum(
    "store", "float32", ["float32", "float16"], "Type that embeddings are stored in."
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
_SHARD_SIZE = flags.DEFINE_integer("shard_size", 10_000, "Examples a shard.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 256, "Pictures over the devices of a process.", lower_bound=1
)
_WORKERS = flags.DEFINE_integer(
    "workers", None, "Threads that read and decode; by default, cores.", lower_bound=1
)
_PREPROCESS = flags.DEFINE_enum(
    "preprocess", "clipjax", ["clipjax", "open_clip"], "Whose pixels; open_clip's to compare with."
)
_MAX_BAD = flags.DEFINE_float(
    "max_bad_fraction",
    0.01,
    "Of examples that may be unusable; they are counted by reason.",
    lower_bound=0,
    upper_bound=1,
)
flags.adopt_module_key_flags(hints)
flags.adopt_module_key_flags(joining)


def main(argv: list[str]) -> int:
    """Embeds, and says how many pictures and what was left out."""
    no_positional(argv)
    checkpoint = given(_CHECKPOINT.value, "--checkpoint PATH")
    spec, out = given(_DATA.value, "--data SPEC"), given(_OUT.value, "--out DIR")
    joining.join()
    import jax

    from clipjax.data.sources import make_source
    from clipjax.data.storage.cache import cache_dir
    from clipjax.embeddings.writing import Storing, embed
    from clipjax.inference.loading import find_weights
    from clipjax.inference.opened import open_model
    from clipjax.interop import Hints
    from clipjax.partitioning import make_mesh

    compile_cache.use(cache_dir() / "compiled")
    how = Storing(
        form=_FORMAT.value,
        dtype=_STORE.value,
        shard_size=_SHARD_SIZE.value,
        max_bad_fraction=_MAX_BAD.value,
    )
    path = find_weights(checkpoint)  # a wrong path is told before the data is opened
    source = make_source(spec, path="--data")
    opened = open_model(
        checkpoint,
        Hints(**hints.hints()),
        mesh=make_mesh({"data": -1}, jax.local_devices()),
        batch_size=_BATCH_SIZE.value,
        dtype=_DTYPE.value,
        preprocess=_PREPROCESS.value,
    )
    hub = checkpoint.startswith("hf:")
    total = -(-len(source) // jax.process_count())  # of this process, about
    quiet = None if distributed.is_lead() else True
    with tqdm(total=total, unit="picture", disable=quiet) as bar:
        index = embed(
            opened,
            source,
            out,
            how,
            spec=spec,
            checkpoint=checkpoint if hub else str(path.absolute()),
            threads=_WORKERS.value or os.cpu_count() or 1,
            see=bar.update,
        )
    if distributed.is_lead():
        for reason, number in index.about["skipped"].items():
            show(f"left out, {reason}: {number:,}")
        shards = len(index.about["shards"])
        show(f"{out}: {len(index):,} embeddings of {index.embed_dim} numbers in {shards:,} shards")
    return 0
