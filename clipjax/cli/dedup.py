"""`clipjax dedup --index DIR [--threshold 0.95] [--out keep.parquet] [--html FILE] [--json FILE]`.

Pairs of pictures whose cosine is at the threshold or above are the same; groups that they connect
keep their largest picture. A source takes what is kept by 'SPEC?filter=keep.parquet:min=1'.
"""

import json
import shlex

from absl import flags

from clipjax import compile_cache
from clipjax.cli.main import given, no_positional
from clipjax.cli.output import show

_INDEX = flags.DEFINE_string("index", None, "Folder that `clipjax embed` wrote.")
_THRESHOLD = flags.DEFINE_float(
    "threshold", 0.95, "Cosine of pictures that are the same.", lower_bound=-1, upper_bound=1
)
_OUT = flags.DEFINE_string("out", None, "Write a filter of what is kept, FILE.parquet.")
_HTML = flags.DEFINE_string("html", None, "Also write a page of the groups, FILE.html.")
_JSON = flags.DEFINE_string("json", None, "Also write the groups to this file.")
_DATA = flags.DEFINE_string("data", None, "SPEC of the pictures, for --html, if they have moved.")

_SHOWN = 50  # groups on the page, and pictures of each
_BAR = 40


def main(argv: list[str]) -> int:
    """Prints the histogram of cosines and how many pictures are kept; writes the filter."""
    no_positional(argv)
    directory = given(_INDEX.value, "--index DIR")
    import numpy as np

    from clipjax.data.source import with_filter
    from clipjax.data.storage.cache import cache_dir
    from clipjax.data.storage.files import check_writable, write
    from clipjax.data.storage.paths import data_path
    from clipjax.embeddings.duplicates import find_duplicates, largest
    from clipjax.embeddings.gallery import Group, gallery, histogram_figure
    from clipjax.embeddings.index import Index
    from clipjax.inference.scoring import new_file, write_scores

    compile_cache.use(cache_dir() / "compiled")
    for path in filter(None, (_OUT.value, _HTML.value, _JSON.value)):
        check_writable(data_path(path))
    if _OUT.value:
        new_file(_OUT.value)
    index = Index.open(directory)
    source = index.source(_DATA.value) if _HTML.value else None
    threshold = _THRESHOLD.value
    found = find_duplicates(index, threshold)
    columns = index.columns(["key", "row", "width", "height"])
    keys, areas = columns["key"], np.multiply(columns["width"], columns["height"], dtype=np.int64)
    kept = np.ones(len(index), np.float32)
    groups = []
    for group in found.groups():
        best = largest(group, areas)
        kept[group] = 0
        kept[best] = 1
        groups.append([best, *(place for place in group.tolist() if place != best)])
    histogram = [
        {"from": float(low), "to": float(high), "pairs": int(count)}
        for low, high, count in zip(found.edges[:-1], found.edges[1:], found.counts, strict=True)
    ]
    _show_histogram(histogram, threshold)
    show(f"{found.pairs:,} pairs at a cosine of {threshold:g} or above")
    show(f"{len(groups):,} groups of {sum(map(len, groups)):,} pictures")
    show(f"kept: {int(kept.sum()):,} of {len(index):,}; left out: {int((1 - kept).sum()):,}")
    if _JSON.value:
        told = {
            "threshold": threshold,
            "pairs": found.pairs,
            "kept": int(kept.sum()),
            "histogram": histogram,
            "groups": [{"kept": keys[g[0]], "left_out": [keys[p] for p in g[1:]]} for g in groups],
        }
        text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
        write(data_path(_JSON.value), text.encode("utf-8"))
    if _HTML.value and source is not None:
        rows = columns["row"]
        shown = [
            Group(
                f"{len(group):,} pictures",
                [rows[place] for place in group[:_SHOWN]],
                [f"{columns['width'][p]} x {columns['height'][p]}" for p in group[:_SHOWN]],
                best=1,
            )
            for group in groups[:_SHOWN]
        ]
        page = gallery(
            source,
            shown,
            title="Pictures that show the same",
            subtitle=directory,
            lede=f"{len(shown)} of {len(groups):,} groups, connected by pairs at a cosine of "
            f"{threshold:g} or above; framed is what is kept, the picture of the most pixels.",
            figure=histogram_figure(histogram, threshold),
        )
        write(data_path(_HTML.value), page)
    if _OUT.value:
        about = index.about["data"]
        facts = {"source": about["spec"], "fingerprint": about["fingerprint"]}
        write_scores(_OUT.value, iter([(keys, kept)]), **facts, threshold=threshold)
        kept_spec = with_filter(about["spec"], f"{_OUT.value}:min=1")
        show(f"{_OUT.value}: use {shlex.quote(kept_spec)}")
    return 0


def _show_histogram(histogram: list[dict], threshold: float) -> None:
    from clipjax.embeddings.gallery import bin_words

    most = max(*(one["pairs"] for one in histogram), 1)
    for one in histogram:
        if one["to"] > one["from"]:
            bar = "#" * round(_BAR * one["pairs"] / most)
            mark = "same" if one["from"] >= threshold else "    "
            show(f"  {bin_words(one):>17} {mark} {one['pairs']:>12,}  {bar}")
