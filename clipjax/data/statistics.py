"""What a dataset holds: sizes, captions, languages, duplicates, and a sheet of random pairs."""

import base64
import collections
import concurrent.futures
import hashlib
import html
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from clipjax.data.captions import flatten
from clipjax.data.preprocess import as_pil, to_rgb
from clipjax.data.source import DataSource, SampleError

PERCENTILES = (0, 5, 50, 95, 100)
_THUMBNAIL = 160  # pixels
_CHUNK = 64  # examples of one task


class Measured(NamedTuple):
    """What is kept of one example."""

    key: str
    width: int
    height: int
    num_bytes: int
    captions: list[tuple[str, str]]
    exact: bytes
    look: int


def measure(
    source: DataSource, indices: np.ndarray, *, workers: int | None = None
) -> Iterator[list[Measured | SampleError]]:
    """Reads and decodes examples in threads, giving them in order, some at a time.

    Args:
        source: of which.
        indices: which examples.
        workers: threads; by default one a core.
    """

    def work(chunk: np.ndarray) -> list[Measured | SampleError]:
        return [_measure(source, int(index)) for index in chunk]

    chunks = np.array_split(indices, max(1, len(indices) // _CHUNK))
    with concurrent.futures.ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        yield from pool.map(work, chunks)


def _measure(source: DataSource, index: int) -> Measured | SampleError:
    try:
        example = source[index]
        image = to_rgb(as_pil(example["image"]))
    except SampleError as error:
        return error
    data = example["image"] if isinstance(example["image"], bytes) else np.asarray(image).tobytes()
    return Measured(
        key=example["key"],
        width=image.width,
        height=image.height,
        num_bytes=len(data),
        captions=list(flatten(example["text"])),
        exact=hashlib.sha256(data).digest(),
        look=difference_hash(image),
    )


def difference_hash(image: Image.Image) -> int:
    """64 bits that a picture keeps when it is resized or encoded anew.

    Bit i says whether a pixel of the grey 9 x 8 reduction is brighter than its right neighbour.
    """
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX)).astype(int)
    bits = (small[:, :-1] > small[:, 1:]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def summarise(found: Iterator[list[Measured | SampleError]]) -> dict[str, Any]:
    """Counts what was measured.

    Returns:
        JSON-able: `examples` and `unusable` by reason; `width`, `height`, `bytes`,
        `captions_per_image`, `words`, `characters`, each at PERCENTILES; `languages`;
        `duplicates`: how many pictures are there twice or more, byte for byte and by look, and
        the keys of the largest groups.
    """
    unusable: collections.Counter[str] = collections.Counter()
    languages: collections.Counter[str] = collections.Counter()
    rows, words, characters = [], [], []
    groups: tuple[dict[Any, list[str]], dict[Any, list[str]]] = ({}, {})
    for item in (item for chunk in found for item in chunk):
        if isinstance(item, SampleError):
            unusable[item.reason] += 1
            continue
        rows.append((item.width, item.height, item.num_bytes, len(item.captions)))
        for language, text in item.captions:
            languages[language] += 1
            words.append(len(text.split()))
            characters.append(len(text))
        for group, name in zip(groups, (item.exact, item.look), strict=True):
            group.setdefault(name, []).append(item.key)
    columns = np.array(rows).reshape(-1, 4).T
    names = ("width", "height", "bytes", "captions_per_image")
    return {
        "examples": len(rows),
        "unusable": dict(sorted(unusable.items())),
        **{name: _percentiles(column) for name, column in zip(names, columns, strict=True)},
        "words": _percentiles(words),
        "characters": _percentiles(characters),
        "languages": dict(sorted(languages.items())),
        "duplicates": {
            "byte for byte": _duplicates(groups[0]),
            "by look": _duplicates(groups[1]),
        },
    }


def _percentiles(values: Any) -> dict[str, float]:
    if len(values) == 0:
        return {}
    found = np.percentile(values, PERCENTILES, method="nearest")
    return {f"p{p}": float(value) for p, value in zip(PERCENTILES, found, strict=True)}


def _duplicates(groups: Mapping[Any, list[str]]) -> dict[str, Any]:
    several = sorted((keys for keys in groups.values() if len(keys) > 1), key=len, reverse=True)
    return {
        "groups": len(several),
        "superfluous": sum(len(keys) - 1 for keys in several),
        "largest": [keys[:5] for keys in several[:5]],
    }


def contact_sheet(source: DataSource, title: str, indices: np.ndarray) -> str:
    """Writes an HTML page that holds pictures with their captions; one file, no scripts.

    Args:
        source: of which.
        title: heading of the page.
        indices: which examples.
    """
    figures = []
    for index in indices:
        try:
            example = source[int(index)]
            image = to_rgb(as_pil(example["image"]))
        except SampleError as error:
            figures.append(f"<figure><p>{html.escape(str(error))}</p></figure>")
            continue
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)
        picture = base64.b64encode(file.getvalue()).decode()
        lines = [
            html.escape(text if language is None else f"{language}: {text}")
            for language, text in flatten(example["text"], None)
        ]
        figures.append(
            f'<figure><img src="data:image/jpeg;base64,{picture}" alt="">'
            f"<figcaption>{'<br>'.join(lines)}</figcaption>"
            f"<small>{html.escape(example['key'])}</small></figure>"
        )
    return (
        f'<!doctype html><html><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1><main>"
        f"{''.join(figures)}</main></body></html>\n"
    )


_STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em}"
    "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(180px,1fr));gap:1em}"
    "figure{margin:0}img{max-width:100%}small{color:#888;overflow-wrap:anywhere}"
)
