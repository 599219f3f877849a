"""The best architecture of a table of costs: an integer programme over one width per sub-block, solved exactly.

The multipliers of the Lagrangian start (`knapsack`) are the duals of the linear relaxation. Where the start is not
within the gap of its bound, the branch and bound of HiGHS goes on (`scipy.optimize.milp`); the better of both answers
is taken, with the better of both bounds. No torch.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack

from tracenas.errors import UserError
from tracenas.space.architecture import Architecture
from tracenas.space.repair import fill
from tracenas.space.search_space import SearchSpace
from tracenas.strategies.knapsack import Floats, Item, Problem, Start, lagrangian_start, repaired

__all__ = ["GAP", "TIME_LIMIT", "Solution", "Solved", "bounds", "problem_in_space", "solve", "solve_space"]

GAP = 3e-3
"""What may be left to be gained, relative to the cost: far less than predicted costs are wrong by. The start is within
it on the models that were measured, in milliseconds; branch and bound gains nothing on it in a minute."""

TIME_LIMIT = 30.0
"""Seconds of branch and bound."""

_SCALED = 1e3
"""What costs come to in the programme: HiGHS compares objectives by absolute tolerances, too."""


@dataclass(frozen=True)
class Solution:
    """An answer.

    Args:
        levels: of every item.
        cost: Σ c.
        bound: no choice costs less.
        finished: whether the gap that was wanted has been reached; False: the time was up.
    """

    levels: tuple[int, ...]
    cost: float
    bound: float
    finished: bool

    @property
    def gap(self) -> float:
        """What is possibly left to be gained, relative to the cost."""
        return max(0.0, self.cost - self.bound) / abs(self.cost) if self.cost else 0.0


@dataclass(frozen=True)
class Solved:
    """An architecture of the budget.

    Args:
        architecture: within the space.
        rise: its predicted cost.
        bound, gap: see `Solution`.
        finished: see `Solution`.
    """

    architecture: Architecture
    rise: float
    bound: float
    gap: float
    finished: bool


def solve(problem: Problem, *, gap: float = GAP, time_limit: float = TIME_LIMIT) -> Solution | None:
    """The best choice; None if no choice meets the budgets, or none was met within the time limit.

    Args:
        gap: relative, at which the search ends; 0: the optimum.
        time_limit: seconds of branch and bound.
    """
    if not problem.items:
        return Solution((), 0.0, 0.0, True) if problem.within(()) else None
    programme = _Programme(problem)
    start = programme.start()
    if start is None:
        return None
    if start.levels is not None and problem.cost(start.levels) - start.bound <= gap * abs(problem.cost(start.levels)):
        return Solution(start.levels, problem.cost(start.levels), start.bound, True)
    answer = programme.branch_and_bound(gap, time_limit)
    choices = [levels for levels in (start.levels, programme.levels(answer)) if levels is not None]
    if not choices:
        return None
    best = min(choices, key=problem.cost)
    bound = start.bound
    if answer.mip_dual_bound is not None and np.isfinite(answer.mip_dual_bound):
        bound = max(bound, answer.mip_dual_bound / programme.scale)
    return Solution(best, problem.cost(best), min(bound, problem.cost(best)), answer.status == 0)


class _Programme:
    """A problem in the variables of `milp`: a binary per item and level, then per block whether it is skipped."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        sizes = [len(item.costs) for item in problem.items]
        self.first = np.concatenate([[0], np.cumsum(sizes)])
        self.binaries = int(self.first[-1])
        self.blocks = list(problem.members)
        self.columns = self.binaries + len(self.blocks)
        costs = np.concatenate([item.costs for item in problem.items])
        self.scale = _SCALED / max(float(np.abs(costs).max()), 1e-300)
        self.objective = np.concatenate([costs * self.scale, np.zeros(len(self.blocks))])
        self.highest = np.ones(self.columns)
        self.highest[[self.binaries + k for k, b in enumerate(self.blocks) if b in problem.protected]] = 0.0
        self.budget_rows = self._row(
            np.tile(np.arange(len(problem.upper)), self.binaries),
            np.repeat(np.arange(self.binaries), len(problem.upper)),
            np.concatenate([item.weights for item in problem.items]).ravel(),
            len(problem.upper),
        )
        self.units = np.maximum(np.abs(problem.upper), 1.0)  # rows are scaled to a limit of 1
        self.budget_rows = csr_array(self.budget_rows / self.units[:, None])
        self.equal, self.equal_to = self._equalities()
        self.less, self.less_than = self._inequalities()

    def start(self) -> Start | None:
        """From the duals of the linear relaxation; None if not even that is feasible."""
        rows = csr_array(vstack([self.budget_rows, -self.budget_rows, self.less]))
        limits = np.concatenate([self.problem.upper / self.units, -self.problem.lower / self.units, self.less_than])
        relaxation = linprog(
            self.objective,
            A_ub=rows,
            b_ub=limits,
            A_eq=self.equal,
            b_eq=self.equal_to,
            bounds=np.stack([np.zeros(self.columns), self.highest], axis=1),
            method="highs",
        )
        if relaxation.status == 2:
            return None
        duals: Any = np.zeros(len(self.units)) if relaxation.status else relaxation.ineqlin.marginals[: len(self.units)]
        return lagrangian_start(self.problem, np.maximum(0.0, -duals) / self.units / self.scale)

    def branch_and_bound(self, gap: float, time_limit: float) -> Any:
        """What `milp` answers."""
        lower, upper = self.problem.lower / self.units, self.problem.upper / self.units
        integral = np.concatenate([np.ones(self.binaries), np.zeros(len(self.blocks))])
        return milp(
            self.objective,
            integrality=integral,
            bounds=(np.zeros(self.columns), self.highest),
            constraints=[
                LinearConstraint(self.budget_rows, lower, upper),
                LinearConstraint(self.equal, self.equal_to, self.equal_to),
                LinearConstraint(self.less, -np.inf, self.less_than),
            ],
            options={"time_limit": time_limit, "mip_rel_gap": gap},
        )

    def levels(self, answer: Any) -> tuple[int, ...] | None:
        """The levels of an answer, if it has any; budgets that it meets within tolerance are met exactly."""
        if answer.x is None:
            return None
        values = answer.x[: self.binaries]
        ends = zip(self.first[:-1], self.first[1:], strict=True)
        feasible = repaired(self.problem, [int(values[start:end].argmax()) for start, end in ends])
        return None if feasible is None else tuple(feasible)

    def _equalities(self) -> tuple[csr_array, Floats]:
        """One level per item; sub-blocks that are bypassed together."""
        count = len(self.problem.items)
        owner = np.repeat(np.arange(count), np.diff(self.first))
        rows = [self._row(owner, np.arange(self.binaries), np.ones(self.binaries), count)]
        limits = [np.ones(count)]
        if self.problem.together:
            for members in self.problem.members.values():
                for i, j in itertools.pairwise(members):
                    rows.append(self._one({self._bypass(i): 1.0, self._bypass(j): -1.0}))
                    limits.append(np.zeros(1))
        return csr_array(vstack(rows)), np.concatenate(limits)

    def _inequalities(self) -> tuple[csr_array, Floats]:
        """Depth: what a skipped block is, how many there are, and what is only bypassed with its block."""
        rows, limits = [], []
        for k, members in enumerate(self.problem.members.values()):
            bypasses = {self._bypass(i): 1.0 for i in members}
            rows.append(self._one({**bypasses, self.binaries + k: -1.0}))
            limits.append(len(members) - 1.0)
            for i in members:
                others = [j for j in members if j != i and self.problem.items[i].remains]
                rows += [self._one({self._bypass(i): 1.0, self._bypass(j): -1.0}) for j in others]
                limits += [0.0] * len(others)
        for stack, most in self.problem.skips.items():
            inside = [k for k, b in enumerate(self.blocks) if stack in ("*", self.problem.stacks[b])]
            rows.append(self._one({self.binaries + k: 1.0 for k in inside}))
            limits.append(float(most))
        return csr_array(vstack(rows)), np.array(limits)

    def _bypass(self, item: int) -> int:
        return int(self.first[item])

    def _one(self, entries: Mapping[int, float]) -> csr_array:
        places = np.fromiter(entries, dtype=np.int64)
        return self._row(np.zeros(len(places), dtype=np.int64), places, np.array(list(entries.values())), 1)

    def _row(self, rows: Any, columns: Any, values: Floats, count: int) -> csr_array:
        return csr_array((values, (rows, columns)), shape=(count, self.columns))


