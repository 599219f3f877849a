"""`tracenas measure`: latencies of sub-blocks by width on what will serve the model, checked on whole architectures."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tracenas.benchmark.latency_table import PHASES, LatencyTable, Point
from tracenas.benchmark.torch_turns import TorchTurns
from tracenas.benchmark.width_latency import CHECKS, TurnTimes, WidthLatencies, checked
from tracenas.config import MeasureConfig
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.models.checkpoints.loading import LoadedModel
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.loading import load_model
from tracenas.pipeline.target import PruningTarget, resolve_target
from tracenas.reporting.progress import Phase, phase
from tracenas.reporting.terminal import Outcome, Table
from tracenas.rundir import write_json
from tracenas.space.architecture import Architecture
from tracenas.space.constraints import Budget
from tracenas.threads import set_threads

__all__ = ["LatencyMeasured", "measure"]

_SHARES = (0.5, 0.95)
"""Of the base's parameters: the sizes of the architectures that the sum is checked on."""
_GOOD = 0.10
"""A median error beyond which budgets do not take a table unless told."""


@dataclass(frozen=True)
class LatencyMeasured(Outcome):
    """A table that was written.

    Args:
        path: the file.
        latencies: what it holds.
    """

    path: Path
    latencies: LatencyTable

    def to_json(self) -> dict[str, Any]:
        """For `--json`: the file's object and its path."""
        return {"path": str(self.path), **self.latencies.to_json()}

    def records(self) -> list[dict[str, Any]]:
        """Every measured width of every kind."""
        return [
            {"kind": kind.slots[0][1], "slots": len(kind.slots), "point": i, "width": width}
            | {phase: one[phase][place] for phase in PHASES}
            for kind in self.latencies.kinds
            for i, one in enumerate(kind.latency)
            for place, width in enumerate(kind.widths)
        ]

    def tables(self) -> list[Table]:
        """Latencies at some widths, and what the check says."""
        rows = []
        for i, point in enumerate(self.latencies.points):
            where = f"{point.batch}:{point.prompt}:{point.context}"
            rows.append((where, "outside", "", *(f"{self.latencies.outside[i][phase]:.3f}" for phase in PHASES)))
            for kind in self.latencies.kinds:
                for width in dict.fromkeys((kind.widths[0], kind.widths[len(kind.widths) // 2], kind.widths[-1])):
                    cells = (f"{kind.at(width, i, phase):.3f}" for phase in PHASES)
                    rows.append((where, f"{kind.slots[0][1]} (× {len(kind.slots)})", f"{width:,}", *cells))
        error = self.latencies.checked["median_error"]
        notes = [
            f"{self.path}: {CHECKS} whole architectures differ from the sum by {100 * error:.1f} % (median)"
            + ("" if error <= _GOOD else ": too much to be relied on")
        ]
        return [Table("", ("point", "part", "width", "prefill, ms", "decode, ms"), rows, notes)]


def measure(config: MeasureConfig) -> LatencyMeasured:
    """Measure a latency table and write it.

    Raises:
        UserError: for wrong input, and for a journal of other settings.
    """
    if config.out.suffix != ".json":
        raise UserError(f"out {config.out}: expected a file name that ends in .json")
    source = open_source(config.model, decoder_only="measure")
    target = resolve_target(source, config)
    points = tuple(Point(*shape) for shape in config.shapes)
    longest = max(max(p.prompt, p.context) + config.new_tokens for p in points)
    if longest > source.positions:
        raise UserError(
            f"points {config.points} and {config.new_tokens} new tokens: the model has {source.positions} positions"
        )
    if config.out.exists():
        raise UserError(f"out {config.out}: is there already; name another file, or remove it")
    threads = set_threads(config.threads)
    loaded = load_model(source, config)
    machine = _machine(loaded, threads)
    base = target.space.parameters(target.space.base)
    model = {"name": source.name, "family": source.family.model_type, "parameters": base}
    settings: dict[str, Any] = {"model": model, "machine": machine, "points": [asdict(p) for p in points]}
    settings |= {"backend": config.backend, "turns": config.turns, "new_tokens": config.new_tokens, "seed": config.seed}
    journal = _Turns(config, target, loaded, points, settings)
    with phase("latencies of widths") as steps:
        journal.steps = steps
        latencies, archs = WidthLatencies(target.space, points, journal), _random(target, config.seed)
        latencies.measure()
        latencies.shares(archs)  # before the latencies are taken: the base's are the medians of all turns
        table = LatencyTable(config.backend, machine, model, points, *latencies.measure(), checked={})
        layers = target.space.layers
        table = replace(table, checked=checked(latencies, lambda arch, i: table.predict(layers, arch, i), archs))
    write_json(config.out, table.to_json())
    journal.path.unlink()
    return LatencyMeasured(config.out, table)


class _Turns:
    """Trials, or what the journal of an interrupted table says of them.

    Args:
        settings: that must be the journal's.
    """

    def __init__(
        self,
        config: MeasureConfig,
        target: PruningTarget,
        loaded: LoadedModel,
        points: Sequence[Point],
        settings: dict[str, Any],
    ) -> None:
        self.path = config.out.with_name(f"{config.out.name}.journal")
        self.steps: Phase | None = None
        self._journal = Journal(self.path)
        self._known = self._journal.read()
        if self._known and not config.resume:
            raise UserError(
                f"{self.path}: an interrupted table is there: --resume goes on with it, or name another --out"
            )
        if self._known and self._known[0] != settings:
            raise UserError(f"{self.path}: measured with other settings, or on another machine; name another --out")
        if not self._known:
            self._journal.append(settings)
        self._place = 1
        self._trials = TorchTurns(
            loaded.model,
            target.blocks,
            target.space,
            points,
            turns=config.turns,
            new_tokens=config.new_tokens,
            seed=config.seed,
        )

    def __call__(self, archs: Sequence[Architecture]) -> TurnTimes:
        """These, in turns with the base."""
        names, place = [arch.id for arch in archs], self._place
        self._place += 1
        if place < len(self._known):
            record = self._known[place]
            if record.get("archs") != names:
                raise UserError(
                    f"{self.path}: line {place + 1} is of other architectures; remove the file to begin anew"
                )
            return TurnTimes(tuple(map(tuple, record["base"])), tuple(tuple(map(tuple, o)) for o in record["others"]))
        measured = self._trials(archs, self._advance)
        self._journal.append({"archs": names, "base": measured.base, "others": measured.others})
        return measured

    def _advance(self, count: int) -> None:
        if self.steps is not None:
            self.steps.advance(count)


def _random(target: PruningTarget, seed: int) -> list[Architecture]:
    """Architectures of random widths and depths, of sizes that are spread evenly."""
    rng, space = np.random.default_rng(seed), target.space
    least, base = space.parameters(space.smallest), space.parameters(space.base)
    found = []
    for share in np.linspace(*_SHARES, CHECKS):
        limit = max(int(share * base), least)
        arch = replace(space, budget=Budget(limit, 0.05)).sample(rng)
        found.append(arch if arch is not None else space.base)
    return found


def _machine(loaded: LoadedModel, threads: int) -> dict[str, Any]:
    device = loaded.device
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else (_processor() or platform.machine()),
        "dtype": loaded.dtype_name,
        "threads": threads,
        "torch": torch.__version__,
    }


def _processor() -> str:
    """What /proc/cpuinfo calls it; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
