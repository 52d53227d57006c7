"""How an interrupted training is known. Standard library only."""

from __future__ import annotations


def is_interrupt(error: BaseException) -> bool:
    """Also of an interrupt that came within the backward of a PyLayer: Paddle makes an error of its own of that."""
    return isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt:" in str(error)
