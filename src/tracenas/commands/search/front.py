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
from tracenas.strategies import SearchResult
from tracenas.strategies.dominance import Point, non_dominated, volume
from tracenas.strategies.tabled import Tabled

__all__ = ["front_facts"]

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


def front_facts(searched: Known, config: SearchConfig, result: SearchResult[Architecture]) -> dict[str, Any]:
    """For summary.json: what no other candidate costs as little as and scores as well, and the hypervolume.

    That is of the score above the lowest of generation 0, over costs as shares of the base's, after every generation.
    What every candidate costs is written to RUN/front.json.
    """
    space, names = searched.target.space, config.front_costs
    base = space.costs(space.base)
    records: Records = {r["id"]: r for r in result.records if r["score"] is not None}
    archs = {name: _architecture(record) for name, record in records.items()}
    points: dict[str, Point] = {}
    for name, arch in archs.items():
        spent = space.costs(arch)
        points[name] = (*(spent[cost] / base[cost] for cost in names), float(records[name]["score"]))
    ends = [space.limits[name] / base[name] for name in names]
    floor = min((points[name][-1] for name in points if not records[name]["generation"]), default=0.0)
    generations = [g.generation for g in result.generations]
    costs = Costs.of(searched.target, config, config.out)
    members = [
        {**{key: records[name][key] for key in _OF_A_MEMBER}, "costs": costs.all(archs[name])}
        for name in non_dominated(points)
    ]
    write_json(config.out / FRONT, _pictured(searched, config, costs, archs, records))
    return {
        "costs": list(names),
        "members": members,
        "hypervolume": list(_volumes(points, records, generations, ends, floor)),
    }


def _volumes(
    points: Mapping[str, Point], records: Records, generations: Sequence[int], ends: Sequence[float], floor: float
) -> Iterator[float]:
    front: dict[str, Point] = {}
    for generation in generations:
        front |= {name: point for name, point in points.items() if records[name]["generation"] == generation}
        front = {name: front[name] for name in non_dominated(front)}
        yield volume(list(front.values()), ends, floor)


def _pictured(
    searched: Known, config: SearchConfig, costs: Costs, archs: Mapping[str, Architecture], records: Records
) -> dict[str, Any]:
    """For pictures: what the base and every candidate cost, and the curves of what needs no search."""
    names = dict.fromkeys((*config.front_costs, *_PICTURED))
    base = costs.all(costs.space.base)
    shown = [name for name in names if name in base]
    curves = {}
    if searched.ranked is not None and config.proxy in _LOSSES:
        losses = {name: record["loss"] for name, record in records.items()}
        for name, found in _curves(searched.ranked, front_end(config, costs.space)).items():
            curves[name] = [
                {
                    "costs": costs.all(arch, shown),
                    "loss": searched.base_loss + predicted_rise(searched.ranked, arch),
                    "measured": losses.get(arch.id),
                }
                for arch in found
            ]
    return {
        "base": {"loss": searched.base_loss, "costs": {name: base[name] for name in shown}},
        "candidates": {name: costs.all(arch, shown) for name, arch in archs.items()},
        "curves": curves,
    }


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
