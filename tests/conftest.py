import signal

import pytest


def pytest_addoption(parser):
    parser.addoption("--write-table", metavar="FILE", help="write what ran into this page's table (toolkits, attack)")


@pytest.fixture(autouse=True)
def _children_heed_interrupts():
    """A shell that starts the tests in the background has them, and what they start, ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
