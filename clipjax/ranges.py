"""What a field may hold: intervals, choices, patterns; one sentence for whatever is outside.

The config's own fields have their rules in `clipjax.config_fields.FIELDS`; a part that a config
names (an encoder, an evaluation) has them in its class attribute `ranges`, which its constructor
checks.
"""

import contextlib
import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

# Of a whole number, unless a rule says more: steps, sizes and counts are int32 on the device.
LARGEST = 2**31 - 1
# Of a strength, a side or a count of a transform: a larger one was mistyped, and would overflow.
_LARGEST_STRENGTH = 10**6


class FieldError(ValueError):
    """A field holds what is not allowed; the message begins with its dotted name.

    The name is as whoever raises it knows the field. `named` puts in front where the thing that has
    the field stands.
    """


class Rule:
    """What a field may hold; printed, a rule is the phrase that says it."""

    def accepts(self, value: Any) -> bool:
        """Whether a value is allowed."""
        try:
            self.check(value, "")
        except ValueError:
            return False
        return True

    def check(self, value: Any, path: str) -> None:
        """Raises FieldError, with the path, the value and what is allowed, unless it is."""
        if not self._accepts(value):
            raise FieldError(f"{path} = {show(value)}: expected {self}")

    def _accepts(self, value: Any) -> bool:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Number(Rule):
    """A finite number in an interval; True and False are none.

    Args:
        low, high: its ends; None has none.
        open_low, open_high: whether that end is outside.
        whole: whether it is a whole number; then `high` is `LARGEST` by default.
        also: values that are allowed besides, with what they mean: `{-1: "the rest"}`.
        note: what else a message says.
    """

    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    whole: bool = False
    also: Mapping[int, str] = dataclasses.field(default_factory=dict)
    note: str = ""

    def _accepts(self, value: Any) -> bool:
        kinds = int if self.whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        if value in self.also:
            return True
        high = LARGEST if self.whole and self.high is None else self.high
        try:
            if not math.isfinite(value):
                return False
        except OverflowError:  # a whole number that no float holds
            return False
        above = self.low is None or (value > self.low if self.open_low else value >= self.low)
        return above and (high is None or (value < high if self.open_high else value <= high))

    def __str__(self) -> str:
        text = "a whole number" if self.whole else "a finite number"
        if self.low is not None and self.high is not None:
            left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
            text += f" in {left}{_end(self.low)}, {_end(self.high)}{right}"
        elif self.low is not None:
            text += f" {'above' if self.open_low else 'from'} {_end(self.low)}"
        elif self.high is not None:
            text += f" {'below' if self.open_high else 'up to'} {_end(self.high)}"
        text += f", {self.note}" if self.note else ""
        return ", or ".join([text, *(f"{value} ({what})" for value, what in self.also.items())])


@dataclasses.dataclass(frozen=True)
class Only(Rule):
    """One number, and why no other."""

    value: float
    why: str

    def _accepts(self, value: Any) -> bool:
        return Number(self.value, self.value).accepts(value)

    def __str__(self) -> str:
        return f"{self.value:g}: {self.why}"


@dataclasses.dataclass(frozen=True)
class Flag(Rule):
    """True or False."""

    def _accepts(self, value: Any) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


@dataclasses.dataclass(frozen=True)
class Text(Rule):
    """A text; `about` says which."""

    about: str = ""
    may_be_empty: bool = True

    def _accepts(self, value: Any) -> bool:
        return isinstance(value, str) and bool(value or self.may_be_empty)

    def __str__(self) -> str:
        return f"a text{', ' if self.about else ''}{self.about}"


@dataclasses.dataclass(frozen=True)
class Matching(Rule):
    """A text that a regular expression matches whole; `about` says which texts it does."""

    pattern: str
    about: str

    def _accepts(self, value: Any) -> bool:
        return isinstance(value, str) and re.fullmatch(self.pattern, value) is not None

    def __str__(self) -> str:
        return f"a text of {self.about}"


