"""How many examples a property is tried on: the same few in each run, or, by CYCLEMLP_EXAMPLES, so many new ones."""

import os

from hypothesis import HealthCheck, settings

MANY = int(os.environ.get("CYCLEMLP_EXAMPLES", "0"))

examples = settings(
    max_examples=MANY or 50,
    derandomize=not MANY,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
