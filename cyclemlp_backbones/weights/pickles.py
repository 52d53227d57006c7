"""Reads a pickle without running it: an interpreter of its opcodes that builds plain data and nothing else.

Python's own unpickler calls what a file names. This one knows a table of names; each stands for a function of ours
that builds inert data, and any other name is refused. So no import, no attribute and no method of anything is ever
reached from a file, and memory stays in proportion to the file's size.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

MAX_OPCODES = 2_000_000
"""A checkpoint with optimizer state and a moving average needs some hundred thousand."""

_MAX_NAME = 256
_MAX_INTEGER_BYTES = 16
_OPCODE_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}


class CheckpointError(ValueError):
    """A weights file, or what it holds, is refused; the message says why and what to do."""


def damaged(what: str) -> CheckpointError:
    """The error of a file that is cut short or changed."""
    return CheckpointError(f"{what}; the file is damaged, incomplete or no weights file: get or write it again")


class Buildable(Protocol):
    """A value whose content follows in a BUILD opcode."""

    def build(self, state: Any) -> None: ...


@dataclass(frozen=True)
class Constructor:
    """What a name in a pickle stands for: `construct` is ours, and gets what the pickle passes."""

    name: str
    construct: Callable[..., Any]


@dataclass(frozen=True)
class Inert:
    """Stands for an object that no weights depend on (a device, a Namespace of options); its content is dropped."""

    name: str

    def build(self, state: Any) -> None:
        pass


def printable(text: str) -> str:
    """`text` of a file, shortened and escaped for a message."""
    text = text if len(text) <= 200 else text[:200] + "…"
    return text if text.isprintable() else ascii(text)


class PickleReader:
    """Interprets pickles, protocols 2 to 5, that lie in `data`.

    `names` maps (module, name) to a Constructor or a plain value; `load_persistent` turns a persistent id into a
    value. `position` moves to the end of each pickle that `read` returns.
    """

    def __init__(
        self,
        data: memoryview,
        names: Mapping[tuple[str, str], Any],
        load_persistent: Callable[[Any], Any] | None = None,
    ):
        self.data = data
        self.position = 0
        self._names = names
        self._load_persistent = load_persistent
        self._stack: list[Any] = []
        self._outer_stacks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The value of the pickle at `position`; CheckpointError if it is damaged or names what is not known."""
        self._stack, self._outer_stacks, self._memo = [], [], {}
        try:
            for _ in range(MAX_OPCODES):
                opcode = self.take(1)[0]
                if opcode == pickle.STOP[0]:
                    return self._stack.pop()
                action = _ACTIONS.get(opcode)
                if action is None:
                    name = _OPCODE_NAMES.get(opcode)
                    known = (
                        f"uses the opcode {name}, which weights files never need"
                        if name
                        else f"has the unknown opcode {opcode:#04x}"
                    )
                    raise CheckpointError(
                        f"refused: its pickle {known}; save the weights alone, with pickle protocol 2 to 5"
                    )
                action(self)
        except (IndexError, KeyError, TypeError, UnicodeError, ValueError, struct.error) as error:
            if isinstance(error, CheckpointError):
                raise
            raise damaged(
                f"its pickle makes no sense near byte {self.position} ({type(error).__name__}: {printable(str(error))})"
            ) from error
        raise CheckpointError(
            f"refused: its pickle has more than {MAX_OPCODES:,} opcodes; save the weights alone, without other data"
        )

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, not copied."""
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise damaged(
                f"it ends at byte {len(self.data)}, where {size} more bytes from {self.position} on are announced"
            )
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def _take_sized(self, size_format: str) -> memoryview:
        return self.take(self._number(size_format))

    def _number(self, number_format: str) -> Any:
        return struct.unpack(number_format, self.take(struct.calcsize(number_format)))[0]

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_to_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._outer_stacks.pop()
        return items

    def _mark(self) -> None:
        self._outer_stacks.append(self._stack)
        self._stack = []

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_to_mark()

    def _check_protocol(self) -> None:
        protocol = self.take(1)[0]
        if not 2 <= protocol <= 5:
            raise CheckpointError(f"refused: pickle protocol {protocol}; protocols 2 to 5 are read")

    def _push_text(self, text: memoryview) -> None:
        self._push(str(text, "utf-8", "surrogatepass"))

    def _push_latin1(self, text: memoryview) -> None:
        self._push(str(text, "latin-1"))  # a string of Python 2, read as Paddle reads it

    def _push_integer(self, digits: memoryview) -> None:
        if len(digits) > _MAX_INTEGER_BYTES:
            raise CheckpointError(f"refused: its pickle has an integer of {len(digits)} bytes; save the weights alone")
        self._push(int.from_bytes(digits, "little", signed=True))

    def _push_tuple(self, size: int) -> None:
        items = [self._stack.pop() for _ in range(size)]
        self._push(tuple(reversed(items)))

    def _push_inert_set(self) -> None:
        self._push(Inert("set"))

    def _freeze_set(self) -> None:
        self._pop_to_mark()
        self._push(Inert("frozenset"))

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise damaged("its pickle appends to what is no list")
        target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise damaged("its pickle sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise CheckpointError(
                    f"refused: a dictionary key of type {type(key).__name__}; keys are strings and numbers"
                )
            if key in target:
                raise CheckpointError(
                    f"refused: the key {printable(str(key))!r} stands twice in one dictionary; write the file again"
                )
            target[key] = value

    def _push_dict(self) -> None:
        items = self._pop_to_mark()
        self._push({})
        self._set_items(items)

    def _memoize(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _find(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise damaged("its pickle names something by what is no text")
        if (module, name) not in self._names:
            raise CheckpointError(
                f"refused: its pickle names {printable(f'{module}.{name}')}, which is not on the short list "
                "of what weights need; nothing was run. If you trust the file, save its weights alone: "
                "a flat dictionary from names to arrays or tensors"
            )
        self._push(self._names[module, name])

    def _find_by_line(self) -> None:
        line = bytes(self.data[self.position : self.position + 2 * _MAX_NAME + 2])
        module, *rest = line.split(b"\n", 2)
        if len(rest) < 2:
            raise damaged(f"its pickle has an unended name at byte {self.position}")
        self.position += len(module) + len(rest[0]) + 2
        self._find(module.decode("utf-8"), rest[0].decode("utf-8"))

    def _find_by_stack(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._find(module, name)

    def _construct(self) -> None:
        arguments, constructor = self._stack.pop(), self._stack.pop()
        if not isinstance(constructor, Constructor) or not isinstance(arguments, tuple):
            raise CheckpointError(f"refused: its pickle calls {_describe(constructor)}; save the weights alone")
        try:
            self._push(constructor.construct(*arguments))
        except CheckpointError:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise damaged(f"its pickle misuses {constructor.name} ({printable(str(error))})") from error

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, dict):
            return  # attributes that PyTorch hangs on a state dict (_metadata)
        if not hasattr(target, "build"):
            raise CheckpointError(f"refused: its pickle sets the state of {_describe(target)}; save the weights alone")
        target.build(state)

    def _push_persistent(self) -> None:
        identifier = self._stack.pop()
        if self._load_persistent is None:
            raise CheckpointError("refused: its pickle refers to data outside the file; save the weights alone")
        self._push(self._load_persistent(identifier))


def _describe(value: Any) -> str:
    return getattr(value, "name", None) or f"a value of type {type(value).__name__}"


_Action = Callable[[PickleReader], object]

_ACTIONS: dict[int, _Action] = {
    code[0]: action
    for code, action in {
        pickle.PROTO: PickleReader._check_protocol,
        pickle.FRAME: lambda r: r.take(8),
        pickle.MARK: PickleReader._mark,
        pickle.POP: PickleReader._pop,
        pickle.POP_MARK: lambda r: r._pop_to_mark(),
        pickle.NONE: lambda r: r._push(None),
        pickle.NEWTRUE: lambda r: r._push(True),
        pickle.NEWFALSE: lambda r: r._push(False),
        pickle.BININT: lambda r: r._push(r._number("<i")),
        pickle.BININT1: lambda r: r._push(r._number("<B")),
        pickle.BININT2: lambda r: r._push(r._number("<H")),
        pickle.LONG1: lambda r: r._push_integer(r._take_sized("<B")),
        pickle.LONG4: lambda r: r._push_integer(r._take_sized("<i")),
        pickle.BINFLOAT: lambda r: r._push(r._number(">d")),
        pickle.SHORT_BINUNICODE: lambda r: r._push_text(r._take_sized("<B")),
        pickle.BINUNICODE: lambda r: r._push_text(r._take_sized("<I")),
        pickle.BINUNICODE8: lambda r: r._push_text(r._take_sized("<Q")),
        pickle.SHORT_BINSTRING: lambda r: r._push_latin1(r._take_sized("<B")),
        pickle.BINSTRING: lambda r: r._push_latin1(r._take_sized("<i")),
        pickle.SHORT_BINBYTES: lambda r: r._push(r._take_sized("<B")),
        pickle.BINBYTES: lambda r: r._push(r._take_sized("<I")),
        pickle.BINBYTES8: lambda r: r._push(r._take_sized("<Q")),
        pickle.BYTEARRAY8: lambda r: r._push(r._take_sized("<Q")),
        pickle.EMPTY_LIST: lambda r: r._push([]),
        pickle.EMPTY_TUPLE: lambda r: r._push(()),
        pickle.EMPTY_DICT: lambda r: r._push({}),
        pickle.EMPTY_SET: PickleReader._push_inert_set,
        pickle.LIST: lambda r: r._push(r._pop_to_mark()),
        pickle.TUPLE: lambda r: r._push(tuple(r._pop_to_mark())),
        pickle.TUPLE1: lambda r: r._push_tuple(1),
        pickle.TUPLE2: lambda r: r._push_tuple(2),
        pickle.TUPLE3: lambda r: r._push_tuple(3),
        pickle.DICT: PickleReader._push_dict,
        pickle.FROZENSET: PickleReader._freeze_set,
        pickle.APPEND: lambda r: r._append([r._stack.pop()]),
        pickle.APPENDS: lambda r: r._append(r._pop_to_mark()),
        pickle.SETITEM: lambda r: r._set_items([r._stack.pop(-2), r._stack.pop()]),
        pickle.SETITEMS: lambda r: r._set_items(r._pop_to_mark()),
        pickle.ADDITEMS: lambda r: r._pop_to_mark(),
        pickle.BINPUT: lambda r: r._memoize(r._number("<B")),
        pickle.LONG_BINPUT: lambda r: r._memoize(r._number("<I")),
        pickle.MEMOIZE: lambda r: r._memoize(len(r._memo)),
        pickle.BINGET: lambda r: r._push(r._memo[r._number("<B")]),
        pickle.LONG_BINGET: lambda r: r._push(r._memo[r._number("<I")]),
        pickle.GLOBAL: PickleReader._find_by_line,
        pickle.STACK_GLOBAL: PickleReader._find_by_stack,
        pickle.REDUCE: PickleReader._construct,
        pickle.NEWOBJ: PickleReader._construct,
        pickle.BUILD: PickleReader._build,
        pickle.BINPERSID: PickleReader._push_persistent,
    }.items()
}
