"""Drawings of emoji and their names: what the sources of one artist each have in common."""

import abc
import io
import json
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from clipjax.data.images.areas import areas_of
from clipjax.data.packed.records import RecordFile, pack_record, write_records
from clipjax.data.source import Example
from clipjax.data.sources.emoji_names import (
    LANGUAGES,
    SPLITS,
    Emoji,
    demo_package,
    demo_versions,
    has_skin_tone,
    splits_of,
)
from clipjax.data.storage.cache import build_once, cache_dir
from clipjax.files import sha256

PARTS = ("image", "fill", "lines")
CACHE_VERSION = 1
SIDE = 96  # pixels of a cached picture
LOOK = 72  # pixels of the rendering that says where on its canvas a drawing is
MARGIN = 1.12  # side of the crop over the longer side of what is drawn


class EmojiDrawings(abc.ABC):
    """One artist's drawings of emoji, and the Unicode names of what they show.

    The pictures are rendered once into `$CLIPJAX_CACHE` and held decoded in memory afterwards.
    The label of an example is its place in the split, and `class_names` are the English names:
    zero-shot classification asks which name belongs to a drawing. The splits are of the same emoji
    for every artist.

    Args:
        where: `all`, `unseen` (a tenth of the drawings, by the hash of their code points), `train`
            (all others), `validation` (a tenth of `all`, out of `train`, to choose a recipe by) or
            `fit` (`train` without `validation`).
        language: the text's language, one of `LANGUAGES`; `all` gives a map from language to text.
        aliases: whether the text is `(name, alias...)` instead of the name alone.
        layers: whether the image is a sheet u8 `[2 * side, side, 4]`, the drawing without its
            lines above its lines alone, for transforms that restyle them.
        areas: whether the drawing's areas stand below these, `[3 * side, side, 4]`: see `areas_of`.
        part: `image`, `fill` (the drawing without its lines) or `lines` (these alone): what another
            artist may draw, for evaluations.
        side: the pictures' side in pixels, at most `SIDE`; small ones are faster to transform.
        repeat_plain: how often drawings without a skin tone come in an epoch. Two thirds of the
            drawings differ from another one in the skin tone alone.
        limit: use only the first so many pairs, for tests.

    Raises:
        ValueError: for another split or language, or where the `[demo]` extra is missing.
    """

    # What an artist's class says, besides the methods below.
    kind: ClassVar[str]
    distributions: ClassVar[tuple[str, ...]]  # of PyPI, that make the pictures what they are
    canvas: ClassVar[int]  # side of every drawing, in its own units
    has_lines: ClassVar[bool]  # whether a drawing's lines are told from its fill

    @classmethod
    @abc.abstractmethod
    def pairs(cls) -> list[Emoji]:
        """Lists the emoji that the artist has drawn, by code point."""

    @classmethod
    @abc.abstractmethod
    def svg(cls, codepoints: str) -> str:
        """Reads a drawing."""

    @classmethod
    def split_lines(cls, svg: str, box: Sequence[float]) -> tuple[str, ...]:
        """Gives a drawing, as seen through a box; the drawing without its lines, and these alone.

        The latter two come from an artist that `has_lines`.
        """
        return (ElementTree.tostring(cls.seen_through(svg, box), encoding="unicode"),)

    @classmethod
    def render_hair(cls, codepoints: str, box: Sequence[float], side: int) -> np.ndarray:
        """Renders the hair of a drawing alone, u8 `[side, side, 4]`, where it is known."""
        return np.zeros((side, side, 4), np.uint8)

    def __init__(
        self,
        where: str = "all",
        *,
        language: str = "en",
        aliases: bool = False,
        layers: bool = False,
        areas: bool = False,
        part: str = "image",
        side: int = SIDE,
        repeat_plain: int = 1,
        limit: int | None = None,
    ):
        kind = self.kind
        where = where or "all"
        if where not in SPLITS:
            raise ValueError(f"{kind} has no split {where!r}; it has {', '.join(SPLITS)}")
        if language not in (*LANGUAGES, "all"):
            raise ValueError(f"{kind} has no {language!r}; it has {', '.join(LANGUAGES)}, all")
        if aliases and language not in ("en", "all"):
            raise ValueError(f"{kind} has aliases in English only: set aliases=False")
        if not 1 <= side <= SIDE or repeat_plain < 1:
            raise ValueError(
                f"{kind} has side={side} and repeat_plain={repeat_plain}; side is 1..{SIDE}, "
                "repeat_plain at least 1"
            )
        parts = PARTS if self.has_lines else PARTS[:1]
        if part not in parts or (layers and part != "image"):
            raise ValueError(
                f"{kind} has no part {part!r}{' in layers' * layers}; it has {', '.join(parts)}, "
                "and layers=true has fill and lines at once"
            )
        if areas and not layers:
            raise ValueError(f"{kind} has areas=true beside layers=true only: set both")
        self._records = open_records(type(self), limit)
        self._options = [where, language, aliases, layers, side, repeat_plain]
        self._options += [part] * (part != "image") + ["areas"] * areas
        self._side = side
        self._areas = areas
        self._blobs: tuple[str, ...] = (part,)
        if layers:
            self._blobs = PARTS[1:] if self.has_lines else PARTS[:1]
        self._no_lines = layers and not self.has_lines
        self._images: dict[int, np.ndarray] = {}
        self._texts: list[str | tuple[str, ...] | dict[str, str | tuple[str, ...]]] = []
        self._places, self._keys = [], []
        self._order: list[int] = []
        names: list[str] = []
        for place, (key, meta) in enumerate(self._records.manifest["emoji"].items()):
            if where in splits_of(key):
                name = meta["names"]["en" if language == "all" else language]
                text = (name, *meta["aliases"]) if aliases else name
                if language == "all":
                    text = {**meta["names"], "en": text}
                self._order += [len(names)] * (1 if has_skin_tone(key) else repeat_plain)
                self._places.append(place)
                self._keys.append(key)
                self._texts.append(text)
                names.append(name)
        self.class_names = tuple(names)
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # For worker processes: each decodes what it needs.
        return {**self.__dict__, "_lock": None, "_images": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Example:
        label = self._order[index]
        if label not in self._images:
            with self._lock:  # one decoding at a time is enough: it happens once a picture
                self._images[label] = self._decode(label)
        return {
            "image": self._images[label],
            "text": self._texts[label],
            "key": self._keys[label],
            "label": label,
        }

    def fingerprint(self) -> str:
        """SHA-256 of the rendered pictures, the names and the options."""
        identity = json.dumps([self._records.manifest["sha256"], self._options], sort_keys=True)
        return sha256(identity)

    def _decode(self, label: int) -> np.ndarray:
        record, side = self._records[self._places[label]], self._side
        images = [Image.open(io.BytesIO(record["blobs"][n])).convert("RGBA") for n in self._blobs]
        if side != SIDE:
            images = [image.resize((side, side), Image.Resampling.LANCZOS) for image in images]
        layers = [np.asarray(image) for image in images]
        if self._no_lines:
            layers.append(np.zeros_like(layers[0]))
        if self._areas:
            hair = self.render_hair(self._keys[label], record["meta"]["box"], side)
            fill, lines = layers
            layers.append(areas_of(fill, lines, hair))
        return np.concatenate(layers)

    @classmethod
    def seen_through(cls, svg: str, box: Sequence[float]) -> ElementTree.Element:
        """A drawing whose view box is another one: left, top, side."""
        left, top, side = box
        root = ElementTree.fromstring(svg)
        # A melon of Twemoji is as wide as all others, and as high as it is drawn.
        if not (root.get("viewBox") or "").startswith(f"0 0 {cls.canvas} "):
            raise ValueError(f"a drawing has the view box {root.get('viewBox')!r}")
        root.set("viewBox", f"{left} {top} {side} {side}")
        return root


def open_records(artist: type[EmojiDrawings], limit: int | None = None) -> RecordFile:
    """Opens the rendered pictures, rendering them first where that has not been done."""
    versions = demo_versions(artist.distributions)
    identity = [CACHE_VERSION, SIDE, MARGIN, limit, versions]
    name = sha256(json.dumps(identity))[:16]
    directory = cache_dir() / f"{artist.kind}-{name}"
    file = f"{artist.kind}.array_record"

    def build(work: Path) -> None:
        pairs = artist.pairs()[:limit]
        logging.info("Rendering %d drawings of %s into %s.", len(pairs), artist.kind, directory)
        emoji = {p.codepoints: {"names": p.names, "aliases": p.aliases} for p in pairs}
        write_records(work / file, render_all(artist, pairs), versions=versions, emoji=emoji)

    def open_checked(built: Path) -> RecordFile:
        records = RecordFile(built / file)
        if len(records.manifest.get("emoji", ())) != len(records):
            raise ValueError(f"{built} holds {len(records)} pictures with other names.")
        return records

    return build_once(directory, build, open_checked)


def render_all(artist: type[EmojiDrawings], pairs: list[Emoji]) -> Iterator[bytes]:
    """Renders each drawing and its parts, cropped to it by moving the view box."""
    for pair in tqdm(pairs, desc=f"rendering {artist.kind}", unit="picture", mininterval=0.5):
        svg = artist.svg(pair.codepoints)
        canvas = artist.seen_through(svg, (0, 0, artist.canvas))
        look = render(ElementTree.tostring(canvas, encoding="unicode"), LOOK)
        box = drawing_box(look, artist.canvas)
        parts = dict(zip(PARTS, artist.split_lines(svg, box), strict=False))
        yield pack_record(
            key=pair.codepoints,
            text=(pair.names["en"], *pair.aliases),
            blobs={name: _png(part, SIDE) for name, part in parts.items()},
            meta={"names": pair.names, "aliases": pair.aliases, "box": box},
        )


def drawing_box(picture: Image.Image, canvas: int) -> tuple[float, float, float]:
    """Finds the square around what is drawn: (left, top, side) in units of the canvas."""
    drawn = picture.getchannel("A").point(lambda alpha: 255 * (alpha > 8))
    left, top, right, bottom = drawn.getbbox() or (0, 0, *picture.size)
    side = max(right - left, bottom - top) * MARGIN
    unit = canvas / picture.width
    return (left + right - side) / 2 * unit, (top + bottom - side) / 2 * unit, side * unit


def render(svg: str, side: int) -> Image.Image:
    """Renders a drawing as RGBA."""
    return Image.open(io.BytesIO(_png(svg, side))).convert("RGBA")


def _png(svg: str, side: int) -> bytes:
    resvg_py = demo_package("resvg_py")
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))
