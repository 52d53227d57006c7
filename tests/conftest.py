import os
import signal

import pytest

os.environ.setdefault("CYCLEMLP_OPS", "0")  # what `cyclemlp build-ops` has left on this machine is not what is tested


def pytest_addoption(parser):
    parser.addoption("--write-table", metavar="FILE", help="write what ran into this page's table (toolkits, attack)")


@pytest.fixture(autouse=True)
def _children_heed_interrupts():
    """A shell that starts the tests in the background has them, and what they start, ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def built_ops(tmp_path_factory):
    """The library of the operator in C++, built once in a cache folder of its own; loaded, and off by CYCLEMLP_OPS."""
    from cyclemlp_backbones import compiled

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CYCLEMLP_HOME", str(tmp_path_factory.mktemp("home")))
        return compiled.build()