# --- architectures ---------------------------------------------------------------------------------


def problem_in_space(space: SearchSpace, rises: Mapping[tuple[int, str], Sequence[float]]) -> Problem:
    """The levels of a space's sub-blocks under its budgets.

    Args:
        rises: per (block, sub-block): the cost of 0 units and of each of `choices()`.
    """
    items = []
    for index, layer in enumerate(space.layers):
        for place, spec in enumerate(layer.sub_blocks):
            if spec.units:
                weights = np.concatenate([np.zeros((1, len(space.room))), space.weights[index][place]])
                costs = np.asarray(rises[index, spec.name], dtype=np.float64)
                if costs.shape != (len(weights),):
                    raise ValueError(f"block {index}, {spec.name}: {len(weights)} levels, {costs.shape} costs")
                items.append(Item(index, costs, weights, space.remains(index, spec)))
    return Problem(
        tuple(items),
        *bounds(space),
        tuple(layer.stack for layer in space.layers),
        space.protected,
        space.min_depth,
        space.granularity == "block",
    )


def bounds(space: SearchSpace) -> tuple[Floats, Floats]:
    """`lower` and `upper` of a space's problem."""
    lower = np.zeros(len(space.room))
    if space.budgets and space.plain:  # of several budgets, one is reached, whichever it is
        lower[0] = max(0, space.window[0] - space.measures[0].outside)
    return lower, space.room


def solve_space(
    space: SearchSpace,
    rises: Mapping[tuple[int, str], Sequence[float]],
    *,
    gap: float = GAP,
    time_limit: float = TIME_LIMIT,
) -> Solved:
    """The architecture of the least predicted cost.

    Args: see `problem_in_space` and `solve`.

    Raises:
        UserError: if no combination of widths meets the budgets, or none was met within the time limit.
    """
    problem = problem_in_space(space, rises)
    answer = solve(problem, gap=gap, time_limit=time_limit)
    if answer is None:
        limits = " and ".join(
            measure.said(limit) for measure, (_, limit) in zip(space.measures, space.windows, strict=True)
        )
        raise UserError(
            f"no combination of widths within {limits} was found in {time_limit:g} s; choose a larger budget, a wider "
            "tolerance or smaller quanta"
        )
    levels = iter(answer.levels)
    rows = [[(0, *s.choices())[next(levels)] if s.units else 0 for s in layer.sub_blocks] for layer in space.layers]
    found = space.build(rows)
    if not space.plain:  # what is free of charge is kept, whether it is worth anything or not
        found = fill(space, found)
    return Solved(found, answer.cost, answer.bound, answer.gap, answer.finished)
