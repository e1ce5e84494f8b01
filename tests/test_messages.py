"""The facts that the other tests look for in messages are found in any words, and only where they are."""

import pytest
from messages import facts, lines_with, numbers, says

TEXT = "/tmp/run-3/a.tar: Pair 31 of 4,096, from byte 2.5; --fresh begins anew"


def test_all_facts_are_found_in_any_order():
    assert says(ValueError(TEXT), "--fresh", 31, "/tmp/run-3/a.tar", 4096, 2.5, "pair")
    with pytest.raises(ValueError, match=facts(31, "a.tar")):
        raise ValueError(TEXT)
    assert numbers("12 pairs, 1,024 of 3") == [12, 1024, 3]
    assert lines_with(f"a.tar 3\n{TEXT}\n", "a.tar", 31) == [TEXT]


@pytest.mark.parametrize("value", [3, 1, 96, 4, 2, 5, 25, "b.tar", ".ar"])
def test_one_that_is_not_there_is_not_found(value):
    assert not says(TEXT, "a.tar", value)
