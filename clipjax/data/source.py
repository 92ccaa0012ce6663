"""What a data source is, how one is named, and how it says that an example is unusable."""

import bisect
import concurrent.futures
import hashlib
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, Protocol, TypedDict, cast, runtime_checkable

import numpy as np
from PIL import Image

from clipjax.data import permutation
from clipjax.ranges import FieldError
from clipjax.redaction import redact

_READERS = 8  # threads that read for identities
# A `?` alone is a wildcard of a file name.
_OPTIONS = re.compile(r"\?([a-z_]+=.*)$")


# What a source may say of itself, None where it does not know; one made of others says it, too:
# - captions: "lines" or "whole", what the lines of a text are;
# - group_names: what its examples say their groups of, in `groups`, for an evaluation;
# - empty_classes: classes that its folders name, and of which it has no picture;
# - first_label: the number that stands for the first of class names given to an evaluation;
# - matched: how its classes found the names that it was given, one of `classes.matching.MATCHED`;
# - numbered_from: the number of the first class, where the source was told it;
# - repeated: how many rows with a class name the picture of a row before them, and which, as text;
# - several: whether examples have several classes, in `labels`;
# - subset: `examples` of how many `of` were chosen, by the hash of their keys;
# - task: "zero_shot" or "retrieval", where its data serves only one of them;
# - templates: of prompts that stand beside its data.
FACTS = (
    *("captions", "empty_classes", "first_label", "group_names", "matched", "numbered_from"),
    *("repeated", "several", "subset", "task", "templates"),
)


# Captions: one, alternatives, or a map of such by language or by kind.
Texts = str | tuple[str, ...] | Mapping[str, "Texts"]


class Example(TypedDict):
    """One image-text pair.

    An image is encoded bytes, or u8 `[height, width, 3 or 4]`. Several texts are alternatives,
    one of which is drawn in training; a map holds them by language, or by kind. What precedes
    the first `/` or `:` of a key names the shard or file that the example stands in.
    """

    image: bytes | np.ndarray | Image.Image
    text: Texts
    key: str
    label: NotRequired[int]
    labels: NotRequired[tuple[int, ...]]
    groups: NotRequired[Mapping[str, str]]


@runtime_checkable
class DataSource(Protocol):
    """Random access to image-text pairs.

    `class_names` names the labels if the source has labels, else it is None. `fingerprint` is
    the SHA-256 (hex) of the source's identity: equal fingerprints mean equal examples in equal
    order, whatever the machine, as far as the source looks: docs/data.md says what each kind
    hashes. A source whose keys are numbers of rows has
    `positional_keys = True`: scores of other rows are then not taken for its own.

    What a source may have besides: `keys()`, see `keys_of`; `labels()`; `pictures()`, see
    `pictures_of`; an order of its own, see `draw`; `alternatives(index)`; and the `FACTS`.
    """

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the labels."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, index: int) -> Example:
        """Reads one example; `SampleError` if it is unusable."""

    def fingerprint(self) -> str:
        """SHA-256 of what the source holds."""


def check_source(source: Any, path: str) -> None:
    """Refuses what is no data source; ValueError names what it lacks."""
    needed = {"__len__": type(source), "__getitem__": type(source), "fingerprint": source}
    lacks = [name for name, owner in needed.items() if not callable(getattr(owner, name, None))]
    if lacks:
        raise FieldError(
            f"{path} is {type(source).__name__}, which has no {', '.join(lacks)}: expected a "
            f"SPEC, `kind:where[:split]`, a dict of one, or an object with {', '.join(needed)}"
        )


class ExampleError(ValueError):
    """What one's own source or transform gives is no example."""


_FIELDS = ("image", "text", "key")


def check_example(example: Any, giver: str, needed: Sequence[str] = _FIELDS) -> Example:
    """Refuses what is no example: a fault of one's own source or transform."""
    lacks = [k for k in needed if not isinstance(example, Mapping) or k not in example]
    if lacks:
        raise ExampleError(
            f"{giver} gives {type(example).__name__} without {', '.join(lacks)}; an example is a "
            f"dict that has {', '.join(needed)}"
        )
    return cast(Example, example)


def read_example(source: DataSource, index: int, needed: Sequence[str] = _FIELDS) -> Example:
    """Reads an example and checks that it is one; ExampleError, or as the source raises."""
    return check_example(source[index], f"the data source, at {index},", needed)


def place_of(index: int, ends: Sequence[int]) -> tuple[int, int]:
    """Finds in which of the parts that end at `ends` an example stands, and its place there."""
    if not 0 <= index < ends[-1]:
        raise IndexError(f"example {index} of {ends[-1]}")
    part = bisect.bisect_right(ends, index)
    return part, index - (ends[part - 1] if part else 0)


def keys_of(source: DataSource) -> Iterator[str]:
    """Gives the keys of all examples in order; reads them where the source has no `keys`."""
    if hasattr(source, "keys"):
        yield from source.keys()
        return
    for index in range(len(source)):
        try:
            yield source[index]["key"]
        except SampleError as error:
            yield error.key


