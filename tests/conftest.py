import signal

import pytest


@pytest.fixture(autouse=True)
def _children_heed_interrupts():
    """A shell that starts the tests in the background has them, and what they start, ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
