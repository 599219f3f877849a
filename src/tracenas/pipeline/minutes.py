"""What the minutes of a search are spent on: text per candidate, text of the statistics, and candidates."""

from dataclasses import dataclass, replace

from tracenas.config import Effort
from tracenas.errors import UserError
from tracenas.pipeline.estimate import SearchEstimate, in_passes
from tracenas.pipeline.refit import DEFAULT_SAMPLES
from tracenas.scoring.workload import Shape

__all__ = ["Spending", "spend"]

_SAMPLES = (16, 8, 4, 2)
"""Sequences that candidates may be measured on, where there is a choice."""
_STATISTICS = (DEFAULT_SAMPLES, DEFAULT_SAMPLES // 2, DEFAULT_SAMPLES // 4)
"""Sequences that refits and the sensitivity table may be measured on."""
_EVALUATIONS = 100
"""Candidates that are worth more than text for each of them."""
_RACED = 0.7
"""Share of the calibration that a candidate is measured on, where the worse ones are stopped."""


@dataclass(frozen=True)
class Spending:
    """How a search comes to its minutes.

    Args:
        samples: sequences that candidates are measured on.
        statistics: sequences of refits and the sensitivity table.
        evaluations: candidates that the time is enough for, by the estimate.
        once: seconds before the first candidate, by the estimate.
    """

    samples: int
    statistics: int
    evaluations: int
    once: float

    def size(self, seq_len: int) -> Effort:
        """The search's size, on sequences of so many tokens."""
        return Effort(max(2, self.evaluations), self.samples, seq_len)


def spend(
    minutes: float, estimate: SearchEstimate, shape: Shape, *, samples: int | None, statistics: int | None
) -> Spending:
    """The most text that leaves time for enough candidates; the statistics take half of the time at most.

    Beside other work on the machine there is less time for that; candidates are then still counted as if it were left
    alone, for they end by the clock.

    Args:
        shape: of the calibration; its samples count where they are given.
        samples, statistics: where they are given.

    Raises:
        UserError: if the time is over before the first candidate, even with the least text.
    """
    whole, seconds = 60.0 * minutes, 60.0 * minutes / estimate.rates.load
    each_of = (samples,) if samples is not None else _SAMPLES
    for count in (statistics,) if statistics is not None else _STATISTICS:
        for number in each_of:
            time = estimate.search(in_passes(replace(shape, samples=number), estimate.target), count)
            each = _RACED * time.each
            spending = Spending(number, count, max(0, int((whole - time.once) / each)), time.once)
            if seconds - time.once >= _EVALUATIONS * each:
                break
        if time.once <= seconds / 2:
            break
    if not spending.evaluations:
        least = (time.once + time.each) / 60
        raise UserError(
            f"minutes {minutes:g}: on this machine the statistics before the first candidate alone take about "
            f"{time.once / 60:.1f} minutes; accepted: {least:.1f} or more (or --start none)"
        )
    return spending