@dataclasses.dataclass(frozen=True)
class Choice(Rule):
    """One of several texts, or where it is said `module:Name` of one's own."""

    names: tuple[str, ...]
    own: bool = False

    def check(self, value: Any, path: str) -> None:
        """Raises FieldError unless the value is such a one."""
        if isinstance(value, str) and (value in self.names or (self.own and ":" in value)):
            return
        own = " or module:Name of your own" if self.own else ""
        raise FieldError(f"{path} = {show(value)}: allowed are {', '.join(self.names)}{own}")

    def __str__(self) -> str:
        names = (*self.names, "module:Name") if self.own else self.names
        return ", ".join(f"`{name}`" for name in names)


@dataclasses.dataclass(frozen=True)
class Pattern(Rule):
    """A regular expression."""

    def check(self, value: Any, path: str) -> None:
        """Raises FieldError unless the value is such a one."""
        if not isinstance(value, str):
            raise FieldError(f"{path} = {show(value)}: expected {self}")
        try:
            re.compile(value)
        except (re.error, OverflowError, RecursionError) as error:
            raise FieldError(f"{path} = {show(value)} is no regular expression: {error}") from error

    def __str__(self) -> str:
        return "a regular expression"


@dataclasses.dataclass(frozen=True)
class Pair(Rule):
    """A tuple or list of two values, each with its own rule."""

    first: Rule
    second: Rule

    def check(self, value: Any, path: str) -> None:
        """Raises FieldError unless the value is such a one."""
        if not is_list(value) or len(value) != 2:
            raise FieldError(f"{path} = {show(value)}: expected {self}")
        self.first.check(value[0], f"{path}[0]")
        self.second.check(value[1], f"{path}[1]")

    def __str__(self) -> str:
        return f"a pair ({self.first}, {self.second})"


@dataclasses.dataclass(frozen=True)
class Span(Rule):
    """A pair of finite numbers `low <= a <= b <= high`."""

    low: float = 0
    high: float = _LARGEST_STRENGTH

    def _accepts(self, value: Any) -> bool:
        is_pair = is_list(value) and len(value) == 2
        return (
            is_pair
            and all(map(Number(self.low, self.high).accepts, value))
            and (value[0] <= value[1])
        )

    def __str__(self) -> str:
        return f"a pair (a, b), {self.low:g} <= a <= b <= {self.high:g}"


@dataclasses.dataclass(frozen=True)
class Many(Rule):
    """A tuple or list of values with one rule; a single text is none.

    Args:
        each: the rule.
        plural: what they are called together.
        at_least: how many, at least.
        exactly: how many; None leaves it open.
    """

    each: Rule
    plural: str
    at_least: int = 0
    exactly: int | None = None

    def check(self, value: Any, path: str) -> None:
        """Raises FieldError unless the value is such a one."""
        wrong = not is_list(value) or len(value) < self.at_least
        if wrong or self.exactly not in (None, len(value)):
            raise FieldError(
                f"{path} = {show(value)}: expected {self}; one alone is written with its comma, "
                "(a,)"
            )
        for number, item in enumerate(value):
            self.each.check(item, f"{path}[{number}]")

    def __str__(self) -> str:
        return f"a tuple of {self.exactly or ''}{' ' if self.exactly else ''}{self.plural}"


@dataclasses.dataclass(frozen=True)
class Optional(Rule):
    """A rule, or None, which means what `none` says."""

    rule: Rule
    none: str = "off"

    def check(self, value: Any, path: str) -> None:
        """Raises FieldError unless the value is such a one."""
        if value is None:
            return
        try:
            self.rule.check(value, path)
        except ValueError as error:
            raise FieldError(f"{error}, or None ({self.none})") from error

    def __str__(self) -> str:
        return f"{self.rule}, or None ({self.none})"


@dataclasses.dataclass(frozen=True)
class AnyOf(Rule):
    """One of several rules."""

    rules: tuple[Rule, ...]

    def _accepts(self, value: Any) -> bool:
        return any(rule.accepts(value) for rule in self.rules)

    def __str__(self) -> str:
        return ", or ".join(map(str, self.rules))


@dataclasses.dataclass(frozen=True)
class Free(Rule):
    """What the thing that is built from it checks; `about` says what that is."""

    about: str

    def _accepts(self, value: Any) -> bool:
        return True

    def __str__(self) -> str:
        return self.about


