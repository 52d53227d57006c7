"""Reads a pickle without running it: an interpreter of its opcodes that builds plain data and nothing else.

Python's unpicklers, the one in pure Python too, call what a file names, set attributes of whatever lies on their stack
and copy every array out of the file: half of their opcodes would have to be replaced. This interpreter does none of
that. A name in a file is looked up in a table of ours, in which each stands for inert data or a function that makes
some, and any other name is refused; nothing is imported. Bytes stay in the file, and all else that is built is charged
to a budget: time is linear in the file's size, memory beyond the arrays has a bound.
"""

from __future__ import annotations

import pickletools
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

BUDGET = 32_000_000
"""Bytes of objects that the pickles of a file may build. A checkpoint of B5 with optimizer state and a moving average
needs half of it."""

LONG_TEXT = 4096
"""Longer texts are never names: they stay in the file."""

_STEP, _MEMO, _ITEM, _RESULT = 64, 128, 128, 512  # what an opcode, a memo's and a dictionary's entry, a call cost
_LENGTHS = {-2: 1, -3: 4, -4: 4, -5: 8}  # of what pickletools calls TAKEN_FROM_ARGUMENT1, 4, 4U, 8U
_number = partial(int.from_bytes, byteorder="little")
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}


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


@dataclass(frozen=True)
class Known:
    """What a name in a pickle stands for; `call` is ours, and gets what the pickle passes."""

    name: str
    call: Callable[..., Any] | None = None


@dataclass(frozen=True)
class Inert:
    """Stands for an object that no weights depend on (a device, a Namespace of options); its content is dropped."""

    name: str

    def build(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class LongText:
    """A text in UTF-8 that still lies in the file."""

    utf8: memoryview

    def encode(self, encoding: str) -> bytes:
        return str(self.utf8, "utf-8").encode(encoding)


class PickleReader:
    """Interprets pickles, protocols 2 to 5, that lie in `data`.

    `names` maps "module.name" to what it stands for; `load_persistent` turns a persistent id into a value. `position`
    moves to the end of each pickle that `read` returns.
    """

    def __init__(self, data: memoryview, names: dict[str, Any], load_persistent: Callable[[Any], Any] | None = None):
        self.data, self.position, self._budget = data, 0, BUDGET
        self._names, self._load_persistent = names, load_persistent

    def read(self) -> Any:
        """The value of the pickle at `position`; CheckpointError if it is damaged or names what is not known."""
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        try:
            while (code := self.take(1)[0]) != ord("."):
                if code not in _OPCODES:
                    raise refused(f"its pickle has the unknown opcode {code:#04x}")
                self._spend(_STEP)
                argument = _OPCODES[code].arg
                size = argument.n if argument and argument.n != pickletools.UP_TO_NEWLINE else 0
                size = _number(self.take(_LENGTHS[size])) if size < 0 else size
                self._step(_OPCODES[code].name, self.take(size))
            return self._stack.pop()
        except CheckpointError:
            raise
        except (IndexError, KeyError, OverflowError, TypeError, ValueError, struct.error) as error:
            shown = f"{type(error).__name__}: {printable(error)}"
            raise damaged(f"its pickle makes no sense near byte {self.position} ({shown})") from error

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
        stack, push = self._stack, self._push
        match name:
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self._spend(_MEMO)
                self._memo[_number(argument) if argument else len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[_number(argument)])
            case "SHORT_BINUNICODE" | "BINUNICODE" | "BINUNICODE8":
                long = len(argument) > LONG_TEXT
                push(LongText(argument) if long else str(argument, "utf-8", "surrogatepass"))
            case "SHORT_BINSTRING" | "BINSTRING":  # Python 2's: names, and the bytes of arrays
                push(argument if len(argument) > LONG_TEXT else str(argument, "latin-1"))
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
                push(argument)
            case "BININT1" | "BININT2":
                push(_number(argument))
            case "BININT" | "LONG1" | "LONG4":
                if len(argument) > 16:
                    raise refused(f"its pickle has an integer of {len(argument)} bytes")
                push(int.from_bytes(argument, "little", signed=True))
            case "BINFLOAT":
                push(struct.unpack(">d", argument)[0])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                push({"T": (), "L": [], "D": {}, "S": Inert("set")}[name[6]])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(reversed([stack.pop() for _ in range(int(name[-1]))])))
            case "MARK":
                self._marks.append(len(stack))
            case "POP":
                stack.pop()
            case "POP_MARK" | "ADDITEMS":
                self._pop_to_mark()
            case "TUPLE" | "LIST" | "FROZENSET":
                items = self._pop_to_mark()
                push(items if name == "LIST" else tuple(items) if name == "TUPLE" else Inert("frozenset"))
            case "DICT":
                items = self._pop_to_mark()
                push({})
                self._set_items(items)
            case "APPEND" | "APPENDS":
                items = [stack.pop()] if name == "APPEND" else self._pop_to_mark()
                if not isinstance(stack[-1], list):
                    raise damaged("its pickle appends to what is no list")
                stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                self._set_items([stack.pop(-2), stack.pop()] if name == "SETITEM" else self._pop_to_mark())
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
                if isinstance(target, dict):
                    return  # attributes that PyTorch hangs on a state dict (_metadata)
                if not hasattr(target, "build"):
                    raise refused(f"its pickle sets the state of {_describe(target)}")
                target.build(state)
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
        self._spend(_ITEM * (len(items) // 2))
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
        self._spend(_ITEM)
        full = f"{module}.{name}"
        if full not in self._names:
            raise refused(
                f"its pickle names {printable(full)}, which is not on the short list of what weights need; nothing was "
                "run",
                "if you trust the file, save its weights alone: a flat dictionary from names to arrays or tensors",
            )
        self._stack.append(self._names[full])


def _describe(value: Any) -> str:
    return value.name if isinstance(value, (Known, Inert)) else f"a value of type {type(value).__name__}"
