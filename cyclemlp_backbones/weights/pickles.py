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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

BUDGET = 32_000_000
"""Bytes of objects that the pickles of a file may build. A checkpoint of B5 with optimizer state and a moving average
needs a third of it."""

LONG_TEXT = 4096
"""Longer texts are never names: they stay in the file."""

_STEP, _MEMO, _ITEM, _RESULT = 64, 128, 128, 512  # what an opcode, a memo's and a dictionary's entry, a call cost
_MAX_INTEGER_BYTES = 16
_KEY_TYPES = (str, int, float, bool, type(None))
_MALFORMED = (IndexError, KeyError, OverflowError, TypeError, ValueError, struct.error)
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_OPCODES = {ord(opcode.code): opcode for opcode in pickletools.opcodes}


class CheckpointError(ValueError):
    """A weights file, or what it holds, is refused; the message says why and what to do."""


def damaged(what: str) -> CheckpointError:
    """The error of a file that is cut short or changed."""
    return CheckpointError(f"{what}; the file is damaged, incomplete or no weights file: get or write it again")


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

    `names` maps (module, name) to what it stands for; `load_persistent` turns a persistent id into a value. `position`
    moves to the end of each pickle that `read` returns.
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
        self._budget = BUDGET
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """The value of the pickle at `position`; CheckpointError if it is damaged or names what is not known."""
        self._stack, self._marks, self._memo = [], [], {}
        try:
            while True:
                code = self.take(1)[0]
                opcode = _OPCODES.get(code)
                if opcode is None:
                    raise CheckpointError(f"refused: its pickle has the unknown opcode {code:#04x}; {_ADVICE}")
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._spend(_STEP)
                self._step(opcode.name, self._argument(opcode))
        except CheckpointError:
            raise
        except _MALFORMED as error:
            raise damaged(
                f"its pickle makes no sense near byte {self.position} ({type(error).__name__}: {printable(error)})"
            ) from error

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, not copied."""
        end = self.position + size
        if end > len(self.data):
            raise damaged(
                f"it ends at byte {len(self.data)}, where {size} more bytes from {self.position} on are announced"
            )
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def _argument(self, opcode: pickletools.OpcodeInfo) -> memoryview:
        """The bytes that follow an opcode, without their length; a name's two lines are read in `_step`."""
        size = opcode.arg.n if opcode.arg else 0
        if size == pickletools.UP_TO_NEWLINE:
            size = 0
        return self.take(int.from_bytes(self.take(_LENGTHS[size]), "little") if size < 0 else size)

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise CheckpointError(
                "refused: its pickle builds more objects than weights need; save the weights alone, without other data"
            )

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
                if len(argument) > _MAX_INTEGER_BYTES:
                    raise CheckpointError(f"refused: its pickle has an integer of {len(argument)} bytes; {_ADVICE}")
                push(int.from_bytes(argument, "little", signed=True))
            case "BINFLOAT":
                push(struct.unpack(">d", argument)[0])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                push({"T": (), "L": [], "D": {}, "S": Inert("set")}[name[6]])
            case "MARK":
                self._marks.append(len(stack))
            case "POP_MARK" | "ADDITEMS":
                self._pop_to_mark()
            case "POP":
                stack.pop()
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(reversed([stack.pop() for _ in range(int(name[-1]))])))
            case "TUPLE":
                push(tuple(self._pop_to_mark()))
            case "LIST":
                push(self._pop_to_mark())
            case "FROZENSET":
                self._pop_to_mark()
                push(Inert("frozenset"))
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
                    raise CheckpointError(f"refused: its pickle calls {_describe(target)}; save the weights alone")
                self._spend(_RESULT)
                stack.append(target.call(*arguments))
            case "BUILD":
                state, target = stack.pop(), stack[-1]
                if isinstance(target, dict):
                    return  # attributes that PyTorch hangs on a state dict (_metadata)
                if not hasattr(target, "build"):
                    raise CheckpointError(
                        f"refused: its pickle sets the state of {_describe(target)}; save the weights alone"
                    )
                target.build(state)
            case "BINPERSID":
                if self._load_persistent is None:
                    raise CheckpointError("refused: its pickle refers to data outside the file; save the weights alone")
                self._spend(_RESULT)
                stack.append(self._load_persistent(stack.pop()))
            case "PROTO":
                if not 2 <= argument[0] <= 5:
                    raise CheckpointError(f"refused: pickle protocol {argument[0]}; protocols 2 to 5 are read")
            case "FRAME":
                pass
            case _:
                raise CheckpointError(
                    f"refused: its pickle uses the opcode {name}, which weights files never need; {_ADVICE}"
                )

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise damaged("its pickle sets items of what is no dictionary")
        self._spend(_ITEM * (len(items) // 2))
        for key, value in zip(items[::2], items[1::2]):
            if not isinstance(key, _KEY_TYPES) or (isinstance(key, int) and abs(key) >> 64):  # larger ones may collide
                raise CheckpointError(
                    f"refused: a dictionary key of type {type(key).__name__}; keys are strings and 64-bit numbers"
                )
            if key in target:
                raise CheckpointError(
                    f"refused: the key {printable(key)!r} stands twice in one dictionary; write the file again"
                )
            target[key] = value

    def _find(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise damaged("its pickle names something by what is no text")
        if (module, name) not in self._names:
            raise CheckpointError(
                f"refused: its pickle names {printable(f'{module}.{name}')}, which is not on the short list "
                "of what weights need; nothing was run. If you trust the file, save its weights alone: "
                "a flat dictionary from names to arrays or tensors"
            )
        self._spend(_ITEM)
        self._stack.append(self._names[module, name])


_ADVICE = "save the weights alone, with pickle protocol 2 to 5"


def _number(digits: memoryview) -> int:
    return int.from_bytes(digits, "little")


def _describe(value: Any) -> str:
    return value.name if isinstance(value, (Known, Inert)) else f"a value of type {type(value).__name__}"
