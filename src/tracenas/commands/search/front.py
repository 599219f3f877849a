"""What a search of all sizes comes to: its front with what every member costs, and the hypervolume as it grew."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tracenas.config import SearchConfig
from tracenas.pipeline.budgets import Costs
from tracenas.pipeline.target import PruningTarget
from tracenas.space.architecture import Architecture
from tracenas.strategies import SearchResult
from tracenas.strategies.dominance import Point, non_dominated, volume

__all__ = ["front_facts"]

_OF_A_MEMBER = ("id", "generation", "score", "loss")


def front_facts(target: PruningTarget, config: SearchConfig, result: SearchResult[Architecture]) -> dict[str, Any]:
    """For summary.json: what no other candidate costs as little as and scores as well, and the hypervolume.

    That is of the score above the lowest of generation 0, over costs as shares of the base's, after every generation.
    """
    space, names = target.space, config.front_costs
    base = space.costs(space.base)
    records: dict[str, Mapping[str, Any]] = {r["id"]: r for r in result.records if r["score"] is not None}
    archs = {name: _architecture(record) for name, record in records.items()}
    points: dict[str, Point] = {}
    for name, arch in archs.items():
        spent = space.costs(arch)
        points[name] = (*(spent[cost] / base[cost] for cost in names), float(records[name]["score"]))
    limits = {measure.name: limit for measure, (_, limit) in zip(space.measures, space.windows, strict=True)}
    ends = [limits[name] / base[name] for name in names]
    floor = min((points[name][-1] for name in points if not records[name]["generation"]), default=0.0)
    generations = [g.generation for g in result.generations]
    costs = Costs.of(target, config, config.out)
    members = [
        {**{key: records[name][key] for key in _OF_A_MEMBER}, "costs": costs.all(archs[name])}
        for name in non_dominated(points)
    ]
    return {
        "costs": list(names),
        "members": members,
        "hypervolume": list(_volumes(points, records, generations, ends, floor)),
    }


def _volumes(
    points: Mapping[str, Point],
    records: Mapping[str, Mapping[str, Any]],
    generations: Sequence[int],
    ends: Sequence[float],
    floor: float,
) -> Iterator[float]:
    front: dict[str, Point] = {}
    for generation in generations:
        front |= {name: point for name, point in points.items() if records[name]["generation"] == generation}
        front = {name: front[name] for name in non_dominated(front)}
        yield volume(list(front.values()), ends, floor)


def _architecture(record: Mapping[str, Any]) -> Architecture:
    return Architecture.from_json(record["arch"], where=f"journal: {record['id']}")
