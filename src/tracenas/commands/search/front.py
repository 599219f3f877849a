"""What a search of all sizes comes to: its front with what every member costs, and the hypervolume as it grew."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from tracenas.budgets import LATENCIES
from tracenas.commands.search.settings import front_end
from tracenas.config import SearchConfig
from tracenas.errors import UserError
from tracenas.pipeline.budgets import Costs
from tracenas.pipeline.run_directory import FRONT
from tracenas.pipeline.target import PruningTarget
from tracenas.rundir import write_json
from tracenas.saliency.allocation import ALLOCATIONS, Ranked
from tracenas.saliency.allocation.solver import predicted_rise, predicted_rises
from tracenas.space.architecture import Architecture
from tracenas.strategies.dominance import Point, non_dominated, volume
from tracenas.strategies.tabled import Tabled

__all__ = ["FrontFile"]

_OF_A_MEMBER = ("id", "generation", "score", "loss")
_PICTURED = ("params", "memory", *LATENCIES)
"""Costs that every candidate is shown with, beside the front's own."""
_SIZES = 9
"""At which it is said what a sensitivity table makes of a budget."""
_LOSSES = ("loss", "loss_compensated")
"""Proxies whose scores predicted rises compare with."""

Records = Mapping[str, Mapping[str, Any]]


class Known(Protocol):
    """What is known of a search without its model."""

    target: PruningTarget
    base_loss: float
    ranked: Ranked | None


class FrontFile:
    """RUN/front.json: the front and what every candidate costs, as far as it is known, from the predicted curves on.

    The front is what no other candidate costs as little as and scores as well. Its hypervolume is of the score above
    the lowest of generation 0, over costs as shares of the base's, after every generation.

    Args:
        searched: what is known without the model.
        config: of a search with a front.
    """

    def __init__(self, searched: Known, config: SearchConfig) -> None:
        self._searched, self._config = searched, config
        self._costs = Costs.of(searched.target, config, config.out)
        base = searched.target.space.base
        self._known: dict[str, dict[str, int | float]] = {base.id: self._costs.all(base)}
        self._names = tuple(self._known[base.id])
        shown = dict.fromkeys((*config.front_costs, *_PICTURED))
        self._shown = tuple(name for name in shown if name in self._names)
        self._base = self._spent(base, self._shown)
        self._curves = self._predicted()

    def write(self, records: Sequence[Mapping[str, Any]], generations: Sequence[int] | None = None) -> dict[str, Any]:
        """Put what is known into the file; returns what summary.json says of it.

        Args:
            records: of the journal.
            generations: those whose hypervolumes are wanted; None: up to the last one that has candidates.
        """
        scored: Records = {r["id"]: r for r in records if r["score"] is not None}
        archs = {name: _architecture(record) for name, record in scored.items()}
        if generations is None:
            generations = range(1 + max((r["generation"] for r in scored.values()), default=-1))
        facts = self._front(scored, archs, generations)
        losses = {name: record["loss"] for name, record in scored.items()}
        curves = {
            name: [{**point, "measured": losses.get(arch.id)} for arch, point in line]
            for name, line in self._curves.items()
        }
        pictured = {
            "base": {"loss": self._searched.base_loss, "costs": self._base},
            "candidates": {name: self._spent(arch, self._shown) for name, arch in archs.items()},
            "curves": curves,
        }
        write_json(self._config.out / FRONT, {**facts, **pictured})
        return facts

    @property
    def predicted(self) -> str:
        """What the table says of the sizes, in a line; empty without one."""
        name = self._config.front_costs[0]
        sizes = [
            f"{100 * point['costs'][name] / self._base[name]:.0f} % {point['loss'] - self._searched.base_loss:+.2f}"
            for _, point in self._curves.get("fisher", [])
        ]
        return f"predicted rise of the loss by {name}, nats per token: {', '.join(sizes)}" if sizes else ""

    def _front(self, scored: Records, archs: Mapping[str, Architecture], generations: Sequence[int]) -> dict[str, Any]:
        space, names = self._searched.target.space, self._config.front_costs
        base = space.costs(space.base)
        points: dict[str, Point] = {}
        for name, arch in archs.items():
            spent = space.costs(arch)
            points[name] = (*(spent[cost] / base[cost] for cost in names), float(scored[name]["score"]))
        ends = [space.limits[name] / base[name] for name in names]
        floor = min((points[name][-1] for name in points if not scored[name]["generation"]), default=0.0)
        members = [
            {**{key: scored[name][key] for key in _OF_A_MEMBER}, "costs": self._spent(archs[name], self._names)}
            for name in non_dominated(points)
        ]
        volumes = list(_volumes(points, scored, generations, ends, floor))
        return {"costs": list(names), "members": members, "hypervolume": volumes}

    def _spent(self, arch: Architecture, names: Sequence[str]) -> dict[str, int | float]:
        """What an architecture costs; every cost is counted once, as some take a tenth of a second."""
        known = self._known.setdefault(arch.id, {})
        known |= self._costs.all(arch, [name for name in names if name not in known])
        return {name: known[name] for name in names}

    def _predicted(self) -> dict[str, list[tuple[Architecture, dict[str, Any]]]]:
        """Of what needs no search, by method: architectures with their costs and predicted losses."""
        ranked = self._searched.ranked
        if ranked is None or self._config.proxy not in _LOSSES:
            return {}
        base = self._searched.base_loss
        found = _curves(ranked, front_end(self._config, self._costs.space))
        return {
            name: [
                (arch, {"costs": self._spent(arch, self._shown), "loss": base + predicted_rise(ranked, arch)})
                for arch in line
            ]
            for name, line in found.items()
        }


def _volumes(
    points: Mapping[str, Point], records: Records, generations: Sequence[int], ends: Sequence[float], floor: float
) -> Iterator[float]:
    front: dict[str, Point] = {}
    for generation in generations:
        front |= {name: point for name, point in points.items() if records[name]["generation"] == generation}
        front = {name: front[name] for name in non_dominated(front)}
        yield volume(list(front.values()), ends, floor)


def _curves(ranked: Ranked, smallest: int) -> dict[str, list[Architecture]]:
    """The table's own answer, equal MLPs and equal ratios at sizes between the ends, where they can be had."""
    space, tabled = ranked.space, Tabled(ranked.space, predicted_rises(ranked))
    curves: dict[str, list[Architecture]] = {"fisher": [], "mlp": [], "uniform": []}
    for limit in np.linspace(smallest, space.window[1], _SIZES).tolist():
        sized = space.at(round(limit))
        answer = tabled.answer(None, sized)
        if answer is not None and not sized.place(sized.counts(answer)):
            curves["fisher"].append(answer)
        for name in ("mlp", "uniform"):
            with suppress(UserError):
                curves[name].append(ALLOCATIONS.get(name)(replace(ranked, space=sized), None).architecture)
    return {name: list(dict.fromkeys(found)) for name, found in curves.items() if len(set(found)) > 1}


def _architecture(record: Mapping[str, Any]) -> Architecture:
    return Architecture.from_json(record["arch"], where=f"journal: {record['id']}")
