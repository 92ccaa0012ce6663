"""`clipjax cluster --index DIR --clusters 20 [--html FILE] [--out FILE.parquet] [--json FILE]`.

Groups the pictures of an index by k-means, and names each group by the words whose embeddings are
nearest to its centre: `--words` is a file of one a line, or a set of class names that is shipped.
"""

import json

from absl import flags

from clipjax import compile_cache
from clipjax.cli import hints
from clipjax.cli.main import given, no_positional
from clipjax.cli.output import show

_INDEX = flags.DEFINE_string("index", None, "Folder that `clipjax embed` wrote.")
_CLUSTERS = flags.DEFINE_integer("clusters", 20, "How many.", lower_bound=1)
_PASSES = flags.DEFINE_integer("passes", 50, "Over the embeddings, at most.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the first centres.", lower_bound=0)
_WORDS = flags.DEFINE_string(
    "words", "imagenet", "Words to name clusters by: a set of class names, or a file."
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "The model that the index was made with; by default where it was then."
)
_DATA = flags.DEFINE_string("data", None, "SPEC of the pictures, for --html, if they have moved.")
_HTML = flags.DEFINE_string("html", None, "Also write a contact sheet, FILE.html.")
_OUT = flags.DEFINE_string("out", None, "Also write the cluster of each key, a new FILE.parquet.")
_JSON = flags.DEFINE_string("json", None, "Also write the clusters to this file.")
flags.adopt_module_key_flags(hints)

_PICTURES, _NEAREST = 12, 5  # of a cluster on the sheet, and words of each


def main(argv: list[str]) -> int:
    """Prints the size and the nearest words of each cluster, the largest first."""
    no_positional(argv)
    directory = given(_INDEX.value, "--index DIR")
    import numpy as np

    from clipjax.data.classes.named_lists import load_class_names
    from clipjax.data.storage.cache import cache_dir
    from clipjax.data.storage.files import check_writable, write
    from clipjax.data.storage.paths import data_path
    from clipjax.embeddings.clustering import k_means, write_clusters
    from clipjax.embeddings.gallery import Group, gallery
    from clipjax.embeddings.index import Index
    from clipjax.embeddings.model import open_model_of
    from clipjax.inference.scoring import new_file
    from clipjax.interop import Hints

    compile_cache.use(cache_dir() / "compiled")
    for path in filter(None, (_HTML.value, _OUT.value, _JSON.value)):
        check_writable(data_path(path))
    if _OUT.value:
        new_file(_OUT.value)
    index = Index.open(directory)
    if _CLUSTERS.value > len(index):
        raise ValueError(
            f"--clusters={_CLUSTERS.value}: {directory} holds {len(index)} pictures; ask for fewer"
        )
    words = list(dict.fromkeys(load_class_names(_WORDS.value)))
    source = index.source(_DATA.value) if _HTML.value else None
    opened = open_model_of(index, _CHECKPOINT.value, Hints(**hints.hints()))
    head = opened.model.zero_shot(words, "simple")
    found = k_means(index, _CLUSTERS.value, passes=_PASSES.value, seed=_SEED.value)
    order = np.argsort(-(found.centres @ head.weights.T), axis=1, kind="stable")[:, :_NEAREST]
    clusters = []
    for number, nearest in enumerate(order):
        members = found.members(number)
        if len(members):  # of equal pictures there are fewer clusters than were asked for
            named = [words[word] for word in nearest]
            clusters.append((members, named, float(found.cosines[members].mean())))
            show(f"{number:>4}  {len(members):>9,} pictures  {', '.join(named)}")
    show(f"mean cosine with the own centre: {found.mean_cosines[-1]:.4f}")
    best = [index.records(members[:_PICTURES]) for members, _, _ in clusters]
    if _JSON.value:
        told = {
            "seed": _SEED.value,
            "mean_cosines": found.mean_cosines,
            "clusters": [
                {
                    "pictures": len(members),
                    "words": named,
                    "mean_cosine": cosine,
                    "nearest": [record["key"] for record in records],
                }
                for (members, named, cosine), records in zip(clusters, best, strict=True)
            ],
        }
        text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
        write(data_path(_JSON.value), text.encode("utf-8"))
    if _OUT.value:
        write_clusters(_OUT.value, index, found)
    if _HTML.value and source is not None:
        groups = [
            Group(
                f"{', '.join(named)}: {len(members):,} pictures",
                [record["row"] for record in records],
                [f"{cosine:.3f}" for cosine in found.cosines[members[:_PICTURES]]],
            )
            for (members, named, _), records in zip(clusters, best, strict=True)
        ]
        page = gallery(
            source,
            groups,
            title=f"{len(clusters)} clusters",
            subtitle=directory,
            lede=f"Of each cluster the {_PICTURES} pictures nearest to its centre, with their "
            f"cosines, and of {len(words):,} words those nearest to it.",
        )
        write(data_path(_HTML.value), page)
    return 0
