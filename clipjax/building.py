"""Building what a spec names: a row of a table, or `module:Name` from outside this tree.

One resolver serves configs and checkpoints; they differ in which modules may be imported, which is
its argument `plugins`. A config file is code: what it names is imported (`ANY_MODULE`). What is
read from a checkpoint, a file of weights or a dataset is data: it has nothing imported but the
modules that the person at work has named, as `plugins=("my_lab.towers",)`.
"""

import functools
import importlib
import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args

from clipjax.files import sha256_of_file
from clipjax.ranges import FieldError, Number, hint, is_list, named, show, within

ANY_MODULE = ("*",)
T = TypeVar("T")


class UnknownFieldError(FieldError):
    """A spec has a field that what it names does not take."""


def check_plugins(plugins: Sequence[str], *, path: str = "plugins") -> tuple[str, ...]:
    """Checks a list of modules that may be imported.

    Args:
        plugins: names of modules, `my_lab.towers`; a package stands for all that is in it.
        path: where they were given, for messages.

    Raises:
        ValueError: one is no name of a module, or one of Python's own library.
    """
    is_list = isinstance(plugins, Iterable) and not isinstance(plugins, str)
    names = tuple(plugins) if is_list else ()
    if not is_list or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} = {plugins!r}: expected names of modules, ('my_lab.towers',)")
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(
                f"{path}: {name!r} is no name of a module; write it as `import` does, my_lab.towers"
            )
        if name.split(".")[0] in sys.stdlib_module_names:
            raise ValueError(
                f"{path}: {name!r} belongs to Python itself and holds no part of a model; name a "
                "module of your own"
            )
    return names


def build(
    spec: Mapping[str, Any],
    table: Mapping[str, Any],
    *,
    path: str = "",
    plugins: Sequence[str] = (),
    **runtime: Any,
) -> Any:
    """Builds what a spec names: `resolve(spec["name"])(**rest_of_spec, **runtime)`.

    The constructor's signature is the schema.

    Args:
        spec: a mapping with the key `name`; its other keys are keyword arguments.
        table: name -> callable.
        path: where the spec stands, for messages.
        plugins: modules that may be imported, see `resolve`.
        **runtime: arguments that come from the caller and not from the config.

    Raises:
        ValueError: an unknown name, an unknown key, or a missing one.
    """
    constructor = check_spec(spec, table, path=path, plugins=plugins, runtime=runtime)
    arguments = {key: value for key, value in spec.items() if key != "name"}
    parameters = inspect.signature(constructor).parameters
    if not _takes_any(parameters):
        # A runtime argument that this constructor does not take is not for it.
        runtime = {k: v for k, v in runtime.items() if k in parameters}
    with named(path):
        return constructor(**arguments, **runtime)


def check_spec(
    spec: Mapping[str, Any],
    table: Mapping[str, Any],
    *,
    path: str = "",
    plugins: Sequence[str] = (),
    runtime: Iterable[str] = (),
    beside: Sequence[str] = (),
) -> Any:
    """Checks all that can be known of a spec before it is built.

    Its keys are compared with the constructor's signature, its values with the signature's
    annotations and, where the constructor has them, with its `ranges` (see `clipjax.ranges`).

    Args:
        spec, table, path, plugins: as for `build`.
        runtime: names of arguments that do not come from the config.
        beside: fields that may stand beside these and are checked elsewhere, for messages.

    Returns:
        The constructor.

    Raises:
        ValueError: an unknown name, an unknown key, a missing one, or a value that is not allowed.
    """
    constructor = resolve(spec.get("name"), table, path=path, plugins=plugins)
    given = {key: value for key, value in spec.items() if key != "name"}
    parameters = inspect.signature(constructor).parameters
    if not _takes_any(parameters):
        accepted = [k for k in parameters if k not in runtime and k not in ("parent", "name")]
        for key in given:
            if key not in accepted:
                accepted = [*beside, *accepted]
                raise UnknownFieldError(
                    f"{within(path, key)} is not a field of {spec['name']!r}; "
                    f"its fields are {', '.join(accepted) or 'none'}{hint(key, accepted)}"
                )
        missing = [
            k
            for k, p in parameters.items()
            if p.default is p.empty
            and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
            and k not in given
            and k not in runtime
        ]
        if missing:
            where = f"{path} ({spec['name']!r})" if path else repr(spec["name"])
            kind = FieldError if path else ValueError
            raise kind(f"{where} lacks {', '.join(missing)}; add it to the config")
    ranges = getattr(constructor, "ranges", {})
    for key, value in given.items():
        if key in ranges:
            ranges[key].check(value, within(path, key))
    check_values(constructor, given, path)
    return constructor


def _takes_any(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in parameters.values())


# What an argument may hold, by the annotation of the constructor's parameter.
_VALUES = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "a text",
    Sequence[str]: "a list of texts",
    types.NoneType: None,
}


def check_values(
    constructor: Any, arguments: Mapping[str, Any], path: str, *, note: str = ""
) -> None:
    """Compares arguments with a constructor's annotations, as far as these are plain.

    Raises:
        ValueError: one does not fit.
    """
    for name, parameter in inspect.signature(constructor).parameters.items():
        annotation = parameter.annotation
        kinds = get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        if name not in arguments or not all(_is_plain(kind) for kind in kinds):
            continue
        value = arguments[name]
        if not any(_fits(value, kind) for kind in kinds):
            allowed = " or ".join(text for kind in kinds if (text := _VALUES[kind]))
            more = note if str in kinds else ""
            raise FieldError(f"{within(path, name)} = {show(value)}: expected {allowed}{more}")


