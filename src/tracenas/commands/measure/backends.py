"""What a model is served by, made ready to measure it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from tracenas.benchmark.devices import processor
from tracenas.benchmark.latency_table import Point
from tracenas.benchmark.served_turns import beside_base
from tracenas.benchmark.width_latency import FIRST, MOST
from tracenas.budgets import Counted, Serving, stored_as
from tracenas.commands.measure.journal import Measure
from tracenas.config import MeasureConfig
from tracenas.dtypes import TORCH_NAMES
from tracenas.errors import UserError
from tracenas.models.checkpoints.serving import PLUGIN_FAMILIES, STOCK_VLLM_FAMILIES
from tracenas.pipeline.gguf_files import DrawnFiles
from tracenas.pipeline.llama import llama_cpp
from tracenas.pipeline.target import PruningTarget
from tracenas.pipeline.vllm import open_vllm, room

__all__ = ["Backend", "opened"]

_FILES = 4 << 30
"""Bytes of architectures' files that lie on the disk at once, the base's among them."""
_TURN = 6
"""Architectures that take turns with the base at most."""
_SLOW = (3, 5)
"""Widths of a kind, at first and in all, where every architecture takes a process that loads for a minute."""
_STORED = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}


@dataclass(frozen=True)
class Backend:
    """A program that measures.

    Args:
        measure: architectures in turns with the base.
        machine: what it runs on, in which number format.
        at_once: architectures that take turns at most; None for any number.
        widths: of a kind that are measured at first, and in all.
    """

    measure: Measure
    machine: dict[str, Any]
    at_once: int | None = None
    widths: tuple[int, int] = (FIRST, MOST)


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
    with (
        llama_cpp(config) as program,
        beside_base(base, files.write, program.model, points, **_trials(config)) as turns,
    ):
        at_once = max(1, min(_TURN, _FILES // turns.size - 1))
        yield Backend(turns, {**program.machine, "dtype": stored}, at_once)


@contextmanager
def _vllm(config: MeasureConfig, target: PruningTarget, points: Sequence[Point]) -> Iterator[Backend]:
    program = open_vllm(config)
    own = _own_layers(config, target, plugin=program.plugin)
    from tracenas.pipeline.drawn_checkpoints import DrawnCheckpoints

    dtype = _STORED[stored_as(target.source)] if config.dtype == "auto" else config.dtype
    length = max(max(point.prompt, point.context) for point in points) + config.new_tokens
    sequences = max(point.batch for point in points)
    load = room([target.source], dtype=TORCH_NAMES[dtype], sequences=sequences, length=length)
    files = DrawnCheckpoints(target.source, target.blocks, TORCH_NAMES[dtype], stub_attention=not own)
    serve = partial(program.model, at_once=2, load={**load, "load_format": "dummy"})
    with beside_base(target.space.base, files.write, serve, points, **_trials(config), warmup=1) as turns:
        machine = {**program.machine(turns.base), "dtype": dtype, "layers": "vllm" if own else "transformers"}
        yield Backend(turns, {**machine, "eager": config.enforce_eager}, 1, _SLOW)


def _trials(config: MeasureConfig) -> dict[str, int]:
    return {"turns": config.turns, "new_tokens": config.new_tokens}


def _own_layers(config: MeasureConfig, target: PruningTarget, *, plugin: bool) -> bool:
    """Whether vLLM serves models whose blocks differ by layers of its own; else by transformers'.

    Raises:
        UserError: if it does not serve them at all.
    """
    family = target.source.family.model_type
    if family not in STOCK_VLLM_FAMILIES:
        raise UserError(
            f"backend vllm: blocks that differ are not served for the family '{family}'; accepted: "
            f"{', '.join(STOCK_VLLM_FAMILIES)}, or --backend torch"
        )
    if plugin and family in PLUGIN_FAMILIES:
        return True
    if not config.trust_remote_code:
        serves = "install tracenas beside it (pip install --no-deps), or " if family in PLUGIN_FAMILIES else ""
        raise UserError(
            f"backend vllm: it does not know models whose blocks differ; {serves}give --trust-remote-code, with which "
            "it serves them by transformers' layers"
        )
    return False


_BACKENDS: dict[str, Callable[[MeasureConfig, PruningTarget, Sequence[Point]], AbstractContextManager[Backend]]] = {
    "torch": _torch,
    "torch-compile": _torch,
    "llama.cpp": _llama,
    "vllm": _vllm,
}
