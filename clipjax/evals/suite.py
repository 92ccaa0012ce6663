"""Suites: files that name the sets of a table, where each is looked for, and how they are averaged.

A file is JSON: `sets`, each with a `name`, and `averages`, name -> names of sets. A set may have
besides: the `kind` of evaluation (`zero_shot`), its `metric` (`top1`; of several their mean), the
`folders` below the data root that it may be in or a `spec` with `{data_root}`, `options` of its
SPEC, `fields` of the evaluation, and `obtain`: where it is from.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from clipjax.data.source import spec_name, split_options
from clipjax.data.storage.files import is_folder
from clipjax.data.storage.paths import DataPath, data_path
from clipjax.data.tar.benchmark_folder import CLASS_NAMES, check_whole
from clipjax.ranges import AnyOf, Group, Many, Rule, Text, check_known, nearest
from clipjax.strict_json import parse_json, read_json

SPLIT = "test"
_FOLDER = resources.files("clipjax.evals").joinpath("suites")
_NAME = Text("a name", may_be_empty=False)
_AVERAGE = Many(_NAME, "names of sets", at_least=1)
_SUITE: dict[str, Rule] = {
    **dict.fromkeys(("about", "source", "obtain"), Text()),
    "sets": Many(Group("with a `name`"), "sets", at_least=1),
    "averages": Group("name -> names of sets"),
}
_SET: dict[str, Rule] = {
    **dict.fromkeys(("name", "kind", "spec"), _NAME),
    **dict.fromkeys(("options", "obtain"), Text()),
    "metric": AnyOf((_NAME, Many(_NAME, "names of metrics", at_least=1))),
    "folders": Many(_NAME, "names of folders", at_least=1),
    "fields": Group("of the evaluation"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteSet:
    """A set of a suite.

    Attributes:
        name: of the set, as results are called.
        kind: of the evaluation.
        metric: those whose mean is the set's number.
        folders: names below the data root, in CLIP_benchmark's layout.
        spec: in place of folders: `kind:where` with `{data_root}`.
        options: of the SPEC, `name=value&...`.
        fields: of the evaluation, as a config gives them.
        obtain: how to come by it.
    """

    name: str
    kind: str = "zero_shot"
    metric: tuple[str, ...] = ("top1",)
    folders: tuple[str, ...] = ()
    spec: str = ""
    options: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    obtain: str = ""

    def find(self, root: DataPath) -> str | None:
        """Gives the SPEC of the set below a folder; None where it is not there.

        Raises:
            ValueError: it is there in part, or twice.
        """
        more = f"?{self.options}" if self.options else ""
        if self.spec:
            spec = self.spec.replace("{data_root}", str(root))
            where = split_options(spec)[0].partition(":")[2] or spec
            return spec + more if _is_there(where) else None
        found = [name for name in self.folders if is_folder(root / name)]
        if len(found) > 1:
            raise ValueError(f"{' and '.join(found)} are both there: keep one of them")
        if not found:
            return None
        path = root / found[0] / SPLIT
        if not is_folder(path):
            raise ValueError(f"{root / found[0]} has no folder {SPLIT}: fetch it again")
        beside = check_whole(str(path))
        named = "class_names" in self.fields or "class_names=" in self.options
        if self.kind == "zero_shot" and not named and (beside is None or not beside.class_names):
            raise ValueError(f"{root / found[0]} has no {CLASS_NAMES}: fetch it again")
        return f"tar:{path}{more}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """The sets of a table and their averages.

    Attributes:
        name: as results are called.
        sets: in their order.
        averages: name -> names of sets, whose numbers count alike.
    """

    name: str
    sets: tuple[SuiteSet, ...]
    averages: Mapping[str, tuple[str, ...]]

    def average(self, numbers: Mapping[str, float]) -> dict[str, dict[str, Any]]:
        """Averages the numbers of sets, name -> number.

        Returns:
            name -> `value`, the mean of those that are there (None of none), `measured`, how many
            these are, `of`, how many there should be, and `missing`.
        """
        found = {}
        for name, members in self.averages.items():
            there = [numbers[member] for member in members if member in numbers]
            found[name] = {
                "value": sum(there) / len(there) if there else None,
                "measured": len(there),
                "of": len(members),
                "missing": [member for member in members if member not in numbers],
            }
        return found


def list_suites() -> list[str]:
    """Names of the suites that come with the package."""
    return sorted(entry.name[:-5] for entry in _FOLDER.iterdir() if entry.name.endswith(".json"))


def load_suite(name: str) -> Suite:
    """Reads a suite.

    Args:
        name: one of `list_suites()`, or the path of a JSON file.

    Raises:
        ValueError: there is none, or it says what it cannot; the message names the place.
    """
    if name in list_suites():
        content = parse_json(_FOLDER.joinpath(f"{name}.json").read_bytes())
        return _read(content, name, f"the suite {name}")
    path = Path(name).expanduser()
    if path.suffix != ".json" or not path.is_file():
        raise ValueError(
            f"suite={name!r}: no such suite; there are {nearest(name, list_suites())}, and your "
            "own by the path of its file, FILE.json"
        )
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is no suite: {error}") from error
    return _read(content, path.stem, str(path))


def _read(content: Any, name: str, where: str) -> Suite:
    if not isinstance(content, dict):
        raise ValueError(f"{where} holds no object: a suite has `sets` and `averages`")
    check_known(content, _SUITE, where, required=("sets",))
    read = []
    for number, one in enumerate(content["sets"]):
        place = f"{where}: sets[{number}]"
        check_known(one, _SET, place, required=("name",))
        if "spec" in one and "folders" in one:
            raise ValueError(f"{place} has `spec` and `folders`: keep one of them")
        read.append(_read_set(one, content.get("obtain", "")))
    names = [one.name for one in read]
    for called, count in Counter(map(spec_name, names)).items():
        if count > 1:  # results would be called alike
            raise ValueError(f"{where}: {count} sets are called {called!r}, up to their signs")
    averages = content.get("averages", {"average": names})
    for key, members in averages.items():
        _AVERAGE.check(members, f"{where}: averages.{key}")
        for member, count in Counter(members).items():
            if count > 1 or member not in names:
                told = "twice" if count > 1 else "which is none of the sets"
                raise ValueError(f"{where}: averages.{key} has {member!r}, {told}")
    kept = {key: tuple(members) for key, members in averages.items()}
    return Suite(name=name, sets=tuple(read), averages=kept)


def _read_set(one: Mapping[str, Any], obtain: str) -> SuiteSet:
    clean = one["name"].replace("/", "-")
    given = dict(one)
    metric = given.get("metric", "top1")
    given["metric"] = (metric,) if isinstance(metric, str) else tuple(metric)
    given["obtain"] = given.get("obtain", obtain).replace("{clean}", clean)
    if "spec" not in given:
        folders = dict.fromkeys((f"wds_{clean}", f"wds_{clean}_test", clean, one["name"]))
        given["folders"] = tuple(given.get("folders", folders))
    return SuiteSet(**given)


def _is_there(where: str) -> bool:
    """Whether the folder of a SPEC, or that of its files, is there."""
    path = data_path(where.partition("{")[0].partition("*")[0].rstrip("/"))
    return is_folder(path) or (path.is_local and Path(path.url).exists())
