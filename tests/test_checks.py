"""What users give is taken or refused by what it is, whatever it is."""

import re
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cyclemlp_backbones.checks import check_subset
from tests.properties import examples

ANYTHING = st.integers(-9, 9) | st.none() | st.booleans() | st.floats() | st.text(max_size=2)
LISTS = st.lists(ANYTHING, max_size=4)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_subset_is_taken_in_each_of_its_spellings_and_nothing_else_is(count):
    spellings = {
        spelled: chosen
        for size in range(1, count + 1)
        for chosen in combinations(range(count), size)
        for spelled in product(*((index, index - count) for index in chosen))
    }
    assert len(spellings) == 3**count - 1
    for size in range(min(count, 3) + 2):
        for values in product(range(-count - 1, count + 1), repeat=size):
            if values in spellings:
                assert check_subset("it", values, count) == spellings[values]
            else:
                with pytest.raises(ValueError, match=r"^it is "):
                    check_subset("it", values, count)


@examples
@given(
    values=st.lists(ANYTHING, max_size=4).map(tuple) | st.lists(ANYTHING, max_size=4) | ANYTHING | st.binary(max_size=2)
)
def test_a_subset_of_anything_is_one_of_integers_or_refused(values):
    integers = isinstance(values, (list, tuple)) and all(type(value) is int for value in values)
    chosen = [value % 4 for value in values if -4 <= value < 4] if integers else []
    if chosen and len(chosen) == len(values) and chosen == sorted(set(chosen)):
        assert check_subset("it", values, 4) == tuple(chosen)
    else:
        with pytest.raises(ValueError, match=re.escape(f"it is {values!r}; it takes")):
            check_subset("it", values, 4)
