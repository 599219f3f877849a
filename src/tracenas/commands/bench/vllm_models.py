"""Models in vLLM, each in a process of its own that keeps it: they take turns, and share a GPU's memory equally."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from tracenas.benchmark.latency import Trial, TrialSettings
from tracenas.benchmark.served_model import ServedModel
from tracenas.commands.bench.trials import trial_settings
from tracenas.config import BenchConfig
from tracenas.dtypes import TORCH_NAMES
from tracenas.errors import UserError
from tracenas.models.checkpoints.fetching import fetch
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.vllm import Vllm, open_vllm, room
from tracenas.reporting.progress import phase

__all__ = ["VllmModels", "vllm_models"]


class VllmModels:
    """Models by their places.

    Args:
        program: serves them.
        models: as they are served.
        parameters: of the models.
        dtype: that they compute in.
    """

    def __init__(self, program: Vllm, models: Sequence[ServedModel], parameters: Sequence[int], dtype: str) -> None:
        self._program, self._models, self._dtype = program, models, dtype
        self.parameters = parameters

    @property
    def setting(self) -> dict[str, Any]:
        """What they run on and in."""
        machine = self._program.machine(self._models[0])
        eager = ["without torch.compile and CUDA graphs"] if self._program.config.enforce_eager else []
        return {
            "device": "cpu" if self._models[0].program.facts["device"] == "cpu" else "gpu",
            "device_name": machine["device"],
            "dtype": self._dtype,
            "threads": machine["threads"],
            "vllm": machine["vllm"],
            "memory": "not measured: vLLM takes as much as it is told to",
            "notes": ["TTFT: until every sequence has its first token; TPOT: what the others take", *eager],
        }

    def trial(self, index: int, settings: TrialSettings) -> Trial:
        """One trial of a model; the first one loads it."""
        return self._models[index].trial(settings)

    def peak(self, index: int, settings: TrialSettings, trials: Sequence[Trial]) -> None:
        """Not measured."""


@contextmanager
def vllm_models(config: BenchConfig, sources: Sequence[ModelSource]) -> Iterator[VllmModels]:
    """The models' processes, ended behind the context.

    Raises:
        UserError: if vLLM is not installed, or a model is packed.
    """
    program = open_vllm(config)
    for source in sources:
        if source.packed is not None:
            raise UserError(f"backend vllm: {source.name} is no checkpoint directory; accepted: --backend torch")
        fetch(source)
    spaces = [source.space() for source in sources]
    dtype = TORCH_NAMES.get(config.dtype, config.dtype)
    length = max(settings.prompt + settings.new_tokens for settings in trial_settings(config, sources))
    load = room(sources, dtype=dtype, sequences=max(config.batches), length=length)
    with ExitStack() as stack:
        with phase("start vLLM"):
            models = [
                stack.enter_context(program.model(source.path, at_once=len(sources), load=load)) for source in sources
            ]
        yield VllmModels(program, models, [space.parameters(space.base) for space in spaces], dtype)
