"""What `tracenas bench` measured, for people and for scripts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracenas.benchmark.latency import Quartiles
from tracenas.reporting.data.stages import Measured
from tracenas.reporting.stage_tables import bench_table
from tracenas.reporting.terminal import Outcome, Table

__all__ = ["Bench", "ModelBench"]


@dataclass(frozen=True)
class ModelBench:
    """One model's figures at a batch size.

    Args:
        batch: sequences at once.
        ttft, tpot: milliseconds to the first token and per further token.
        throughput: tokens per second while decoding, all sequences of the batch together.
        memory: bytes at the peak; None if it was not measured.
        prefill_speedup, decode_speedup: over the first model.
        flop_ratio: the first model's FLOPs of the prefill over this one's.
    """

    model: str
    batch: int
    params: int
    ttft: Quartiles
    tpot: Quartiles
    throughput: Quartiles
    memory: int | None
    prefill_speedup: Quartiles
    decode_speedup: Quartiles
    flop_ratio: float

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "model": self.model,
            "batch": self.batch,
            "params": self.params,
            "ttft_ms": self.ttft.to_json(),
            "tpot_ms": self.tpot.to_json(),
            "throughput_tokens_per_s": self.throughput.to_json(),
            "peak_memory_bytes": self.memory,
            "prefill_speedup": self.prefill_speedup.to_json(),
            "decode_speedup": self.decode_speedup.to_json(),
            "prefill_flop_ratio": self.flop_ratio,
            "prefill_speedup_over_flop_ratio": self.prefill_speedup.median / self.flop_ratio,
        }


@dataclass(frozen=True)
class Bench(Outcome):
    """Figures of several models, taken in turns.

    Args:
        models: per batch size, one after the other.
        setting: device, dtype, threads, versions and what a trial was.
    """

    models: tuple[ModelBench, ...]
    setting: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"setting": self.setting, "models": [m.to_json() for m in self.models]}

    def records(self) -> list[dict[str, Any]]:
        """What was measured of every model."""
        return [m.to_json() for m in self.models]

    def tables(self) -> list[Table]:
        """A row per model."""
        short = {m.model: Path(m.model).name for m in self.models}
        apart = len(set(short.values())) == len(short)
        names = tuple(short[m.model] if apart else m.model for m in self.models)
        table = bench_table(Measured("", names, tuple(m.to_json() for m in self.models), self.setting))
        notes = [f"memory: {self.setting['memory']}", *self.setting["notes"]]
        return [replace(table, notes=[*table.notes, *notes])]
