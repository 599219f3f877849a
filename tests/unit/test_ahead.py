"""Sequences whose items are made when they are asked for."""

import pytest

from tracenas.strategies.ahead import Ahead


def test_going_through_makes_one_after_the_other() -> None:
    made = list[int]()
    items = Ahead(made.append(i) or i for i in range(3))  # type: ignore[func-returns-value]
    assert made == []
    assert bool(items) and made == [0]
    first, second = iter(items), iter(items)
    assert (next(first), next(first), next(second)) == (0, 1, 0) and made == [0, 1]
    assert len(items) == 3 and made == [0, 1, 2]
    assert (list(items), items[1:], items[-1]) == ([0, 1, 2], [1, 2], 2)
    with pytest.raises(IndexError):
        items[3]


def test_nothing_is_false() -> None:
    assert not Ahead(()) and len(Ahead(())) == 0
