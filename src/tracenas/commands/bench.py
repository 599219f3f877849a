"""`tracenas bench`: latency, throughput and memory of one or more models (TraceNAS Table 8)."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tracenas.benchmark.latency import (
    Quartiles,
    Trial,
    TrialSettings,
    prompt_ids,
    quartiles,
    ratios,
    run_trial,
    take_turns,
)
from tracenas.benchmark.memory import peak_bytes
from tracenas.config import BenchConfig
from tracenas.errors import UserError
from tracenas.hub.commits import pinned
from tracenas.models.checkpoints.loading import LoadedModel
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.loading import load_model
from tracenas.reporting.data.stages import Measured
from tracenas.reporting.progress import phase
from tracenas.reporting.stage_tables import bench_table
from tracenas.reporting.terminal import Outcome, Table, to_plain
from tracenas.rundir import provenance, write_json
from tracenas.space import costs
from tracenas.threads import set_threads

__all__ = ["Bench", "ModelBench", "bench", "trial_settings"]


@dataclass(frozen=True)
class ModelBench:
    """One model's figures.

    Args:
        ttft, tpot: milliseconds to the first token and per further token.
        throughput: tokens per second while decoding, all sequences of the batch together.
        memory: bytes at the peak; None if it was not measured.
        prefill_speedup, decode_speedup: over the first model.
        flop_ratio: the first model's FLOPs of the prefill over this one's.
    """

    model: str
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
        names = tuple(Path(m.model).name for m in self.models)
        if len(set(names)) < len(names):
            names = tuple(m.model for m in self.models)
        table = bench_table(Measured("", names, tuple(m.to_json() for m in self.models), self.setting))
        return [replace(table, notes=[*table.notes, f"memory: {self.setting['memory']}"])]


def bench(config: BenchConfig) -> Bench:
    """Measure every model, in turns, against the first one.

    Raises:
        UserError: for models that cannot be loaded, or a prompt beyond their positions.
    """
    sources = [open_source(name, decoder_only="bench") for name in config.models]
    settings = trial_settings(config, sources)
    threads = set_threads(config.threads)
    loaded, weights = zip(*(_load(source, config) for source in sources), strict=True)
    device, dtype = loaded[0].device, str(loaded[0].dtype).removeprefix("torch.")
    parameters = [sum(p.numel() for p in model.model.parameters()) for model in loaded]
    work = []
    for source, model in zip(sources, loaded, strict=True):
        ids = prompt_ids(settings, int(source.config["vocab_size"]), config.seed).to(device)
        work.append(partial(run_trial, model.model, ids, settings))
    with phase("bench", (config.trials + config.warmup) * len(work)) as steps:
        trials = take_turns(work, config.trials, config.warmup, steps.advance)
    del work, loaded, model
    setting = _setting(config, settings, device, dtype, threads)
    peaks = _peaks(config, settings, setting, weights, trials)
    result = Bench(tuple(_figures(sources, parameters, trials, settings, peaks)), setting)
    if config.out is not None:
        write_json(config.out, to_plain({**result.to_json(), "provenance": provenance(seed=config.seed)}))
    return result


def trial_settings(config: BenchConfig, sources: list[ModelSource]) -> TrialSettings:
    """What a trial of these models is.

    Raises:
        UserError: for a prompt and new tokens beyond their positions.
    """
    positions = min(s.positions for s in sources)
    prompt = config.prompt or min(4096, positions - config.new_tokens)
    if prompt < 1 or prompt + config.new_tokens > positions:
        raise UserError(
            f"{'prompt ' + str(config.prompt) + ' and ' if config.prompt else ''}{config.new_tokens} new tokens: "
            f"the models have {positions} positions"
        )
    return TrialSettings(prompt, config.new_tokens, config.batch, config.cache)


def _load(source: ModelSource, config: BenchConfig) -> tuple[LoadedModel, int]:
    """The model and the device memory that loading it took."""
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    try:
        model = load_model(source, config)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"model {source.name} does not fit beside the others: bench fewer at once") from error
    return model, (torch.cuda.memory_allocated() if torch.cuda.is_available() else 0) - before


def _peaks(
    config: BenchConfig,
    settings: TrialSettings,
    setting: Mapping[str, Any],
    weights: Sequence[int],
    trials: list[list[Trial]],
) -> list[int | None]:
    """Peak memory of every model alone."""
    if config.no_memory:
        return [None] * len(weights)
    if setting["device"].startswith("cuda"):
        return [size + max(t.extra_bytes for t in turns) for size, turns in zip(weights, trials, strict=True)]
    process = {key: setting[key] for key in ("dtype", "threads")}
    process |= {"trust_remote_code": config.trust_remote_code, "seed": config.seed}
    return [peak_bytes(pinned(name), settings, **process) for name in config.models]


def _figures(
    sources: list[ModelSource],
    parameters: list[int],
    trials: list[list[Trial]],
    settings: TrialSettings,
    peaks: list[int | None],
) -> Iterator[ModelBench]:
    first, steps = trials[0], settings.new_tokens - 1
    flops = [prefill_flops(source, settings.prompt) for source in sources]
    for source, count, turns, peak, prefill in zip(sources, parameters, trials, peaks, flops, strict=True):
        yield ModelBench(
            source.name,
            count,
            quartiles([1000 * t.prefill for t in turns]),
            quartiles([1000 * t.decode / steps for t in turns]),
            quartiles([settings.batch_size * steps / t.decode for t in turns]),
            peak,
            ratios([t.prefill for t in first], [t.prefill for t in turns]),
            ratios([t.decode for t in first], [t.decode for t in turns]),
            flops[0] / prefill,
        )


def prefill_flops(source: ModelSource, prompt: int) -> float:
    """FLOPs of a sequence's prefill: the blocks on every token, the head on the last one."""
    space = source.space()
    head = 2.0 * source.family.head_weights(source.config)
    return prompt * costs.flops_per_token(space.layers, 0, space.base, prompt) + head


def _setting(
    config: BenchConfig, settings: TrialSettings, device: torch.device, dtype: str, threads: int
) -> dict[str, Any]:
    cuda = device.type == "cuda"
    how = (
        "its own weights and the most that a trial allocated"
        if cuda
        else "its own weights and the most that a trial added to resident memory, in a process of its own"
    )
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if cuda else f"CPU ({platform.machine()})",
        "dtype": dtype,
        "threads": threads,
        "torch": torch.__version__,
        **asdict(settings),
        "trials": config.trials,
        "warmup": config.warmup,
        "memory": "not measured" if config.no_memory else how,
    }
