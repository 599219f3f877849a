"""llama.cpp as the settings name it: the Python that has it, the threads, and where it computes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tracenas.benchmark.llama_trials as script
from tracenas.benchmark.devices import graphics_processors, processor
from tracenas.benchmark.served import Served
from tracenas.benchmark.served_model import ServedModel
from tracenas.errors import UserError
from tracenas.exporters.gguf.check import find_llama
from tracenas.pipeline.served_settings import ServedSettings, visible_gpu
from tracenas.worker_pool import available_cores

__all__ = ["LlamaCpp", "llama_cpp"]


class Settings(ServedSettings, Protocol):
    """What is read of a command's settings."""

    @property
    def llama_python(self) -> Path | None: ...


@dataclass(frozen=True)
class LlamaCpp:
    """A process that measures GGUF files.

    Args:
        served: is asked.
        threads: of the CPU.
        gpu: whether all layers lie on a GPU.
        index: of that GPU.
        seed: of the tokens.
    """

    served: Served
    threads: int
    gpu: bool
    index: int
    seed: int

    @property
    def machine(self) -> dict[str, Any]:
        """What it computes with."""
        device = (graphics_processors()[self.index :] or ("GPU",))[0] if self.gpu else processor()
        return {"device": device, "threads": self.threads, "llama_cpp": self.served.facts["llama_cpp"]}

    @contextmanager
    def model(self, path: Path) -> Iterator[ServedModel]:
        """A file; it is loaded for every trial, and freed behind it."""
        request = {"model": str(path), "threads": self.threads, "gpu": self.gpu, "seed": self.seed}
        yield ServedModel(self.served, request)


@contextmanager
def llama_cpp(config: Settings) -> Iterator[LlamaCpp]:
    """The process, ended behind the context.

    Raises:
        UserError: if llama-cpp-python is not installed, or has no GPU where one is asked for.
    """
    python = find_llama(config.llama_python, "--backend llama.cpp")
    _, colon, gpu = config.device.partition(":")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible_gpu(config.device)} if colon else None
    with Served("llama.cpp", [str(python), str(script.__file__)], environment) as served:
        there = bool(served.facts["gpu"])
        if config.device.startswith("cuda") and not there:
            raise UserError(
                f"device {config.device}: this llama-cpp-python was built without a GPU "
                '(CMAKE_ARGS="-DGGML_CUDA=on" pip install llama-cpp-python); accepted: auto, cpu'
            )
        on_gpu = there and config.device != "cpu"
        yield LlamaCpp(served, config.threads or available_cores(), on_gpu, int(gpu or 0), config.seed)