def pictures_of(source: DataSource) -> list[Hashable]:
    """Says which examples show the same picture: those of which equal things are said here.

    A source says so by a method `pictures`; of any other, each example has a picture of its own.
    A picture is known by its name where the source has one, and by its bytes where it has none.
    """
    if not hasattr(source, "pictures"):
        return list(range(len(source)))
    found = source.pictures()
    # What has no identity is like nothing else.
    return [(index,) if one is None else ("known", one) for index, one in enumerate(found)]


def embedded_pictures(source: DataSource) -> Iterator[bytes | None]:
    """Hashes the pictures of a source that holds them without names; reads every example once."""

    def digest(index: int) -> bytes | None:
        try:
            image = source[index]["image"]
        except SampleError:
            return None
        return hashlib.sha256(image).digest() if isinstance(image, bytes) else None

    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(digest, range(len(source)))


def draw(source: DataSource, position: np.ndarray, seed: int) -> np.ndarray:
    """Finds which examples stand at positions of the training stream.

    A source that has an order of its own says so by a method `draw(position, seed)`; any other
    is permuted anew for every epoch.

    Returns:
        `[...]` int64, indices of the source.
    """
    if hasattr(source, "draw"):
        return source.draw(position, seed)
    return permutation.example_index(position, len(source), seed)[1]


def alternatives(source: DataSource, index: int) -> range:
    """Says which examples may stand in for an unusable one: all, unless the source says others."""
    if hasattr(source, "alternatives"):
        return source.alternatives(index)
    return range(len(source))


class SampleError(ValueError):
    """One example is unusable; the loader replaces it, and counts it under `reason`.

    Args:
        reason: short code, e.g. `text_empty`; the name under which it is counted. `filtered_...`
            is what a filter leaves out on purpose: counted, but not as damage.
    """

    def __init__(self, reason: str, message: str, key: str = ""):
        super().__init__(message)
        self.reason, self.message, self.key = reason, message, key

    def __str__(self) -> str:
        where = f"{self.key}: " if self.key else ""
        return f"{where}{self.message} [{self.reason}]"


def is_filtered(reason: str) -> bool:
    """Whether an example was left out on purpose: counted, and no damage."""
    return reason.startswith("filtered_")


def parse_spec(spec: str) -> tuple[str, str, str | None]:
    """Splits `kind:where[:split]`.

    The split follows the last colon, unless that colon belongs to a URL or stands in brackets:
    `tfds:cifar100:train[:10%]` has the split `train[:10%]`, `arrayrecord:gs://b/x` has none.
    """
    if not isinstance(spec, str) or not spec.strip():
        raise ValueError(
            f"the data source is {spec!r}, expected `kind:where[:split]`, e.g. `openmoji:train`"
        )
    kind, _, rest = spec.strip().partition(":")
    colons = [m.start() for m in re.finditer(r":(?!//)(?![^\[]*\])", rest)]
    if not colons:
        return kind, rest, None
    where, split = rest[: colons[-1]], rest[colons[-1] + 1 :]
    if not where or not split:
        raise ValueError(f"the data source {spec!r} has an empty part: `kind:where[:split]`")
    return kind, where, split


def split_options(spec: str) -> tuple[str, dict[str, Any]]:
    """Splits the options off a spec: `openmoji:train?layers=true&language=de`.

    Values are `true`, `false`, numbers, lists of texts (`a,b`) or text.
    """
    found = _OPTIONS.search(spec) if isinstance(spec, str) else None
    if found is None:
        return spec, {}
    options: dict[str, Any] = {}
    for part in found[1].split("&"):
        name, equals, value = part.partition("=")
        if not equals or not name or name in options:
            raise ValueError(f"{part!r} in {spec!r} is no option `name=value`, or comes twice")
        if "?" in value:
            raise ValueError(
                f"{part!r} in {spec!r} holds a question mark: options are joined by `&`, "
                "as in ?ignore=npy&filter=scores.parquet:top=0.3"
            )
        options[name] = _option_value(value)
        if isinstance(options[name], tuple) and "" in options[name]:
            raise ValueError(f"{part!r} in {spec!r} holds an empty entry between commas")
    return spec[: found.start()], options


def with_filter(spec: str, rule: str) -> str:
    """A spec with one more filter, `FILE:min=1`, behind those that it has."""
    options = split_options(spec)[1]
    if "filter" in options:
        return re.sub(r"([?&]filter=[^&]*)", lambda found: f"{found[1]},{rule}", spec, count=1)
    return f"{spec}{'&' if options else '?'}filter={rule}"


def _option_value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if "," in text and text != ",":  # which is a separator
        return tuple(text.removesuffix(",").split(","))  # a list of one ends in a comma
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def spec_name(spec: str) -> str:
    """Turns a spec into a name for metrics: `openmoji:unseen` -> `openmoji_unseen`.

    Letters and digits of every script stay.
    """
    return re.sub(r"(?:[^\w.]|_)+", "_", redact(spec)).strip("_")