@dataclasses.dataclass(frozen=True)
class Group(Rule):
    """A dict, whose fields the thing that is built from it checks; `about` says what they are."""

    about: str

    def _accepts(self, value: Any) -> bool:
        return isinstance(value, Mapping)

    def __str__(self) -> str:
        return f"a dict, {self.about}"


def whole(low: int = 1, high: int | None = None, **other: Any) -> Number:
    """A whole number from `low`."""
    return Number(low, high, whole=True, **other)


def count(low: int = 1) -> Number:
    """A whole number from `low` that is no typing error, see `STRENGTH`."""
    return whole(low, _LARGEST_STRENGTH)


# Two sides that differ are refused by this sentence wherever a size is given.
IMAGE_SIZE = whole(1, 2**16, note="pixels of a side: images are square")
FRACTION = Number(0, 1)
RATE = Number(0, 1, open_high=True)  # of dropout, or an average: 1 would leave nothing
POSITIVE = Number(0, open_low=True)
STRENGTH = Number(0, _LARGEST_STRENGTH)
PATTERNS = Many(Pattern(), "regular expressions")


def _end(value: float) -> str:
    """An end of an interval: `2^63 - 1` is exact, 9.22337e+18 is not."""
    for power in range(20, 64) if isinstance(value, int) else ():
        for left_out in (0, 1):
            if value == 2**power - left_out:
                return f"2^{power}{' - 1' if left_out else ''}"
    return f"{value:g}"


def is_list(value: Any) -> bool:
    """Whether a value is a tuple or a list; a text is neither."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def show(value: Any) -> str:
    """A value as a message shows it, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return f"a number of {value.bit_length()} bits"
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def check_known(
    fields: Mapping[str, Any], ranges: Mapping[str, Rule], path: str, required: Iterable[str] = ()
) -> None:
    """Checks a dict whose names and values a table of rules knows.

    Raises:
        ValueError: an unknown name, with the near match and those that are known; a missing one; or
            a value outside its range.
    """
    for name, value in fields.items():
        if name not in ranges:
            raise FieldError(unknown_key(f"{path}.{name}", ranges))
        ranges[name].check(value, f"{path}.{name}")
    for name in required:
        if name not in fields:
            raise FieldError(f"{path}.{name} is missing: give {ranges[name]}")


def unknown_key(path: str, accepted: Iterable[str]) -> str:
    """The message about an unknown key: its path, what is accepted there and the near match."""
    accepted = list(accepted)
    meant = hint(path.rpartition(".")[2], accepted)
    return f"{path} is unknown; accepted here are {', '.join(accepted) or 'none'}{meant}"


def hint(key: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown key: what may have been meant, if anything is near."""
    close = difflib.get_close_matches(key, list(known), n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that are most like an unknown one, the nearest first."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=5, cutoff=0.0)
    return ", ".join(by_lower[each] for each in close)


@contextlib.contextmanager
def named(path: str) -> Iterator[None]:
    """Puts in front of a ValueError from inside where it is from, unless it says so itself.

    Args:
        path: dotted, as the caller knows it: `image` in a library, `config.model` where a config is
            read. Messages that are not of a field are left alone but by a config.
    """
    try:
        yield
    except FieldError as error:
        if re.match(rf"(config\.|-|{re.escape(path)}(?!\w))", str(error)):
            raise
        raise type(error)(f"{path}.{error}") from error
    except ValueError as error:
        if type(error) is not ValueError or not path.startswith("config") or path in str(error):
            raise
        raise ValueError(f"{path}: {error}") from error


def within(path: str, name: str) -> str:
    """The dotted name of a field of what stands at a path; an empty path is the caller's own."""
    return f"{path}.{name}" if path else name


def check_fields(owner: Any, ranges: Mapping[str, Rule]) -> None:
    """Checks the fields of a part in its constructor.

    Raises:
        FieldError: names the field, what was found and what is allowed.
    """
    for name, rule in ranges.items():
        rule.check(getattr(owner, name), name)


class Ranged:
    """Base of a dataclass whose constructor checks its fields by `ranges`.

    Raises:
        FieldError: names the field, what was found and what is allowed.
    """

    ranges: ClassVar[Mapping[str, Rule]] = {}

    def __post_init__(self) -> None:
        check_fields(self, self.ranges)
