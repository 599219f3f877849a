"""Budgets of a search space: what settings ask for, as limits of what architectures cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from tracenas.benchmark.latency_table import LatencyTable
from tracenas.budgets import BUDGETS, Counted, Serving, stored_as
from tracenas.budgets.sizes import parse_limit
from tracenas.config.budgets import BudgetConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.latency import latency_table
from tracenas.pipeline.target import PruningTarget, resolve_target
from tracenas.space.architecture import Architecture
from tracenas.space.constraints import Budget
from tracenas.space.costs import Cost
from tracenas.space.search_space import SearchSpace

__all__ = ["Costs", "resolve_budgets"]

_CONTEXT = 4096
"""Tokens of a sequence where nothing else is said and the model has as many positions."""


@dataclass(frozen=True)
class Costs:
    """What architectures of a space cost.

    Args:
        space: whose blocks `model` has.
        model: what is counted, and how it is served.
    """

    space: SearchSpace
    model: Counted

    @classmethod
    def of(cls, target: PruningTarget, config: BudgetConfig, run: Path | None = None) -> "Costs":
        """Of a target's architectures, served as the settings say.

        Args:
            run: whose latency table counts, where it has one.

        Raises:
            UserError: as `latency_table`.
        """
        table = latency_table(target, config, run)
        return cls(target.space, Counted(target.source, target.blocks, _serving(target.source, config, table), table))

    def measure(self, name: str) -> Cost:
        """A cost that adds up.

        Raises:
            UserError: for an unknown one, or one that this space cannot have.
        """
        if name in self._measured:
            return self._measured[name]
        kind = BUDGETS.get(name)
        if kind.blockwise and self.space.granularity != "block":
            raise UserError(
                f"budget {name} goes with --depth-granularity block: a file holds zeros where a part is gone"
            )
        self._measured[name] = kind.cost(self.model)
        return self._measured[name]

    @cached_property
    def _measured(self) -> dict[str, Cost]:
        return {}

    def exactly(self, name: str, arch: Architecture) -> int:
        """What one architecture costs."""
        exact = BUDGETS.get(name).exact
        return self.measure(name).total(self.space.layers, arch) if exact is None else exact(self.model, arch)

    def limited(self, limits: Mapping[str, str], tolerance: float, first: str | None = None) -> SearchSpace:
        """The space under these budgets, the one that binds in the uniform architecture first.

        Args:
            first: the one that comes first instead.

        Raises:
            UserError: for values that are none, and budgets that nothing meets.
        """
        measures = [self.measure(name) for name in limits]
        budgets = []
        for measure, text in zip(measures, limits.values(), strict=True):
            base = measure.total(self.space.layers, self.space.base)
            limit = parse_limit(measure.name, BUDGETS.get(measure.name), text, base)
            budgets.append(Budget(limit, tolerance, None if measure.name == "params" else measure))
        space = replace(self.space, budget=budgets[0], further=tuple(budgets[1:]))
        space.check_budget()
        uniform = space.uniform() if space.further else None
        if uniform is None:
            return space
        spent = space.costs(uniform)
        names = {budget: budget.cost.name if budget.cost else "params" for budget in budgets}
        budgets.sort(key=lambda budget: (names[budget] != first, -spent[names[budget]] / budget.limit))
        return replace(space, budget=budgets[0], further=tuple(budgets[1:]))

    def all(self, arch: Architecture, names: Iterable[str] | None = None) -> dict[str, int | float]:
        """Every cost of an architecture that there is for this model, in numbers for people: milliseconds, bytes, …."""
        found = {}
        for name in BUDGETS if names is None else names:
            try:
                found[name] = self.measure(name).plain(self.exactly(name, arch))
            except UserError:
                if names is not None:
                    raise
        return found


def _serving(source: ModelSource, config: BudgetConfig, table: LatencyTable | None) -> Serving:
    """How the settings say that the model is served; what they leave open is as at the table's first fitting point."""
    stored = stored_as(source) if config.outtype == "auto" else config.outtype
    for point in () if table is None else table.points:
        asked = (config.serve_batch, config.prompt, config.context)
        served = (point.batch, point.prompt, point.context)
        if all(given in (None, there) for given, there in zip(asked, served, strict=True)):
            return Serving(point.context, point.batch, stored, point.prompt)
    context = config.context or min(_CONTEXT, source.positions)
    return Serving(context, config.serve_batch or 1, stored, config.prompt)


def resolve_budgets(source: ModelSource, config: BudgetConfig, run: Path | None = None) -> PruningTarget:
    """The model's units and the search space under the settings' budgets; without any, every architecture.

    Args:
        run: a run that has begun, whose latency table counts.

    Raises:
        UserError: as `resolve_target`, for budgets that nothing meets, and as `latency_table`.
    """
    target = resolve_target(source, config)
    if not config.budgets and config.latency is None:
        return target
    costs = Costs.of(target, config, run)
    if not config.budgets:
        return target
    return replace(target, space=costs.limited(config.budgets, config.tolerance, config.leading))
