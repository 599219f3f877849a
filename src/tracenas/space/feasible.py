"""The architectures of one base model that meet budgets (TraceNAS §3.2): counts, costs, window and validation."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tracenas.errors import UserError
from tracenas.space import costs
from tracenas.space.architecture import Architecture, Layer
from tracenas.space.constraints import Budget
from tracenas.space.costs import Cost
from tracenas.space.sub_block import LayerSpec, SubBlockSpec
from tracenas.space.window import Priced, Table

__all__ = ["FeasibleSet"]

Floats = npt.NDArray[np.float64]
Prices = Sequence[Sequence[float]]
"""What each width of a sub-block costs in every budget."""


@dataclass(frozen=True)
class FeasibleSet:
    """All architectures of one base model that meet its budgets.

    Args:
        layers: the base's blocks.
        outside: parameters that no architecture removes.
        budget: what candidates are repaired into; None for no constraint.
        granularity: `block` (both sub-blocks go together) or `sublayer`.
        min_depth: blocks that must stay (L_min); of every stack at least one, whatever it is.
        keep_layers: blocks that may not be skipped.
        keeps: sub-blocks that are only bypassed together with their block.
        excluded: (block, sub-block) of those that keep all units; in `layers` they have no other width (`kept_whole`).
        further: budgets beside it, which are met, too.
    """

    layers: tuple[LayerSpec, ...]
    outside: int
    budget: Budget | None = None
    granularity: str = "block"
    min_depth: int = 1
    keep_layers: frozenset[int] = field(default_factory=frozenset)
    keeps: frozenset[str] = field(default_factory=frozenset)
    excluded: frozenset[tuple[int, str]] = field(default_factory=frozenset)
    further: tuple[Budget, ...] = ()

    def __post_init__(self) -> None:
        depth = len(self.layers)
        if self.granularity not in ("block", "sublayer"):
            raise UserError(f"depth granularity '{self.granularity}': accepted: block, sublayer")
        if not 1 <= self.min_depth <= depth:
            raise UserError(f"min depth {self.min_depth}: the model has {depth} blocks; accepted: 1 to {depth}")
        wrong = [i for i in self.keep_layers if not 0 <= i < depth]
        if wrong:
            raise UserError(f"keep-layers {wrong[0]}: the model has {depth} blocks; accepted: {-depth} to {depth - 1}")

    @cached_property
    def protected(self) -> frozenset[int]:
        """Blocks that may not be skipped: `keep_layers` and those of excluded sub-blocks."""
        return self.keep_layers | {index for index, _ in self.excluded}

    def remains(self, index: int, spec: SubBlockSpec) -> bool:
        """Whether a sub-block is not bypassed while its block is there."""
        return spec.name in self.keeps or (index, spec.name) in self.excluded

    @cached_property
    def base(self) -> Architecture:
        """The base model itself: every unit kept."""
        return self.build([[s.units for s in layer.sub_blocks] for layer in self.layers])

    @cached_property
    def smallest(self) -> Architecture:
        """The cheapest architecture: `min_depth` blocks (the protected ones among them) at minimum width."""
        cheapest = [[s.choices()[0] if s.units else 0 for s in layer.sub_blocks] for layer in self.layers]
        cost = self._least_costs
        order = sorted(range(len(cheapest)), key=lambda i: (i not in self.protected, cost[i], i))
        first = [next(i for i in order if self.layers[i].stack == stack) for stack in self.stacks]
        order.sort(key=lambda i: i not in self.protected and i not in first)
        unprotected = sum(i not in self.protected for i in first)
        stay = set(order[: max(self.min_depth, len(self.protected) + unprotected)])
        return self.build([c if i in stay else [0] * len(c) for i, c in enumerate(cheapest)])

    @cached_property
    def _least_costs(self) -> list[float]:
        """Of every block at its smallest widths; under several budgets by its shares of them."""
        if not self.further:
            return [sum(table[0] for table in row if table) for row in self.tables]
        limits = np.array([max(budget.limit, 1) for budget in self.budgets])
        return [float(sum((w[0] / limits).sum() for w in row if len(w))) for row in self.weights]

    @cached_property
    def stacks(self) -> tuple[str, ...]:
        """Names of the stacks of blocks, in order; one, '', in decoder-only models."""
        return tuple(dict.fromkeys(layer.stack for layer in self.layers))

    def active(self, counts: Sequence[Sequence[int]]) -> dict[str, int]:
        """Per stack: its blocks that are not skipped."""
        counts_by_stack = dict.fromkeys(self.stacks, 0)
        for layer, row in zip(self.layers, counts, strict=True):
            counts_by_stack[layer.stack] += any(row)
        return counts_by_stack

    def build(self, counts: Sequence[Sequence[int]]) -> Architecture:
        """An architecture from counts per layer and sub-block."""
        return Architecture(
            tuple(
                Layer(tuple((s.unit, int(k)) for s, k in zip(spec.sub_blocks, row, strict=True)), spec.stack)
                for spec, row in zip(self.layers, counts, strict=True)
            )
        )

    def counts(self, arch: Architecture) -> list[list[int]]:
        """The inverse of `build`."""
        return [[k for _, k in layer.kept] for layer in arch.layers]

    def parameters(self, arch: Architecture) -> int:
        """All parameters of the materialised model."""
        return costs.parameters(self.layers, self.outside, arch)

    def cost(self, arch: Architecture) -> int:
        """What the first budget counts."""
        return self.measures[0].total(self.layers, arch)

    def costs(self, arch: Architecture) -> dict[str, int]:
        """What every budget counts, by name."""
        return {measure.name: measure.total(self.layers, arch) for measure in self.measures}

    @cached_property
    def budgets(self) -> tuple[Budget, ...]:
        """All of them."""
        return () if self.budget is None else (self.budget, *self.further)

    @cached_property
    def measures(self) -> tuple[Cost, ...]:
        """What the budgets count; parameters where there is none."""
        parameters = costs.all_parameters(self.outside)
        return tuple(budget.cost or parameters for budget in self.budgets) or (parameters,)

    @cached_property
    def tables(self) -> tuple[tuple[Table, ...], ...]:
        """Per layer and sub-block: what each of `choices()` costs in the first budget."""
        return self._tables(self.measures[0])

    def _tables(self, measure: Cost) -> tuple[tuple[Table, ...], ...]:
        return tuple(tuple(tuple(measure.of(s, k) for k in s.choices()) for s in la.sub_blocks) for la in self.layers)

    def ratios(self, arch: Architecture) -> list[list[float]]:
        """Retention ratios κ (TraceNAS §3.2): kept units / units per layer and sub-block, 0 = bypassed."""
        return [
            [k / s.units if s.units else 0.0 for s, k in zip(layer.sub_blocks, row, strict=True)]
            for layer, row in zip(self.layers, self.counts(arch), strict=True)
        ]

    @cached_property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """`[lower, limit]` of every budget."""
        smallest = self.counts(self.smallest)
        blockwise = self.granularity == "block"
        together = [
            blockwise or any(self.remains(i, s) for s in layer.sub_blocks) for i, layer in enumerate(self.layers)
        ]
        return tuple(
            Priced(self._tables(measure), measure.outside, smallest, together, blockwise).window(
                budget.limit, budget.tolerance
            )
            for budget, measure in zip(self.budgets, self.measures, strict=False)
        )

    @cached_property
    def window(self) -> tuple[int, int]:
        """`[lower, limit]` of the first budget."""
        return self.windows[0] if self.budgets else (0, self.cost(self.base))

    @property
    def parameter_window(self) -> tuple[int, int] | None:
        """`[lower, limit]` of the budget for parameters; None where there is none."""
        ends = zip(self.measures, self.windows, strict=False)
        return next((window for measure, window in ends if measure.name == "params"), None)

    @cached_property
    def plain(self) -> bool:
        """Whether there is one budget at most, and every unit counts in it: a candidate's one cost says all."""
        grows = (all(a < b for a, b in itertools.pairwise((0, *table))) for row in self.tables for table in row)
        return not self.further and all(grows)

    @cached_property
    def weights(self) -> tuple[tuple[Floats, ...], ...]:
        """Per layer and sub-block: what each of `choices()` costs in every budget, [choices, budgets]."""
        tables = [self._tables(measure) for measure in self.measures]
        return tuple(
            tuple(np.array([table[i][j] for table in tables], dtype=np.float64).T for j in range(len(layer.sub_blocks)))
            for i, layer in enumerate(self.layers)
        )

    @cached_property
    def prices(self) -> tuple[tuple[Prices, ...], ...]:
        """`weights` as plain numbers, which a few additions are faster with."""
        return tuple(tuple([tuple(width) for width in widths.tolist()] for widths in row) for row in self.weights)

    @cached_property
    def room(self) -> Floats:
        """What sub-blocks may cost together, [budgets]."""
        limits = [limit for _, limit in self.windows or (self.window,)]
        return np.array(limits, dtype=np.float64) - [measure.outside for measure in self.measures]

    def spent(self, counts: Sequence[Sequence[int]]) -> Floats:
        """What sub-blocks cost together, [budgets]."""
        total = [0.0] * len(self.measures)
        for layer, prices, row in zip(self.layers, self.prices, counts, strict=True):
            for spec, widths, kept in zip(layer.sub_blocks, prices, row, strict=True):
                if kept:
                    for budget, price in enumerate(widths[spec.position(kept)]):
                        total[budget] += price
        return np.array(total)

    def fits(self, arch: Architecture) -> bool:
        """Whether no budget is exceeded."""
        ends = zip(self.measures, self.windows or (self.window,), strict=True)
        return all(measure.total(self.layers, arch) <= limit for measure, (_, limit) in ends)

    def place(self, counts: Sequence[Sequence[int]]) -> int:
        """Where an architecture lies: 1 above a budget, -1 below the window, 0 in it.

        The window is taken on what binds: in it, what could still grow counts in a budget whose own window is
        reached, or does not fit. Of a plain space: cost ≥ lower.
        """
        if self.plain:
            (lower, limit), measure = self.window, self.measures[0]
            rows = zip(self.layers, counts, strict=True)
            kept = (measure.of(spec, k) for la, row in rows for spec, k in zip(la.sub_blocks, row, strict=True))
            cost = measure.outside + sum(kept)
            return (cost > limit) - (cost < lower)
        left = self.room - self.spent(counts)
        if (left < 0).any():
            return 1
        reached = left <= [limit - lower for lower, limit in self.windows]
        more = self._enlargements(counts)
        return -1 if any((step <= left).all() and not step[reached].any() for step in more) else 0

    def _enlargements(self, counts: Sequence[Sequence[int]]) -> Iterator[Floats]:
        """What the next width of everything costs, and the narrowest of what is skipped and may come back."""
        for i, row in enumerate(counts):
            for j, kept in enumerate(row):
                widths = self.weights[i][j]
                at = self.layers[i].sub_blocks[j].position(kept)
                if kept and at + 1 < len(widths):
                    yield widths[at + 1] - widths[at]
        for i, place in self.flippable(counts):
            slots = range(len(counts[i])) if place is None else (place,)
            if not any(counts[i][j] for j in slots):
                yield sum((self.weights[i][j][0] for j in slots if len(self.weights[i][j])), np.zeros(len(self.room)))

    def validate(self, arch: Architecture, *, where: str = "architecture") -> Architecture:
        """The architecture in this space's own form (keys in order, derived counts dropped).

        Raises:
            UserError: for a wrong number of layers, unknown counts or infeasible ones.
        """
        if len(arch.layers) != len(self.layers):
            raise UserError(f"{where}: {len(arch.layers)} layers, but the model has {len(self.layers)} blocks")
        if [la.stack for la in arch.layers] != [la.stack for la in self.layers]:
            raise UserError(f"{where}: the model has {self._stacks_in_words()}")
        rows = []
        for index, (spec_layer, layer) in enumerate(zip(self.layers, arch.layers, strict=True)):
            for s in spec_layer.sub_blocks:
                kept = dict(layer.kept).get(s.unit, s.units)
                if (index, s.name) in self.excluded and kept != s.units:
                    raise UserError(
                        f"{where}: layer {index} has {kept} {s.unit}, this search space keeps {s.units} (exclude)"
                    )
            row = _validated(spec_layer, layer, f"{where}: layer {index}")
            for s, kept in zip(spec_layer.sub_blocks, row, strict=True):
                if s.name in self.keeps and not kept and any(row):
                    raise UserError(f"{where}: layer {index} has no {s.name}, which this search space keeps (deploy)")
            rows.append(row)
        if empty := [stack for stack, count in self.active(rows).items() if stack and not count]:
            raise UserError(f"{where}: every block of the {empty[0]} is skipped; at least one must stay")
        return self.build(rows)

    def _stacks_in_words(self) -> str:
        depths = {s: sum(la.stack == s for la in self.layers) for s in self.stacks}
        named = [f"{n} blocks in its {s}" if s else f"{n} blocks in one list, 'layers'" for s, n in depths.items()]
        return " and ".join(named)

    def mean_ratio(self, counts: Sequence[Sequence[int]], name: str) -> float:
        """Mean retention ratio of the active sub-blocks called `name`; 1 if there is none."""
        active = [
            k / s.units
            for layer, row in zip(self.layers, counts, strict=True)
            for s, k in zip(layer.sub_blocks, row, strict=True)
            if k and s.name == name
        ]
        return sum(active) / len(active) if active else 1.0

    def flippable(self, counts: Sequence[Sequence[int]]) -> list[tuple[int, int | None]]:
        """`(layer, None)` of blocks, `(layer, sub-block)` under sublayer granularity, whose bit may flip."""
        in_stack = self.active(counts)
        active = sum(in_stack.values())
        out: list[tuple[int, int | None]] = []
        for i, row in enumerate(counts):
            slots: list[int | None] = [None] if self.granularity == "block" else list(range(len(row)))
            for j in slots:
                if j is not None and not self.layers[i].sub_blocks[j].units:
                    continue
                if j is not None and self.remains(i, self.layers[i].sub_blocks[j]):
                    continue
                skipped = not any(row) if j is None else row[j] == 0
                last = j is None or sum(k > 0 for k in row) == 1
                spare = active > self.min_depth and in_stack[self.layers[i].stack] > 1
                held = self.protected if j is None else self.keep_layers
                if skipped or (i not in held and (not last or spare)):
                    out.append((i, j))
        return out


def _validated(spec: LayerSpec, layer: Layer, where: str) -> list[int]:
    kept = dict(layer.kept)
    if layer.skip:
        return [0] * len(spec.sub_blocks)
    row = []
    for s in spec.sub_blocks:
        if (
            s.unit == "kv_heads"
            and "kv_heads" in kept
            and "heads" in kept
            and kept.pop("heads") != kept["kv_heads"] * s.heads_per_unit
        ):
            raise UserError(f"{where}: 'heads' must be kv_heads times {s.heads_per_unit}")
        if s.unit not in kept:
            raise UserError(f"{where}: no '{s.unit}'; this model's layers need {', '.join(spec.names())}")
        count = kept.pop(s.unit)
        if not s.feasible(count):
            choices = s.choices()
            raise UserError(
                f"{where}: {count} {s.unit} cannot be kept of {s.units}; accepted: 0, {s.units}"
                + (f", or multiples of {s.quantum} from {choices[0]} up" if len(choices) > 1 else "")
            )
        row.append(count)
    if kept:
        raise UserError(f"{where}: '{next(iter(kept))}' is no count of this model; accepted: {', '.join(spec.names())}")
    return row
