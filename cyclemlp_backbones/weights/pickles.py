"""Reads a pickle without running it: an interpreter of its opcodes that builds plain data and nothing else.

Python's unpicklers, the one in pure Python too, call what a file names, set attributes of whatever lies on their stack
and copy every array out of the file: half of their opcodes would have to be replaced. Here a name in a file is looked
up in a table of ours, in which each stands for inert data or a function that makes some; any other is refused, nothing
is imported. Long bytes and texts stay in the file, and all else that is built is charged to a budget: time is linear in
the file's size, memory beyond the arrays has a bound.
"""

from __future__ import annotations

import pickletools
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

BUDGET = 32_000_000
"""Bytes of objects that the pickles of a file may build. A checkpoint of B5 with optimizer state and a moving average
needs half of it."""

LONG_TEXT = 4096
"""Longer texts are never names: they stay in the file, as the memoryview of their bytes."""

_STEP, _MEMO, _RESULT = 64, 128, 512  # what an opcode, a memo's entry, a call cost
_LENGTHS = {-2: 1, -3: 4, -4: 4, -5: 8}  # of what pickletools calls TAKEN_FROM_ARGUMENT1, 4, 4U, 8U
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
_natural = partial(int.from_bytes, byteorder="little")


class CheckpointError(ValueError):
    """A weights file, or what it holds, is refused; the message says why and what to do."""


def damaged(what: str) -> CheckpointError:
    """The error of a file that is cut short or changed."""
    return CheckpointError(f"{what}; the file is damaged, incomplete or no weights file: get or write it again")


def refused(what: str, advice: str = "save the weights alone, with pickle protocol 2 to 5") -> CheckpointError:
    """The error of a file that is whole, but holds what weights do not need."""
    return CheckpointError(f"refused: {what}; {advice}")


def printable(text: object) -> str:
    """Text of a file, shortened and escaped for a message."""
    shown = str(text)
    shown = shown if len(shown) <= 200 else shown[:200] + "…"
    return shown if shown.isprintable() else ascii(shown)


