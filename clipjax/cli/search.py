"""`clipjax search --index DIR --query "a red bicycle" [--minus TEXT] | --image FILE [--top 20]`.

DIR is what `clipjax embed` wrote. Texts and pictures are added, what `--minus` says is taken away;
the pictures nearest to the sum are shown, found by exact search over all of them.
"""

import json

from absl import flags

from clipjax import compile_cache
from clipjax.cli import hints
from clipjax.cli.main import given, no_positional
from clipjax.cli.output import show

_INDEX = flags.DEFINE_string("index", None, "Folder that `clipjax embed` wrote.")
_QUERY = flags.DEFINE_multi_string("query", [], "A text to look for; several are added.")
_IMAGE = flags.DEFINE_multi_string("image", [], "A picture to look for; several are added.")
_MINUS = flags.DEFINE_multi_string("minus", [], "A text that is taken away from the query.")
_TOP = flags.DEFINE_integer(
    "top", None, "Pictures to find; by default 20, or all of an index of fewer.", lower_bound=1
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "The model that the index was made with; by default where it was then."
)
_DATA = flags.DEFINE_string("data", None, "SPEC of the pictures, for --html, if they have moved.")
_HTML = flags.DEFINE_string("html", None, "Also write a page of the pictures, FILE.html.")
_JSON = flags.DEFINE_string("json", None, "Also write what is found to this file.")
_FAISS = flags.DEFINE_string(
    "faiss", None, "Search by FAISS, HNSW32 or another factory string; its recall is printed."
)
flags.adopt_module_key_flags(hints)


def main(argv: list[str]) -> int:
    """Prints cosine, key and first caption of what is nearest."""
    no_positional(argv)
    directory = given(_INDEX.value, "--index DIR")
    from clipjax.data.storage.cache import cache_dir
    from clipjax.data.storage.files import check_writable, write
    from clipjax.data.storage.paths import data_path
    from clipjax.embeddings.gallery import Group, gallery, one_line
    from clipjax.embeddings.index import Index
    from clipjax.embeddings.model import open_model_of
    from clipjax.embeddings.queries import check_query, query_of
    from clipjax.embeddings.search import block_rows, recall, search, search_faiss
    from clipjax.interop import Hints

    compile_cache.use(cache_dir() / "compiled")
    for path in filter(None, (_HTML.value, _JSON.value)):
        check_writable(data_path(path))
    index = Index.open(directory)
    k = _TOP.value or min(20, len(index))
    if k > len(index):
        raise ValueError(f"--top={k}: {directory} holds {len(index)} pictures; ask for fewer")
    check_query(_QUERY.value, _IMAGE.value, _MINUS.value)
    source = index.source(_DATA.value) if _HTML.value else None
    opened = open_model_of(index, _CHECKPOINT.value, Hints(**hints.hints()))
    query = query_of(opened, _QUERY.value, _IMAGE.value, _MINUS.value)[None]
    rows = index.whole_rows(block_rows(1, k))
    scores, places = search(query, index.blocks(rows), k)
    found_recall = None
    if _FAISS.value:
        exact = places
        scores, places = search_faiss(query, index.blocks(rows), k, _FAISS.value)
        found_recall = recall(places, exact)
        show(f"FAISS {_FAISS.value}: recall@{k} {found_recall:.4f} of the exact search")
        scores, places = scores[:, places[0] >= 0], places[:, places[0] >= 0]
    records = index.records(places[0])
    cosines = [float(score) for score in scores[0]]
    for record, cosine in zip(records, cosines, strict=True):
        show(one_line(record, f"{cosine:.4f}"))
    asked = [*_QUERY.value, *_IMAGE.value, *(f"- {text}" for text in _MINUS.value)]
    if _JSON.value:
        results = [
            {"cosine": cosine, **record} for record, cosine in zip(records, cosines, strict=True)
        ]
        told = {
            "query": {"texts": _QUERY.value, "images": _IMAGE.value, "minus": _MINUS.value},
            "model": index.about["model"],
            "searched": len(index),
            "results": results,
        }
        if found_recall is not None:
            told["faiss"] = {"factory": _FAISS.value, "recall": found_recall}
        text = json.dumps(told, indent=2, ensure_ascii=False) + "\n"
        write(data_path(_JSON.value), text.encode("utf-8"))
    if _HTML.value and source is not None:
        words = [
            " ".join([f"{cosine:.3f}", *record["captions"][:1]])
            for record, cosine in zip(records, cosines, strict=True)
        ]
        group = Group("Nearest first", [record["row"] for record in records], words)
        page = gallery(
            source,
            [group],
            title=" + ".join(asked).replace("+ - ", "- "),
            subtitle=f"{len(records)} of {len(index):,} pictures",
            lede="Below each picture the cosine of its embedding and the query's, and its caption.",
        )
        write(data_path(_HTML.value), page)
    return 0
