"""One width per sub-block at the least predicted rise of the loss, solved as an integer programme.

Reads the costs of all widths from saliencies that are predicted rises (`PREDICTED_RISES`): a width costs the largest
saliency among the units that it has lost, a bypass the importance of the sub-block.
"""

import logging

from tracenas.families import Key
from tracenas.saliency.allocation.ranked import Allocated, Ranked
from tracenas.space.architecture import Architecture
from tracenas.strategies.solver import TIME_LIMIT, solve_space

__all__ = ["allocate", "predicted_rise", "predicted_rises"]

_log = logging.getLogger("tracenas")


def allocate(ranked: Ranked, gamma: float | None) -> Allocated:
    """The architecture of the least predicted rise; a warning says so where the solver runs out of time.

    Raises:
        UserError: if no combination of widths meets the budget.
    """
    solved = solve_space(ranked.space, predicted_rises(ranked))
    if not solved.finished:
        _log.warning(
            "the solver stopped after %g s, gap %.2f %%: the best so far is used", TIME_LIMIT, 100 * solved.gap
        )
    return Allocated(solved.architecture, {"solver_gap": solved.gap})


def predicted_rise(ranked: Ranked, arch: Architecture) -> float:
    """What the widths of an architecture cost together, nats per token."""
    rises, counts = predicted_rises(ranked), ranked.space.counts(arch)
    return sum(rises[i, s.name][(0, *s.choices()).index(counts[i][j])] for i, j, s in ranked.slots())


def predicted_rises(ranked: Ranked) -> dict[Key, list[float]]:
    """Per sub-block: what 0 units and each of `choices()` cost."""
    rises: dict[Key, list[float]] = {}
    for index, _, spec in ranked.slots():
        key = (index, spec.name)
        worst = ranked.saliency[key].copy().reshape(ranked.groups[key], -1)
        worst.sort(axis=1)
        lost = [(spec.units - width) // ranked.groups[key] for width in spec.choices()]
        rises[key] = [ranked.importance[key], *(float(worst[:, n - 1].max()) if n else 0.0 for n in lost)]
    return rises
