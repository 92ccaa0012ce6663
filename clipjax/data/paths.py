"""Paths of data: local or in a bucket, with `{0000..0009}` and `*` patterns."""

import itertools
import re

from etils import epath

SCHEMES = ("gs", "s3", "file")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def data_path(where: str) -> epath.Path:
    """Gives a path that may be opened.

    Raises:
        ValueError: if it is empty, or a URL of a scheme that is not allowed.
    """
    if not where:
        raise ValueError("the path of the data is empty")
    scheme, found, _ = where.partition("://")
    if found and scheme not in SCHEMES:
        raise ValueError(f"{where} has the scheme {scheme}://; allowed are {', '.join(SCHEMES)}")
    return epath.Path(where).expanduser()


def expand(pattern: str) -> list[epath.Path]:
    """Lists the files that a pattern names: braces are counted out, wildcards are looked up.

    Raises:
        ValueError: if a named file does not exist, or a wildcard finds none.
    """
    paths = []
    for name in _expand_braces(pattern):
        path = data_path(name)
        if any(c in path.name for c in "*?["):
            paths += sorted(path.parent.glob(path.name))
        else:
            paths.append(path)
    missing = [str(path) for path in paths if not path.exists()]
    if missing or not paths:
        raise ValueError(f"there is no file {', '.join(missing[:3]) or pattern}")
    return paths


def _expand_braces(pattern: str) -> list[str]:
    parts = _RANGE.split(pattern)
    ranges = []
    for first, last in zip(parts[1::3], parts[2::3], strict=True):
        if int(last) < int(first):
            raise ValueError(f"{pattern} counts down from {first} to {last}")
        ranges.append([f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)])
    texts = parts[0::3]
    return [
        "".join(itertools.chain(*zip(texts, (*numbers, ""), strict=True)))
        for numbers in itertools.product(*ranges)
    ]
