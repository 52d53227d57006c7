"""How an interrupted training is known, and which of its files are whole. Standard library only."""

from __future__ import annotations

import pickle
from pathlib import Path


def is_interrupt(error: BaseException) -> bool:
    """Also of an interrupt that came within the backward of a PyLayer: Paddle makes an error of its own of that."""
    return isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt:" in str(error)


def is_whole_pickle(path: Path) -> bool:
    """A pickle ends with its opcode STOP; an interrupted save leaves none, or no file."""
    return path.is_file() and path.read_bytes()[-1:] == pickle.STOP
