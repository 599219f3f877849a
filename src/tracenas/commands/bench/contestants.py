"""Models that are ready to take turns, by what runs them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from tracenas.benchmark.latency import Trial, TrialSettings
from tracenas.commands.bench.llama_models import llama_models
from tracenas.commands.bench.torch_models import torch_models
from tracenas.commands.bench.vllm_models import vllm_models
from tracenas.config import BenchConfig
from tracenas.models.checkpoints.source import ModelSource

__all__ = ["Contestants", "opened"]


class Contestants(Protocol):
    """Models by their places in the settings."""

    @property
    def parameters(self) -> Sequence[int]:
        """Of every model."""
        ...

    @property
    def setting(self) -> dict[str, Any]:
        """What they run on and in, and `notes` for people."""
        ...

    def trial(self, index: int, settings: TrialSettings) -> Trial:
        """One trial of a model."""
        ...

    def peak(self, index: int, settings: TrialSettings, trials: Sequence[Trial]) -> int | None:
        """Bytes at the peak of a model alone, None where nobody says; asked when the context is over."""
        ...


def opened(config: BenchConfig, sources: Sequence[ModelSource]) -> AbstractContextManager[Contestants]:
    """The models in what the settings name.

    Raises:
        UserError: if it is not installed, or a model cannot be loaded.
    """
    return _BACKENDS[config.backend](config, sources)


_BACKENDS: dict[str, Callable[[BenchConfig, Sequence[ModelSource]], AbstractContextManager[Contestants]]] = {
    "torch": torch_models,
    "torch-compile": torch_models,
    "llama.cpp": llama_models,
    "vllm": vllm_models,
}
