"""What `tracenas plan` says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tracenas.budgets import LATENCIES
from tracenas.commands.plan.needs import Need
from tracenas.commands.plan.predicted import UNCHECKED
from tracenas.formats import counted, data_size, duration
from tracenas.reporting.terminal import Outcome, Table, to_plain
from tracenas.scoring.workload import Memory, Shape

if TYPE_CHECKING:
    from tracenas.benchmark.machine import Rates

__all__ = ["PlannedBudget", "SearchPlan"]


@dataclass(frozen=True)
class PlannedBudget:
    """A budget in what it counts: bytes, FLOPs, parameters or milliseconds.

    Args:
        limit: of every candidate.
        feasible: what the smallest architecture and the base cost.
        uniform: what the uniform architecture costs, exactly.
    """

    limit: int | float
    feasible: tuple[int | float, int | float]
    uniform: int | float

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"limit": self.limit, "feasible": list(self.feasible), "uniform": self.uniform}

    def describe(self) -> str:
        """The limit, what of it equal ratios use, and what is feasible."""
        low, base = self.feasible
        limit, uniform, least, most = map(counted, (self.limit, self.uniform, low, base))
        share = 100 * self.uniform / base
        return f"{limit}; uniform {uniform} ({share:.1f}% of the base); feasible {least} to {most}"


@dataclass(frozen=True)
class SearchPlan(Outcome):
    """What a search at these settings would take; counts are exact, memory and time are estimates.

    Args:
        model: as it was named.
        family: its model_type.
        base, smallest: parameters of the largest and smallest architecture of the space.
        limit, lower: the window of the budget for parameters, None without one.
        budgets: by name.
        uniform: the uniform architecture at the budget, in figures (the base without a budget).
        evaluations: at most; what has been seen before is not evaluated again.
        shape: calibration and micro-batch.
        memory: bytes at the peak.
        rates: what this machine managed, None if it was not tried.
        seconds_per_evaluation: of one candidate; None without rates.
        seconds: of every stage that could be estimated, the search first; empty without rates.
        needs: what has to be there, and how much is.
        origin: where the weights come from, where that needs to be said (GGUF).
        predicted: what a sensitivity table says of the budget (`predicted_rises`); None without one.
        unknown: texts and tasks whose size is not known before they are fetched: their time is in no stage.
        untimed: stages whose time is not told.
        sizes: of a front's checkpoints, and what their first cost is at most.
    """

    model: str
    family: str
    base: int
    smallest: int
    limit: int | None
    lower: int | None
    budgets: Mapping[str, PlannedBudget]
    uniform: dict[str, Any]
    evaluations: int
    shape: Shape
    memory: Memory
    rates: "Rates | None"
    seconds_per_evaluation: float | None
    seconds: Mapping[str, float]
    needs: tuple[Need, ...]
    origin: str | None = None
    predicted: dict[str, Any] | None = None
    unknown: tuple[str, ...] = ()
    untimed: tuple[str, ...] = ()
    sizes: Mapping[str, int | float] = field(default_factory=dict)

    def to_json(self) -> Any:
        """For `--json`."""
        budget = None if self.limit is None else {"limit": self.limit, "lower": self.lower}
        time = None
        if self.rates is not None:
            time = {
                "estimate": True,
                "seconds_per_evaluation": self.seconds_per_evaluation,
                "seconds": self.seconds["search"],
                "stages": dict(self.seconds),
                "without": [*self.unknown, *self.untimed],
                "measured": vars(self.rates),
            }
        return to_plain(
            {
                "model": self.model,
                **({"weights": self.origin} if self.origin else {}),
                "family": self.family,
                "feasible": {
                    "smallest": self.smallest,
                    "base": self.base,
                    "smallest_percent": 100 * self.smallest / self.base,
                },
                "budget": budget,
                "budgets": {name: budget.to_json() for name, budget in self.budgets.items()},
                "uniform": self.uniform,
                **({"predicted": self.predicted} if self.predicted else {}),
                **({"checkpoints": dict(self.sizes)} if self.sizes else {}),
                "evaluations": self.evaluations,
                "calibration": {**vars(self.shape), "tokens": self.shape.tokens},
                "memory_bytes": {"estimate": True, **vars(self.memory), "total": self.memory.total},
                "fits": [need.to_json() for need in self.needs],
                "time": time,
            }
        )

    def tables(self) -> list[Table]:
        """Everything, and what the estimates are from."""
        notes = [self.origin] if self.origin is not None else []
        notes.append("memory: " + ", ".join(f"{name} {data_size(count)}" for name, count in vars(self.memory).items()))
        if self.shape.recomputed:
            notes.append("memory: blocks run again in the backward pass, as all activations at once would not fit")
        if self.predicted is not None:
            notes.append(UNCHECKED)
        if self.rates is not None:
            notes.append(
                "time: an estimate, from a second of measuring what this machine does when left alone "
                f"({self.rates.flops / 1e9:.1f} GFLOP/s in matrix products, {self.rates.bytes / 1e9:.1f} GB/s)"
            )
        if self.unknown:
            notes.append(f"time: without {', '.join(self.unknown)}, whose size is not known before it is fetched")
        if self.untimed:
            notes.append(f"time: without {', '.join(self.untimed)}; bench is told for backend torch")
        return [Table(f"plan for {self.model} ({self.family})", ("", "value"), self._rows(), notes)]

    def _rows(self) -> list[tuple[str, str]]:
        u, s = self.uniform, self.shape
        share = 100 * self.smallest / self.base
        rows = [
            ("base, parameters", f"{self.base:,}"),
            ("feasible budgets", f"{self.smallest:,} to {self.base:,} ({share:.1f}% to 100%)"),
        ]
        if self.limit is not None:
            rows.append(("budget", f"{self.lower:,} to {self.limit:,} parameters"))
        of_what = " (uniform architecture)" if self.budgets else " (base)"
        if self.budgets:
            uniform = f"{u['params']:,} parameters ({100 * u['params'] / self.base:.2f}%)"
            rows.append(("uniform architecture", uniform))
        rows += [(f"budget {name}", budget.describe()) for name, budget in self.budgets.items() if name != "params"]
        rows += [(name, f"{counted(u[name])}{of_what}") for name in LATENCIES if name in u and name not in self.budgets]
        if self.predicted is not None:
            names = {"": "closed form", "_mlp": "MLPs alone", "_uniform": "equal ratios"}
            figures = {name: self.predicted.get(f"predicted_rise{suffix}") for suffix, name in names.items()}
            rises = ", ".join(f"{name} {rise:.4g}" for name, rise in figures.items() if rise is not None)
            rows.append(("predicted rise of the loss, nats per token", rises))
        if self.sizes:
            rows.append(("checkpoints, at most", ", ".join(f"{n}: {counted(v)}" for n, v in self.sizes.items())))
        of_base = f" ({100 * u['flops_ratio']:.1f}% of the base)" if self.budgets else ""
        rows += [
            ("forward FLOPs per token", f"{u['flops_per_token']:.4g}{of_base}"),
            (
                "KV-cache per token",
                f"{u['kv_cache_bytes_per_token']:,} bytes (bf16), base {u['base_kv_cache_bytes_per_token']:,}",
            ),
            ("calibration", f"{s.samples} × {s.seq_len} = {s.tokens:,} tokens, {s.micro_batch} per pass"),
            ("evaluations, at most", f"{self.evaluations:,}"),
            ("peak memory, estimate", data_size(self.memory.total)),
            *((need.name, need.describe()) for need in self.needs),
        ]
        for stage, seconds in self.seconds.items():
            each = f" ({self.seconds_per_evaluation:.3g} s per evaluation)" if stage == "search" else ""
            rows.append((f"time of {stage}, estimate", duration(seconds) + each))
        return rows
