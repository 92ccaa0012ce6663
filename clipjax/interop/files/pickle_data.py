"""A pickle as data: an interpreter of the few instructions that plain values are written with.

Python's own unpickler calls what a pickle names. This one calls nothing: a name is looked up in a
table, and everything else is an error. It also keeps its memory in a dict, where the one in C
takes as much as a pickle of ten bytes tells it to.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from clipjax.interop.tensors import WeightFileError

MAX_OPERATIONS = 3_000_000


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that a pickle names; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass
class Node:
    """An object that a pickle describes: the name of its class, and its attributes."""

    name: Name
    attributes: dict[Any, Any] = dataclasses.field(default_factory=dict)


class Refused(WeightFileError):
    """A pickle asks for something else than plain data."""


_MARK = object()
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": lambda: _MARK,
}
# Those of protocols 2 to 5; torch writes 2.
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME", "STOP"}
_PUTS = {"BINPUT", "LONG_BINPUT"}
_GETS = {"BINGET", "LONG_BINGET"}
# Tuples are no keys: hashing one of tuples of tuples can take for ever.
_KEYS = (str, int, float, type(None))


class PickleData:
    """Interprets one pickle.

    Args:
        functions: what a `REDUCE` of a name gives: a function of the arguments.
        classes: whether an object of a class may be described by a `Node`.
        persistent: what a persistent id means.
    """

    def __init__(
        self,
        functions: Mapping[Name, Callable[..., Any]],
        classes: Callable[[Name], bool],
        persistent: Callable[[Any], Any],
    ) -> None:
        self._functions = functions
        self._classes = classes
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self, data: bytes) -> Any:
        """Returns the value that a pickle describes.

        Raises:
            Refused: it asks for a name or an instruction that is not known.
            WeightFileError: it is damaged.
        """
        try:
            for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
                if number > MAX_OPERATIONS:
                    raise WeightFileError("the pickle does not end")
                self._step(operation.name, argument)
            if len(self._stack) != 1:
                raise WeightFileError("the pickle does not describe one value")
            return self._stack.pop()
        except WeightFileError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise WeightFileError(f"the pickle is damaged ({error!r:.200})") from error
        except (OverflowError, MemoryError, RecursionError) as error:
            raise WeightFileError(f"the pickle is damaged ({type(error).__name__})") from error

    def _step(self, operation: str, argument: Any) -> None:
        stack = self._stack
        if operation in _VALUES:
            stack.append(argument)
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation]())
        elif operation in _TUPLES:
            count = _TUPLES[operation]
            items = tuple(self._pop() for _ in range(count))[::-1]
            stack.append(items)
        elif operation in _PUTS:
            self._memo[argument] = self._top()
        elif operation == "MEMOIZE":
            self._memo[len(self._memo)] = self._top()
        elif operation in _GETS:
            stack.append(self._memo[argument])
        elif operation not in _IGNORED:
            action = getattr(self, f"_do_{operation.lower()}", None)
            if action is None:
                raise Refused(
                    f"the pickle uses the instruction {operation}, which data never needs"
                )
            action(argument)

    def _top(self) -> Any:
        if self._stack[-1] is _MARK:
            raise WeightFileError("the pickle is damaged (a mark is used as a value)")
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        self._stack.pop()
        return value

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self._stack[-1] is not _MARK:
            items.append(self._stack.pop())
        self._stack.pop()
        return items[::-1]

    def _name(self, module: Any, name: Any) -> Name:
        found = Name(str(module), str(name))
        if found not in self._functions and not self._classes(found):
            raise Refused(
                f"the pickle asks for {found}, which is refused: nothing in a file of weights is "
                "executed (save the model's state_dict, or a .safetensors file)"
            )
        return found

    def _do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._name(module, name))

    def _do_stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise WeightFileError("the pickle is damaged (a name is no string)")
        self._stack.append(self._name(module, name))

    def _do_reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Name) or function not in self._functions:
            raise Refused(f"the pickle calls {_said(function)}, which is refused")
        if not isinstance(arguments, tuple):
            raise WeightFileError("the pickle is damaged (arguments are no tuple)")
        self._stack.append(self._functions[function](*arguments))

    def _do_newobj(self, _: Any) -> None:
        arguments, name = self._pop(), self._pop()
        if not isinstance(name, Name) or not self._classes(name) or arguments != ():
            raise Refused(f"the pickle makes a {_said(name)}, which is refused")
        self._stack.append(Node(name))

    def _do_build(self, _: Any) -> None:
        state, value = self._pop(), self._top()
        if isinstance(value, Node):
            if not isinstance(state, dict):
                raise WeightFileError(f"the pickle is damaged (attributes of {value.name})")
            value.attributes.update(state)
        # An ordered dict may carry attributes (torch's `_metadata`), which hold no weights.
        elif not isinstance(value, dict):
            raise Refused(f"the pickle sets the state of a {type(value).__name__}")

    def _do_binpersid(self, _: Any) -> None:
        self._stack.append(self._persistent(self._pop()))

    def _do_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def _do_list(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def _do_append(self, _: Any) -> None:
        item = self._pop()
        self._list().append(item)

    def _do_appends(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._list().extend(items)

    def _do_setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _do_setitems(self, _: Any) -> None:
        self._set_items(self._pop_to_mark())

    def _do_pop(self, _: Any) -> None:
        self._stack.pop()

    def _list(self) -> list[Any]:
        if not isinstance(self._top(), list):
            raise WeightFileError("the pickle is damaged (appends to something that is no list)")
        return self._top()

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise WeightFileError("the pickle is damaged (sets items of something that is no dict)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEYS):
                raise Refused(f"the pickle has a key that is a {type(key).__name__}")
            if key in target:
                raise WeightFileError(f"the pickle names {key!r:.100} twice")
            target[key] = value


def _said(value: Any) -> str:
    return str(value) if isinstance(value, Name) else f"a {type(value).__name__}"
