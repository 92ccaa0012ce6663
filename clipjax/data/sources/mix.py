"""Several sources in one stream, each with a weight."""

import itertools
import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from clipjax.data import permutation
from clipjax.data.classes.matching import MATCHED
from clipjax.data.source import FACTS, DataSource, Example, pictures_of, place_of
from clipjax.data.storage.files import read_all
from clipjax.data.storage.paths import data_path
from clipjax.files import sha256
from clipjax.strict_json import parse_fields

MAX_TOTAL = 1 << 31  # of the weights as whole numbers: products stay below 2^63


class Mix:
    """Sources whose examples come in fixed shares.

    Position `p` of the training stream belongs to one source and is its `j`-th draw, by the
    following rule. The weights are whole numbers `w_0 ... w_(k-1)` of sum `W`, brought to
    lowest terms. With `x = p` and `R = W`, for every source `s` but the last: if
    `floor((x + 1) w_s / R) > floor(x w_s / R)`, the position belongs to `s` and
    `j = floor(x w_s / R)`; else go on with `x - floor(x w_s / R)` and `R - w_s`. The last source
    takes what remains, with `j = x`. So the first `p` positions hold `p w_s / W` draws of every
    source, to within the number of sources, and any `W` in a row hold exactly `w_s`.

    Draw `j` of a source with `n` examples is the place `j mod n` of its own permutation number
    `j div n`, keyed by (seed, s, j div n): each source is traversed whole before any of its
    examples comes again, at its own pace. A batch of more than `n W / w_s` examples holds an
    example of that source twice. An unusable example is replaced by one of its own source, so that
    the shares hold whatever is left out.

    As a sequence, a mix holds its sources one after the other, each example once.

    Args:
        where: a JSON file, or JSON itself: a list of objects with `spec`, `weight` and options of
            that source, `[{"spec": "tar:/a/*.tar", "weight": 3}, {"spec": "csv:b", "weight": 1}]`.
        make: opens the source of an object without its weight, given its number.

    Raises:
        ValueError: if the list is empty or wrong, a weight is not a number above 0, or some sources
            say `captions=whole` and others nothing.
    """

    def __init__(self, where: str, *, make: Callable[[Mapping[str, Any], int], DataSource]):
        specs = read_specs(where)
        self.weights = whole_weights([weight for _, weight in specs])
        self.sources = tuple(make(spec, number) for number, (spec, _) in enumerate(specs))
        if any(isinstance(source, Mix) for source in self.sources):
            raise ValueError("a mix holds a mix: name its sources one by one")
        self._ends = list(itertools.accumulate(map(len, self.sources)))
        # Labels of one source mean other classes than those of the next.
        names = {source.class_names for source in self.sources}
        self.class_names = names.pop() if len(names) == 1 else None
        told = {source.captions for source in self.sources if hasattr(source, "captions")}
        if told >= {None, "whole"}:
            raise ValueError(
                "some sources of the mix have captions=whole and others say nothing, which "
                "retrieval reads as lines: give the option to each of them"
            )
        for fact in FACTS:  # where the sources agree
            said = [getattr(source, fact, None) for source in self.sources]
            setattr(self, fact, said[0] if all(value == said[0] for value in said) else None)
        self.captions = None if None in told else "lines" if told == {"lines"} else "whole"
        found = {getattr(source, "matched", None) for source in self.sources} - {None}
        self.matched = max(found, key=MATCHED.index, default=None)  # the least certain of them
        tasks = {getattr(source, "task", None) for source in self.sources} - {None}
        self.task = tasks.pop() if len(tasks) == 1 else None  # one that it does not serve whole

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        number, place = place_of(index, self._ends)
        example = self.sources[number][place]
        if self.class_names is None and "label" in example:
            example = example.copy()
            del example["label"]
        return example

    def pictures(self) -> Iterator[Hashable]:
        """Says whose picture each example shows; those of two sources are never the same."""
        for number, source in enumerate(self.sources):
            yield from ((number, picture) for picture in pictures_of(source))

    def draw(self, position: np.ndarray, seed: int) -> np.ndarray:
        """Finds which examples stand at positions of the training stream."""
        numbers, draws = split_positions(position, self.weights)
        index = np.empty_like(draws)
        for number, source in enumerate(self.sources):
            chosen = numbers == number
            passes, places = np.divmod(draws[chosen], len(source))
            found = np.empty_like(places)
            for turn in np.unique(passes):
                key, now = (seed, number, int(turn)), passes == turn
                found[now] = permutation.permute(places[now], len(source), key)
            index[chosen] = self._range(number).start + found
        return index

    def alternatives(self, index: int) -> range:
        """The examples of the source that example `index` is of."""
        return self._range(place_of(index, self._ends)[0])

    def _range(self, number: int) -> range:
        """The examples of a source, as indices of this mix."""
        return range(self._ends[number] - len(self.sources[number]), self._ends[number])

    def fingerprint(self) -> str:
        """SHA-256 of the sources' own, in order, and of the weights in lowest terms."""
        identity = ["mix/2", self.weights, [source.fingerprint() for source in self.sources]]
        return sha256(json.dumps(identity))


