"""`tracenas bench`: latency, throughput and memory of one or more models (TraceNAS Table 8)."""

import platform
from dataclasses import dataclass, replace
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
from tracenas.config import BenchConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import LoadedModel, load
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.reporting.data.stages import Measured
from tracenas.reporting.progress import stage_progress
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
    loaded, weights = [], []
    for source in sources:
        model, own = _load(source, config)
        loaded.append(model)
        weights.append(own)
    device = loaded[0].device
    prompts = [prompt_ids(settings, int(s.config["vocab_size"]), config.seed).to(device) for s in sources]
    parameters = [sum(p.numel() for p in model.model.parameters()) for model in loaded]
    turns = (config.trials + config.warmup) * len(loaded)
    work = [partial(run_trial, m.model, ids, settings) for m, ids in zip(loaded, prompts, strict=True)]
    with stage_progress("bench", turns) as advance:
        trials = take_turns(work, config.trials, config.warmup, advance)
    dtype = str(loaded[0].dtype).removeprefix("torch.")
    del work, loaded
    peaks = _peaks(config, settings, device, dtype, threads, weights, trials)
    found = Bench(
        tuple(_figures(i, sources, parameters, trials, settings, peaks[i]) for i in range(len(sources))),
        _setting(config, settings, device, dtype, threads),
    )
    if config.out is not None:
        write_json(config.out, to_plain({**found.to_json(), "provenance": provenance(seed=config.seed)}))
    return found


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
    return TrialSettings(prompt, config.new_tokens, config.batch_size, config.cache)


def _load(source: ModelSource, config: BenchConfig) -> tuple[LoadedModel, int]:
    """The model and the device memory that loading it took."""
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    try:
        model = load(source, device=config.device, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(f"model {source.name} does not fit beside the others: bench fewer at once") from error
    return model, (torch.cuda.memory_allocated() if torch.cuda.is_available() else 0) - before


def _peaks(
    config: BenchConfig,
    settings: TrialSettings,
    device: torch.device,
    dtype: str,
    threads: int,
    weights: list[int],
    trials: list[list[Trial]],
) -> list[int | None]:
    """Peak memory of every model alone."""
    if config.no_memory:
        return [None] * len(weights)
    if device.type == "cuda":
        return [own + max(t.extra_bytes for t in of) for own, of in zip(weights, trials, strict=True)]
    from tracenas.benchmark.memory import peak_bytes

    return [
        peak_bytes(
            name, settings, dtype=dtype, threads=threads, trust_remote_code=config.trust_remote_code, seed=config.seed
        )
        for name in config.models
    ]


def _figures(
    index: int,
    sources: list[ModelSource],
    parameters: list[int],
    trials: list[list[Trial]],
    settings: TrialSettings,
    memory: int | None,
) -> ModelBench:
    own, first = trials[index], trials[0]
    steps = settings.new_tokens - 1
    return ModelBench(
        sources[index].name,
        parameters[index],
        quartiles([1000 * t.prefill for t in own]),
        quartiles([1000 * t.decode / steps for t in own]),
        quartiles([settings.batch_size * steps / t.decode for t in own]),
        memory,
        ratios([t.prefill for t in first], [t.prefill for t in own]),
        ratios([t.decode for t in first], [t.decode for t in own]),
        prefill_flops(sources[0], settings.prompt) / prefill_flops(sources[index], settings.prompt),
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
        "prompt": settings.prompt,
        "new_tokens": settings.new_tokens,
        "batch_size": settings.batch_size,
        "cache": settings.cache,
        "trials": config.trials,
        "warmup": config.warmup,
        "memory": "not measured" if config.no_memory else how,
    }
