"""What a model is served by, made ready to measure it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tracenas.benchmark.devices import processor
from tracenas.benchmark.file_turns import FileTurns
from tracenas.benchmark.latency_table import Point
from tracenas.budgets import Counted, Serving, stored_as
from tracenas.commands.measure.journal import Measure
from tracenas.config import MeasureConfig
from tracenas.pipeline.gguf_files import DrawnFiles
from tracenas.pipeline.llama import llama_cpp
from tracenas.pipeline.target import PruningTarget

__all__ = ["Backend", "opened"]

_FILES = 4 << 30
"""Bytes of architectures' files that lie on the disk at once, the base's among them."""
_TURN = 6
"""Architectures that take turns with the base at most."""


@dataclass(frozen=True)
class Backend:
    """A program that measures.

    Args:
        measure: architectures in turns with the base.
        machine: what it runs on, in which number format.
        at_once: architectures that take turns at most; None for any number.
    """

    measure: Measure
    machine: dict[str, Any]
    at_once: int | None = None


def opened(config: MeasureConfig, target: PruningTarget, points: Sequence[Point]) -> AbstractContextManager[Backend]:
    """The backend of the settings; a context manager.

    Raises:
        UserError: if it is not installed, or cannot serve such models.
    """
    return _BACKENDS[config.backend](config, target, points)


@contextmanager
def _torch(config: MeasureConfig, target: PruningTarget, points: Sequence[Point]) -> Iterator[Backend]:
    import torch

    from tracenas.benchmark.compiled import require_compiler
    from tracenas.benchmark.torch_turns import TorchTurns
    from tracenas.pipeline.loading import load_model
    from tracenas.threads import set_threads

    compiled = config.backend == "torch-compile"
    threads = set_threads(config.threads)
    if compiled:
        require_compiler(config.device)
    loaded = load_model(target.source, config)
    cuda = loaded.device.type == "cuda"
    turns = TorchTurns(
        loaded.model,
        target.blocks,
        target.space,
        points,
        turns=config.turns,
        new_tokens=config.new_tokens,
        seed=config.seed,
        compiled=compiled,
    )
    machine = {
        "device": torch.cuda.get_device_name(loaded.device) if cuda else processor(),
        "dtype": loaded.dtype_name,
        "threads": threads,
        "torch": torch.__version__,
    }
    yield Backend(turns, machine)


@contextmanager
def _llama(config: MeasureConfig, target: PruningTarget, points: Sequence[Point]) -> Iterator[Backend]:
    stored = stored_as(target.source) if config.outtype == "auto" else config.outtype
    base = target.space.base
    files = DrawnFiles(Counted(target.source, target.blocks, Serving(1, stored=stored)), base)
    with llama_cpp(config) as program:
        with TemporaryDirectory() as scratch:
            files.write(base, Path(scratch) / "base.gguf")
            size = (Path(scratch) / "base.gguf").stat().st_size
        turns = FileTurns(
            base,
            files.write,
            program.served,
            program.request(config.seed),
            points,
            turns=config.turns,
            new_tokens=config.new_tokens,
        )
        yield Backend(turns, {**program.machine, "dtype": stored}, max(1, min(_TURN, _FILES // size - 1)))


_BACKENDS: dict[str, Callable[[MeasureConfig, PruningTarget, Sequence[Point]], AbstractContextManager[Backend]]] = {
    "torch": _torch,
    "torch-compile": _torch,
    "llama.cpp": _llama,
}
