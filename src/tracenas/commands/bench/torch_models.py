"""Models in PyTorch: all in memory at once where they fit, else each loaded for its trial."""

import gc
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from tracenas.benchmark.compiled import compile_blocks, require_compiler
from tracenas.benchmark.latency import Trial, TrialSettings, prompt_ids, run_trial
from tracenas.benchmark.memory import peak_bytes
from tracenas.config import BenchConfig
from tracenas.errors import UserError
from tracenas.hub.commits import pinned
from tracenas.models.checkpoints.loading import LoadedModel, load
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.loading import load_model
from tracenas.resident import available_memory
from tracenas.threads import set_threads

__all__ = ["TorchModels", "torch_models"]

_ROOM = 0.9
"""Of the memory that is free: weights beyond it are loaded one model at a time."""


@contextmanager
def torch_models(config: BenchConfig, sources: Sequence[ModelSource]) -> Iterator["TorchModels"]:
    """The models; the memory of those that were kept is free behind the context.

    Raises:
        UserError: for models that cannot be loaded, and where there is no compiler for torch-compile.
    """
    if config.backend == "torch-compile":
        require_compiler(config.device)
    models = TorchModels(config, sources, set_threads(config.threads))
    try:
        yield models
    finally:
        models.free()


class TorchModels:
    """Models by their places.

    Args:
        threads: that torch has.
    """

    def __init__(self, config: BenchConfig, sources: Sequence[ModelSource], threads: int) -> None:
        self._config, self._sources, self._threads = config, tuple(sources), threads
        spaces = [source.space() for source in sources]
        self.parameters = [space.parameters(space.base) for space in spaces]
        self._weights = [0] * len(self._sources)
        self._kept = {0: self._load(0, load_model)}
        first = self._kept[0]
        self.device, self.dtype = first.device, str(first.dtype).removeprefix("torch.")
        needed = sum(self.parameters[1:]) * first.dtype.itemsize
        self.one_at_a_time = needed > _ROOM * _free(self.device)
        if self.one_at_a_time:
            self.free()
        else:
            self._kept |= {index: self._load(index, load_model) for index in range(1, len(self._sources))}

    @property
    def setting(self) -> dict[str, Any]:
        """What they run on and in."""
        cuda = self.device.type == "cuda"
        how = (
            "its own weights and the most that a trial allocated"
            if cuda
            else "its own weights and the most that a trial added to resident memory, in a process of its own"
        )
        uncompiled = ", without torch.compile" if self._config.backend == "torch-compile" and not cuda else ""
        note = "the models do not fit side by side: each was loaded for every trial, with a short pass before it"
        return {
            "device": str(self.device),
            "device_name": torch.cuda.get_device_name(self.device) if cuda else f"CPU ({platform.machine()})",
            "dtype": self.dtype,
            "threads": self._threads,
            "torch": torch.__version__,
            "cache": self._config.kv_cache,
            "memory": "not measured" if self._config.no_memory else how + uncompiled,
            "notes": [note] if self.one_at_a_time else [],
        }

    def trial(self, index: int, settings: TrialSettings) -> Trial:
        """One trial of a model, loaded for it where they do not fit side by side."""
        loaded = self._kept.get(index) or self._load(index, _quietly)
        ids = prompt_ids(settings, int(self._sources[index].config["vocab_size"]), self._config.seed).to(self.device)
        if index not in self._kept:
            short = replace(settings, prompt=min(8, settings.prompt), new_tokens=2)
            run_trial(loaded.model, ids[:, : short.prompt], short)
        result = run_trial(loaded.model, ids, settings)
        if index not in self._kept:
            del loaded
            _collect()
        return result

    def peak(self, index: int, settings: TrialSettings, trials: Sequence[Trial]) -> int:
        """Weights and what a trial adds: on a GPU what the trials allocated, else in a process of its own."""
        if self.device.type == "cuda":
            return self._weights[index] + max(trial.extra_bytes for trial in trials)
        return peak_bytes(
            pinned(self._config.models[index]),
            settings,
            dtype=self.dtype,
            threads=self._threads,
            trust_remote_code=self._config.trust_remote_code,
            seed=self._config.seed,
        )

    def free(self) -> None:
        """Forget the models that are in memory."""
        self._kept.clear()
        _collect()

    def _load(self, index: int, how: Any) -> LoadedModel:
        """The model; the device memory that loading it took is kept."""
        source = self._sources[index]
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        try:
            loaded: LoadedModel = how(source, self._config)
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(f"model {source.name} does not fit into the memory of {self._config.device}") from error
        self._weights[index] = (torch.cuda.memory_allocated() if torch.cuda.is_available() else 0) - before
        if self._config.backend == "torch-compile":
            compile_blocks(loaded.model, [block.path for block in source.blocks()], any_width=False)
        return loaded


def _quietly(source: ModelSource, config: BenchConfig) -> LoadedModel:
    """Without a phase of its own."""
    return load(source, device=config.device, dtype=config.dtype, trust_remote_code=config.trust_remote_code)


def _free(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    memory = available_memory()
    return float("inf") if memory is None else float(memory)


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
