"""A table of the latencies of sub-blocks by width, and its check on whole architectures."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from tracenas.benchmark.fitted import FITS, fitted
from tracenas.benchmark.latency_table import LatencyTable, Point
from tracenas.benchmark.width_latency import CHECKS, WidthLatencies, checked
from tracenas.commands.measure.backends import Backend, opened
from tracenas.commands.measure.journal import JournalledTurns
from tracenas.commands.measure.result import LatencyMeasured
from tracenas.config import MeasureConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.target import PruningTarget, resolve_target
from tracenas.reporting.progress import phase
from tracenas.rundir import write_json
from tracenas.space.architecture import Architecture
from tracenas.space.constraints import Budget

__all__ = ["measure"]

_SHARES = (0.5, 0.95)
"""Of the base's parameters: the sizes of the architectures that the sum is fitted and checked on."""


def measure(config: MeasureConfig) -> LatencyMeasured:
    """Measure a latency table and write it.

    Raises:
        UserError: for wrong input, a backend that is not installed, and for a journal of other settings.
    """
    if config.out.suffix != ".json":
        raise UserError(f"out {config.out}: expected a file name that ends in .json")
    source = open_source(config.model, decoder_only="measure")
    target = resolve_target(source, config)
    points = _points(config, source)
    if config.out.exists():
        raise UserError(f"out {config.out}: is there already; name another file, or remove it")
    with opened(config, target, points) as backend:
        table = _measured(config, target, points, backend)
    write_json(config.out, table.to_json())
    _journal_path(config).unlink()
    return LatencyMeasured(config.out, table)


def _points(config: MeasureConfig, source: ModelSource) -> tuple[Point, ...]:
    """How the model is served.

    Raises:
        UserError: for a point beyond its positions.
    """
    points = tuple(Point(*shape) for shape in config.shapes)
    longest = max(max(p.prompt, p.context) + config.new_tokens for p in points)
    if longest > source.positions:
        raise UserError(
            f"points {config.points} and {config.new_tokens} new tokens: the model has {source.positions} positions"
        )
    return points


def _measured(config: MeasureConfig, target: PruningTarget, points: Sequence[Point], backend: Backend) -> LatencyTable:
    space, layers = target.space, target.space.layers
    source, base = target.source, space.parameters(space.base)
    model = {"name": source.name, "family": source.family.model_type, "parameters": base}
    settings: dict[str, Any] = {"model": model, "machine": backend.machine, "points": [asdict(p) for p in points]}
    settings |= {"backend": config.backend, "turns": config.turns, "new_tokens": config.new_tokens, "seed": config.seed}
    journal = JournalledTurns(_journal_path(config), backend.measure, settings, resume=config.resume)
    with phase("latencies of widths") as steps:
        journal.steps = steps
        latencies = WidthLatencies(space, points, journal, backend.at_once, backend.widths)
        fits, checks = _random(target, [config.seed, 1], FITS), _random(target, [config.seed], CHECKS)
        latencies.measure()
        latencies.shares([*fits, *checks])  # before the latencies are taken: the base's are the medians of all turns
        outside, kinds, spread = latencies.measure()
    found = LatencyTable(
        config.backend, backend.machine, model, tuple(points), outside, kinds, spread, {}, latencies.block()
    )
    table = fitted(found, layers, [space.base, *fits], latencies.measured([space.base, *fits]))
    return replace(table, checked=checked(latencies, lambda arch, i: table.predict(layers, arch, i), checks))


def _journal_path(config: MeasureConfig) -> Path:
    return config.out.with_name(f"{config.out.name}.journal")


def _random(target: PruningTarget, seed: Sequence[int], count: int) -> list[Architecture]:
    """Architectures of random widths and depths, of sizes that are spread evenly."""
    rng, space = np.random.default_rng(seed), target.space
    least, base = space.parameters(space.smallest), space.parameters(space.base)
    found = []
    for share in np.linspace(*_SHARES, count):
        limit = max(int(share * base), least)
        arch = replace(space, budget=Budget(limit, 0.05)).sample(rng)
        found.append(arch if arch is not None else space.base)
    return found
