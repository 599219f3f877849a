"""The search space 𝒢 (TraceNAS §3.2): sampling, profiles of widths, variation and repair into the budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tracenas.errors import UserError
from tracenas.space.architecture import Architecture
from tracenas.space.feasible import FeasibleSet
from tracenas.space.neighbour import neighbour
from tracenas.space.repair import fill, repair, settle, spread
from tracenas.space.sub_block import SubBlockSpec
from tracenas.space.trade import exchange, trade

__all__ = ["SearchSpace"]


class SearchSpace(FeasibleSet):
    """The feasible architectures, and where candidates among them come from."""

    def check_budget(self) -> None:
        """Refuse budgets that nothing meets, with the range of each that is feasible.

        Raises:
            UserError: if no architecture of this space meets them all, or no uniform one lies in the window.
        """
        ranges = self.feasible()
        for measure, (_, limit) in zip(self.measures, self.windows, strict=False):
            low, base = ranges[measure.name]
            if limit < low:
                between = f"{measure.number(low)} to {measure.number(base)}"
                raise UserError(
                    f"budget of {measure.said(limit)} is below the smallest architecture of this space; "
                    f"feasible: {between} ({100 * low / base:.1f}% to 100%)"
                )
        if self.budgets and self.uniform() is None:
            if self.further:
                named = ((measure, *ranges[measure.name]) for measure in self.measures)
                each = "; ".join(f"{m.name} {m.number(low)} to {m.number(base)}" for m, low, base in named)
                raise UserError(f"no uniform architecture meets all budgets; feasible, each for itself: {each}")
            raise UserError(f"no uniform architecture lies in {self.window_said}; widen the tolerance")

    @property
    def window_said(self) -> str:
        """The window of the first budget, for messages."""
        (lower, limit), measure = self.window, self.measures[0]
        return f"[{measure.number(lower)}, {measure.number(limit)}] {measure.unit}"

    @property
    def limits(self) -> dict[str, int]:
        """Upper ends of the budgets' windows, by the names of the budgets."""
        return {measure.name: limit for measure, (_, limit) in zip(self.measures, self.windows, strict=False)}

    def feasible(self) -> dict[str, tuple[int, int]]:
        """What the cheapest architecture and the base cost, by the names of the budgets."""
        ranges = {}
        for measure, budget in zip(self.measures, self.budgets, strict=False):
            alone = replace(self, budget=budget, further=())
            ranges[measure.name] = (alone.cost(alone.smallest), alone.cost(alone.base))
        return ranges

    def at(self, limit: int) -> "SearchSpace":
        """The same space with another limit of its first budget."""
        assert self.budget is not None
        return replace(self, budget=replace(self.budget, limit=limit))

    def within(self, limits: Mapping[str, int]) -> "SearchSpace":
        """The same space with other limits of some budgets, by what they count."""
        budgets = [
            replace(budget, limit=limits.get(measure.name, budget.limit))
            for budget, measure in zip(self.budgets, self.measures, strict=True)
        ]
        return replace(self, budget=budgets[0], further=tuple(budgets[1:]))

    def uniform(self) -> Architecture | None:
        """Equal retention ratios rounded down, the rest of the budget spread evenly (decision 7).

        Where even the minimum widths exceed the budget, blocks are dropped in an evenly spread order.
        """
        return self.profile([[1.0] * len(layer.sub_blocks) for layer in self.layers])

    def profile(
        self, ratios: Sequence[Sequence[float]], drop_order: Sequence[int] | None = None
    ) -> Architecture | None:
        """`from_ratios`, dropping blocks in `drop_order` only where the minimum widths exceed the budget.

        Here a ratio of 0 means the minimum width. Layers that `drop_order` leaves out are not dropped.
        """
        spreading = spread(len(self.layers)) if drop_order is None else drop_order
        order = [i for i in spreading if i not in self.protected]
        if len(self.stacks) > 1:  # one block of every stack is never dropped: its last in this order
            last = {self.layers[i].stack: i for i in order}
            protected = {self.layers[i].stack for i in range(len(self.layers)) if i not in order}
            order = [i for i in order if self.layers[i].stack in protected or last[self.layers[i].stack] != i]
        for dropped in range(min(len(order), len(self.layers) - self.min_depth) + 1):
            skipped = set(order[:dropped])
            architecture = self.from_ratios(
                [[0.0 if i in skipped else (r or 1e-6) for r in row] for i, row in enumerate(ratios)]
            )
            if architecture is not None:
                return architecture
        return None

    def from_ratios(self, ratios: Sequence[Sequence[float]]) -> Architecture | None:
        """Widths proportional to `ratios` (of any scale; 0 = bypassed), as wide as the budget allows.

        The common factor is found by bisection with widths rounded down and clipped to [minimum, units]; what
        is left of the budget is filled one quantum at a time, evenly over the layers in a fixed order.
        None if the profile cannot meet the window.

        Raises:
            ValueError: if the profile is not of this model's shape, or has a negative or non-finite ratio.
        """
        if [len(row) for row in ratios] != [len(layer.sub_blocks) for layer in self.layers]:
            raise ValueError("a profile needs a ratio for every sub-block of every layer")
        if not all(math.isfinite(r) and r >= 0 for row in ratios for r in row):
            raise ValueError("the ratios of a profile must be finite and at least 0")
        slots = [
            (i, j, s, ratios[i][j])
            for i, layer in enumerate(self.layers)
            for j, s in enumerate(layer.sub_blocks)
            if s.units and ratios[i][j] > 0
        ]

        def fits(scale: float) -> bool:
            positions = (s.position(min(scale * r, 1.0) * s.units) for _, _, s, r in slots)
            if self.plain:
                used = sum(self.tables[i][j][p] for (i, j, _, _), p in zip(slots, positions, strict=True))
                return self.measures[0].outside + used <= self.window[1]
            spent = np.sum([self.weights[i][j][p] for (i, j, _, _), p in zip(slots, positions, strict=True)], axis=0)
            return bool((spent <= self.room).all())

        low, high = 0.0, 1.0 / max(min((r for *_, r in slots), default=1.0), 1e-9)
        if fits(high):
            low = high
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        rows = [[0] * len(layer.sub_blocks) for layer in self.layers]
        for i, j, s, r in slots:
            rows[i][j] = s.floor(min(low * r, 1.0) * s.units)
        filled = fill(self, self.build(rows))
        place = self.place(self.counts(filled))
        if place < 0:  # only quanta larger than the window are left to grow
            rows = self.counts(filled)
            settle(self, rows, np.random.default_rng(0))
            filled = fill(self, self.build(rows))
            place = self.place(self.counts(filled))
        return None if place else filled

    def sample(self, rng: np.random.Generator) -> Architecture | None:
        """A random architecture of the budget: random depth, independent uniform widths, repaired."""
        skips = int(rng.integers(0, max(1, (len(self.layers) - self.min_depth) // 4 + 1)))
        held = self.protected if self.granularity == "block" else self.keep_layers
        free = [i for i in range(len(self.layers)) if i not in held]
        bits = [[(i, j) for j in range(len(self.layers[i].sub_blocks))] for i in free]
        if self.granularity == "sublayer":
            bits = [[(i, j)] for row in bits for i, j in row if not self.remains(i, self.layers[i].sub_blocks[j])]
            skips *= 2
        picks = rng.permutation(len(bits))[:skips].tolist()
        skipped = {slot for pick in picks for slot in bits[pick]}
        rows = [
            [0 if (i, j) in skipped or not s.units else _pick(s, rng) for j, s in enumerate(layer.sub_blocks)]
            for i, layer in enumerate(self.layers)
        ]
        return self.repair(self.build(rows), rng)

    def crossover(self, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
        """Depth: one contiguous range of blocks from B, the rest from A. Width: β·A + (1-β)·B (§3.5)."""
        depth = len(self.layers)
        start = int(rng.integers(0, depth))
        stop = int(rng.integers(start, depth)) + 1
        rows = []
        for i, spec in enumerate(self.layers):
            donor = b if start <= i < stop else a
            row = []
            for s, (_, k), (_, ka), (_, kb) in zip(
                spec.sub_blocks, donor.layers[i].kept, a.layers[i].kept, b.layers[i].kept, strict=True
            ):
                beta = float(rng.uniform(0.2, 0.8))
                mixed = beta * ka + (1 - beta) * kb if ka and kb else max(ka, kb)
                row.append(s.round(mixed) if k else 0)
            rows.append(row)
        return self.build(rows)

    def mutate(
        self,
        arch: Architecture,
        rng: np.random.Generator,
        *,
        depth: float = 0.2,
        width: float = 0.2,
        sigma: float = 0.3,
    ) -> Architecture:
        """With probability `depth` flip one bit of the depth mask; with probability `width` jitter widths.

        The jitter multiplies every active width by its own draw of N(1, σ) (§3.5, decision 8).
        """
        counts = self.counts(arch)
        if rng.random() < depth:
            self._flip(counts, rng)
        if rng.random() < width:
            for row, layer in zip(counts, self.layers, strict=True):
                for j, s in enumerate(layer.sub_blocks):
                    jitter = float(rng.normal(1.0, sigma))
                    if row[j]:
                        row[j] = s.round(min(max(row[j] * jitter, 0.0), s.units))
        return self.build(counts)

    def repair(self, arch: Architecture, rng: np.random.Generator) -> Architecture | None:
        """Into the window by single-quantum moves; None if that is impossible."""
        return repair(self, arch, rng)

    def neighbour(self, arch: Architecture, rng: np.random.Generator, *, sigma: float = 0.3) -> Architecture | None:
        """A small move within the budget, which is filled; None if that is impossible."""
        return neighbour(self, arch, rng, sigma=sigma)

    def trade(
        self, arch: Architecture, rng: np.random.Generator, *, sigma: float = 0.3, depth: float = 0.0
    ) -> Architecture | None:
        """A move of two to four sub-blocks within the budget, all others as they are; None if none was drawn."""
        return trade(self, arch, rng, sigma=sigma, depth=depth)

    def exchange(self, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture | None:
        """`a` with a range of blocks from `b`, made to fit by a few sub-blocks; None if that is impossible."""
        return exchange(self, a, b, rng)

    def _flip(self, counts: list[list[int]], rng: np.random.Generator) -> None:
        """Flip one bit of the depth mask in place, respecting `min_depth`, `keep_layers` and `excluded`."""
        flippable = self.flippable(counts)
        if not flippable:
            return
        i, j = flippable[int(rng.integers(len(flippable)))]
        slots = range(len(counts[i])) if j is None else range(j, j + 1)
        alive = any(counts[i][q] for q in slots)
        for q in slots:
            s = self.layers[i].sub_blocks[q]
            counts[i][q] = 0 if alive else s.round(self.mean_ratio(counts, s.name) * s.units)


def _pick(spec: SubBlockSpec, rng: np.random.Generator) -> int:
    choices = spec.choices()
    return choices[int(rng.integers(len(choices)))]