def listed(names: Sequence[object], limit: int = 60) -> str:
    """The first of the names for a message, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(printable, names[:limit])) + more


@dataclass(frozen=True)
class Known:
    """What a name in a pickle stands for; `call` is ours, and gets what the pickle passes."""

    name: str
    call: Callable[..., Any] | None = None


class Inert(Known):
    """Stands for an object that no weights depend on (a device, a Namespace of options); its content is dropped."""

    def build(self, state: Any) -> None:
        pass


class PickleReader:
    """Interprets pickles, protocols 2 to 5, that lie in `data`.

    `names` maps "module.name" to what it stands for; `load_persistent` turns a persistent id into a value. `position`
    moves to the end of each pickle that `read` returns.
    """

    def __init__(self, data: memoryview, names: dict[str, Any], load_persistent: Callable[[Any], Any] | None = None):
        self.data, self.position, self._budget = data, 0, BUDGET
        self._names, self._load_persistent = names, load_persistent

    def read(self) -> Any:
        """The value of the pickle at `position`; CheckpointError, or what senseless bytes raise."""
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        while (code := self.take(1)[0]) != ord("."):
            if code not in _OPCODES:
                raise refused(f"its pickle has the unknown opcode {code:#04x}")
            name, size = _OPCODES[code].name, getattr(_OPCODES[code].arg, "n", 0)
            if size < pickletools.UP_TO_NEWLINE:
                size = _natural(self.take(_LENGTHS[size]))
            self._spend(_STEP)
            self._step(name, self.take(max(size, 0)))
        return self._stack.pop()

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, not copied."""
        start, end = self.position, self.position + size
        if end > len(self.data):
            raise damaged(f"it ends at byte {len(self.data)}, where {size} more from {start} on are announced")
        self.position = end
        return self.data[start:end]

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise refused("its pickle builds more objects than weights need")

    def _push(self, value: Any) -> None:
        self._spend(sys.getsizeof(value))
        self._stack.append(value)

    def _pop_to_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _step(self, name: str, argument: memoryview) -> None:
        stack = self._stack
        match name:
            case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                self._push(argument if len(argument) > LONG_TEXT else str(argument, "utf-8", "surrogatepass"))
            case "SHORT_BINSTRING" | "BINSTRING":  # Python 2's: names, and the bytes of arrays
                self._push(argument if len(argument) > LONG_TEXT else str(argument, "latin-1"))
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                self._push(argument)
            case "BININT1" | "BININT2" | "BININT" | "LONG1" | "LONG4":
                self._push(int.from_bytes(argument, "little", signed=name not in ("BININT1", "BININT2")))
            case "BINFLOAT":
                self._push(struct.unpack(">d", argument)[0])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self._push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                self._push({"T": (), "L": [], "D": {}, "S": Inert("set")}[name[6]])
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._spend(_MEMO)
                self._memo[_natural(argument) if argument else len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[_natural(argument)])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._push(tuple(reversed([stack.pop() for _ in range(int(name[-1]))])))
            case "MARK":
                self._marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK" | "ADDITEMS":
                self._pop_to_mark()
            case "TUPLE" | "LIST" | "FROZENSET":
                items = self._pop_to_mark()
                self._push(items if name == "LIST" else tuple(items) if name == "TUPLE" else Inert("frozenset"))
            case "DICT":
                items = self._pop_to_mark()
                self._push({})
                self._set_items(items)
            case "SETITEM" | "SETITEMS":
                self._set_items([stack.pop(-2), stack.pop()] if name == "SETITEM" else self._pop_to_mark())
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if name == "APPEND" else self._pop_to_mark()
                if not isinstance(stack[-1], list):
                    raise damaged("its pickle appends to what is no list")
                stack[-1].extend(items)
            case "GLOBAL":
                lines = bytes(self.data[self.position : self.position + LONG_TEXT]).split(b"\n", 2)
                if len(lines) < 3:
                    raise damaged(f"its pickle has an unended name at byte {self.position}")
                self.position += len(lines[0]) + len(lines[1]) + 2
                self._find(lines[0].decode("utf-8"), lines[1].decode("utf-8"))
            case "STACK_GLOBAL":
                self._find(stack.pop(-2), stack.pop())
            case "REDUCE" | "NEWOBJ":
                arguments, target = stack.pop(), stack.pop()
                if not isinstance(target, Known) or target.call is None or not isinstance(arguments, tuple):
                    raise refused(f"its pickle calls {_describe(target)}")
                self._spend(_RESULT)
                stack.append(target.call(*arguments))
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if hasattr(target, "build"):
                    target.build(state)
                elif not isinstance(target, dict):  # on which PyTorch hangs attributes (_metadata)
                    raise refused(f"its pickle sets the state of {_describe(target)}")
            case "BINPERSID":
                if self._load_persistent is None:
                    raise refused("its pickle refers to data outside the file")
                self._spend(_RESULT)
                stack.append(self._load_persistent(stack.pop()))
            case "PROTO":
                if not 2 <= argument[0] <= 5:
                    raise refused(f"pickle protocol {argument[0]}")
            case "FRAME":
                pass
            case _:
                raise refused(f"its pickle uses the opcode {name}, which weights files never need")

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise damaged("its pickle sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2]):
            simple = isinstance(key, (str, int, float, bool, type(None)))
            if not simple or (isinstance(key, int) and abs(key) >> 64):  # many larger ones can have one hash
                raise refused(f"a dictionary key of type {type(key).__name__}", "keys are strings and 64-bit numbers")
            if key in target:
                raise refused(f"the key {printable(key)!r} stands twice in one dictionary", "write the file again")
            target[key] = value

    def _find(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise damaged("its pickle names something by what is no text")
        full = f"{module}.{name}"
        if full not in self._names:
            what = f"its pickle names {printable(full)}, which is not on the short list of what weights need"
            advice = "save its weights alone: a flat dictionary from names to arrays or tensors"
            raise refused(f"{what}; nothing was run", f"if you trust the file, {advice}")
        self._stack.append(self._names[full])


def _describe(value: Any) -> str:
    return value.name if isinstance(value, Known) else f"a value of type {type(value).__name__}"