def _is_plain(kind: Any) -> bool:
    try:
        return kind in _VALUES
    except TypeError:  # an annotation without a hash
        return False


def _fits(value: Any, kind: Any) -> bool:
    if kind == Sequence[str]:
        return is_list(value) and all(isinstance(part, str) for part in value)
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return Number().accepts(value)
    return isinstance(value, kind)


def resolve(
    name: Any,
    table: Mapping[str, Any],
    *,
    path: str,
    plugins: Sequence[str] = (),
    key: str = "name",
) -> Any:
    """Gives what a name stands for: a row of a table, or an object of a module.

    Args:
        name: a key of the table, or `module:Name`.
        table: name -> callable.
        path: where the name's spec stands, for messages.
        plugins: what may be imported: modules (a package with all that is in it), single objects
            as `module:Name`, or `ANY_MODULE`.
        key: what the name is called at that place.

    Raises:
        ValueError: no such name, a module that may not be imported, or one that cannot be.
    """
    allowed = ", ".join(sorted(table)) + (", or " if table else "") + "module:Name of your own"
    if not isinstance(name, str) or not name:
        raise FieldError(f"{within(path, key)} is missing; allowed are {allowed}")
    if ":" in name:
        check_name(name, plugins, path=path)
        return _import(name, within(path, key), plugins)
    if name not in table:
        raise FieldError(
            f"{within(path, key)} = {name!r} is unknown; allowed are {allowed}{hint(name, table)}"
        )
    return table[name]


def made_by(
    name: str, kind: type[T], *, path: str, key: str, table: Mapping[str, Any] | None = None
) -> T:
    """Gives what the function makes that a person names as `module:Name`; others see `resolve`.

    Raises:
        ValueError: there is none of that name, or it makes something else.
    """
    made = resolve(name, table or {}, path=path, key=key, plugins=ANY_MODULE)()
    if not isinstance(made, kind):
        raise FieldError(
            f"{within(path, key)} = {name!r} gives a {type(made).__name__}, expected a function "
            f"without arguments that gives {kind.__module__}.{kind.__name__}"
        )
    return made


def check_name(name: str, plugins: Sequence[str], *, path: str) -> None:
    """Refuses `module:Name` unless it may be imported; nothing is imported to find out.

    Raises:
        ValueError: names the flag that allows it.
    """
    module = name.partition(":")[0]
    if not (plugins == ANY_MODULE or name in plugins or _is_named(module, plugins)):
        raise FieldError(
            f"{within(path, 'name')} = {name!r:.200} is code from outside clipjax, and what a file "
            "names is never imported by itself; if it is yours, allow it by "
            f"plugins={(module[:100],)!r}"
        )


def outside_names(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yields (dotted path, `module:Name`) of every spec below a node that names outside code.

    Args:
        node: plain data; its own `name`, such as a model's, is a label and names none.
        path: the path of the node.
    """
    if isinstance(node, Mapping):
        for key, value in node.items():
            inner = f"{path}.{key}" if path else str(key)
            name = value.get("name") if isinstance(value, Mapping) else None
            if isinstance(name, str) and ":" in name:
                yield inner, name
            yield from outside_names(value, inner)
    elif isinstance(node, list | tuple):
        yield from outside_names({f"[{number}]": value for number, value in enumerate(node)}, path)


def source_digests(spec: Mapping[str, Any], plugins: Sequence[str] = ()) -> dict[str, str]:
    """SHA-256 of the source that stands behind each outside name of a spec, by name.

    Returns:
        `module:Name` -> digest; without those that have no file of source.
    """
    digests = {}
    for path, name in outside_names(spec):
        found = resolve(name, {}, path=path, plugins=plugins)
        try:
            file = inspect.getsourcefile(sys.modules[_home(found)])
            if file is not None:
                digests[name] = sha256_of_file(file)
        except (OSError, TypeError, KeyError):  # made in a notebook, or compiled
            continue
    return digests


def _is_named(module: str, plugins: Sequence[str]) -> bool:
    return any(module == plugin or module.startswith(f"{plugin}.") for plugin in plugins)


def _import(name: str, place: str, plugins: Sequence[str]) -> Any:
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise FieldError(f"{place} = {name!r} cannot be imported: {error}") from error
    if not callable(found):
        kind = type(found).__name__
        raise FieldError(f"{place} = {name!r} is a {kind}, nothing to build")
    # A module's own imports are in it as well: `my_lab.towers:run`, where it has `from subprocess
    # import run`, is not what allowing my_lab.towers means.
    home = _home(found)
    if not (plugins == ANY_MODULE or name in plugins or _is_named(home, plugins)):
        raise FieldError(
            f"{place} = {name!r} is defined in {home or 'no module'}, which plugins= does not name"
        )
    return found


def _home(found: Any) -> str:
    while isinstance(found, functools.partial):
        found = found.func
    return getattr(found, "__module__", None) or ""
