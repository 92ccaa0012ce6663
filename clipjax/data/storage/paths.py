"""Paths of data: local or in a bucket, with `{0000..0009}` and `*` patterns."""

import dataclasses
import itertools
import os
import posixpath
import re

# memory:// lives in the process and serves tests.
SCHEMES = ("gs", "s3", "memory", "file")
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{},]*,[^{}]*))\}")


@dataclasses.dataclass(frozen=True, order=True)
class DataPath:
    """A path of a scheme that is allowed; `url` has no scheme where it is local."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "DataPath":
        return DataPath(f"{self.url.rstrip('/')}/{name}")

    @property
    def scheme(self) -> str | None:
        """The scheme; None for a local path."""
        scheme, found, _ = self.url.partition("://")
        return scheme if found else None

    @property
    def is_local(self) -> bool:
        """Whether the operating system can open it."""
        return self.scheme is None

    @property
    def name(self) -> str:
        """What follows the last slash."""
        return posixpath.basename(self.url)

    @property
    def suffix(self) -> str:
        """The extension of the name, with its dot."""
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> "DataPath":
        """The folder."""
        return DataPath(posixpath.dirname(self.url) or ".")

    def below(self, name: str) -> "DataPath":
        """Gives the path that a data file names, which has to lie in this folder.

        Args:
            name: relative to this folder, or a whole path or URL that lies below it.

        Raises:
            ValueError: if it lies elsewhere: what is read comes from the web and may not choose
                the files that are opened.
        """
        whole = "://" in name or name.startswith("/")
        path = data_path(name if whole else str(self / name))
        root = self.url.rstrip("/") + "/"
        if not path.normal.startswith(DataPath(root).normal):
            raise ValueError(
                f"{name!r} points outside {self}: give ?root=DIR in the SPEC, a folder that holds "
                "every file that is named"
            )
        return path

    @property
    def normal(self) -> str:
        """The path from its root on, without `.` and `..`: equal for equal files, links aside."""
        scheme, found, rest = self.url.rpartition("://")
        ending = "/" if rest.endswith("/") and rest != "/" else ""
        if found:
            return f"{scheme}://{posixpath.normpath(rest)}{ending}"
        return os.path.abspath(rest) + (ending if os.path.abspath(rest) != "/" else "")


def data_path(where: str) -> DataPath:
    """Gives a path that may be opened.

    Raises:
        ValueError: if it is empty, or a URL of a scheme that is not allowed.
    """
    if not where:
        raise ValueError("the path of the data is empty")
    if "\0" in where:
        raise ValueError(f"{where!r} holds a NUL byte, which no path does")
    try:
        os.fsencode(where)
    except UnicodeEncodeError as error:
        raise ValueError(f"{where!r} holds a character that no path can: {error}") from error
    scheme, found, rest = where.partition("://")
    if not found:
        return DataPath(os.path.expanduser(where))
    if scheme not in SCHEMES:
        web = scheme in ("http", "https")
        remedy = ": download it first, pictures e.g. with img2dataset" if web else ""
        raise ValueError(f"{where} has the scheme {scheme}://; allowed are gs, s3 and file{remedy}")
    if scheme == "file":
        if not rest.startswith("/"):
            raise ValueError(f"{where} names a host: a local path is written file:///data/x")
        return DataPath(rest)
    if ".." in rest.split("/"):
        raise ValueError(f"{where} holds '..', which has no meaning in a bucket")
    return DataPath(where)


def expand_braces(pattern: str) -> list[str]:
    """Counts out the braces of a pattern: `x-{08..10}` gives `x-08`, `x-09`, `x-10`.

    `x-{08,10}` gives `x-08` and `x-10`; braces in braces are not read.
    """
    parts = _BRACES.split(pattern)
    choices = []
    for first, last, listed in zip(parts[1::4], parts[2::4], parts[3::4], strict=True):
        if listed is not None:
            choices.append(listed.split(","))
            continue
        if int(last) < int(first):
            raise ValueError(f"{pattern} counts down from {first} to {last}")
        choices.append([f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)])
    texts = parts[0::4]
    return [
        "".join(itertools.chain(*zip(texts, (*chosen, ""), strict=True)))
        for chosen in itertools.product(*choices)
    ]


def short_names(urls: list[str]) -> list[str]:
    """Names shards, no two alike, by what follows the folder that all of them share."""
    names = [url.rpartition("/")[2] for url in urls]
    if len(set(names)) == len(names):
        return names
    parts = [url.split("/") for url in urls]
    shared = next(i for i, column in enumerate(zip(*parts, strict=False)) if len(set(column)) > 1)
    return ["/".join(part[shared:]) for part in parts]