def whole_weights(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Brings weights to whole numbers in lowest terms: 0.7, 0.2, 0.1 are 7, 2, 1."""
    if not weights:
        raise ValueError("a mix of no sources")
    scale = math.lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    divisor = math.gcd(*whole)
    whole = [weight // divisor for weight in whole]
    if sum(whole) >= MAX_TOTAL:
        raise ValueError(
            f"the weights {', '.join(str(float(w)) for w in weights)} of a mix are {sum(whole)} "
            f"parts in whole numbers, allowed are {MAX_TOTAL - 1}: round them"
        )
    return tuple(whole)


def split_positions(
    position: np.ndarray | int, weights: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Gives every position to a source; the rule stands at `Mix`.

    Returns:
        `(source, draw)`, both `[...]` int64: which source, and which of its draws.
    """
    place = np.array(position, np.int64)
    source = np.full_like(place, len(weights) - 1)
    draw, open_, rest = np.zeros_like(place), np.ones(place.shape, bool), sum(weights)
    for number, weight in enumerate(weights[:-1]):
        before = _share(place, weight, rest)
        mine = open_ & (_share(place + 1, weight, rest) > before)
        source[mine], draw[mine] = number, before[mine]
        open_ &= ~mine
        place, rest = place - before, rest - weight
    draw[open_] = place[open_]
    return source, draw


def _share(place: np.ndarray, weight: int, rest: int) -> np.ndarray:
    """floor(place * weight / rest), without the product of two large numbers."""
    turns, inside = np.divmod(place, rest)
    return turns * weight + inside * weight // rest


def read_specs(where: str) -> list[tuple[dict[str, Any], Fraction]]:
    """Reads the list of a mix: each source's spec with its options, and its weight."""
    try:
        text = where if where.lstrip().startswith("[") else read_all(data_path(where))
        specs = parse_fields(text)
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {where}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the mix {where} is no JSON: {error}") from error
    if not isinstance(specs, list) or not all(isinstance(s, dict) and "spec" in s for s in specs):
        raise ValueError(f'the mix {where} is no list of objects {{"spec": ..., "weight": ...}}')
    return [
        ({key: value for key, value in spec.items() if key != "weight"}, _weight(spec, number))
        for number, spec in enumerate(specs)
    ]


def _weight(spec: Mapping[str, Any], number: int) -> Fraction:
    weight: Any = spec.get("weight")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 < weight < float("inf"):
        raise ValueError(
            f"source {number} of the mix has the weight {weight!r}: expected a number above 0"
        )
    return Fraction(str(weight))  # 0.1 is a tenth, not the float next to it
