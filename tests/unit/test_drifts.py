"""Which shares of the drift are worth trying after the first two."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracenas.refits.aim import DRIFTS, drifts_to_try

NOTHING = 1e-2
"""Nats per token that are nothing."""


@given(
    curvature=st.floats(0.0, 10.0, allow_subnormal=False),
    least=st.floats(-1.0, 2.0, allow_subnormal=False),
)
def test_what_is_left_out_of_a_parabola_is_worth_nothing(curvature: float, least: float) -> None:
    """No share is the best by more than that, but 0.75 of a steep parabola whose least is close to it."""
    loss = {drift: curvature * (drift - least) ** 2 for drift in DRIFTS}
    tried = {1.0, 0.5, *drifts_to_try(loss[1.0], loss[0.5])}
    found = min(loss[drift] for drift in tried)
    assert found <= loss[0.0] + NOTHING + 1e-9
    assert found <= loss[0.75] + max(NOTHING, curvature / 16) + 1e-9


def test_the_rest_is_tried_where_the_first_two_differ() -> None:
    assert drifts_to_try(3.4, 3.405) == drifts_to_try(3.405, 3.4) == ()
    assert drifts_to_try(3.4, 3.5) == (0.75,)
    assert drifts_to_try(3.5, 3.4) == (0.75, 0.0)


@pytest.mark.parametrize(
    ("whole", "half", "expected"),
    [(math.inf, 3.0, (0.75, 0.0)), (3.0, math.inf, (0.75,)), (math.inf, math.inf, (0.75, 0.0))],
)
def test_losses_that_overflow(whole: float, half: float, expected: tuple[float, ...]) -> None:
    assert drifts_to_try(whole, half) == expected
