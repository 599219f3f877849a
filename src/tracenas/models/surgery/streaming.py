"""Blocks whose weights wait in host memory, or in files that are mapped there, and are on the device while they run.

A device holds what stands outside the blocks (embeddings, head, last norm), the block that is used, and the one that is
expected next: it is copied while this one works, on a stream of its own and from pinned memory on CUDA. A block stays
until another one is wanted, so that all micro-batches and candidates that take it one after the other find it there.

Whoever calls a block's module need not know: its forward brings the weights, and a pass with gradients keeps a block's
inputs only and runs it again in the backward pass, because weights that autograd remembered would all stay. Whoever
reads weights on the device asks for `resident`. Numbers are those of a model that is on the device as a whole.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tracenas.paging import Keep, in_memory

__all__ = ["StreamedBlocks", "on_device", "resident", "stream_blocks", "streamed_blocks", "streams", "waiting"]

Around = Callable[[], AbstractContextManager[Any]]
"""Makes what a block runs in."""
_MARK = "_streamed_block"


@dataclass(frozen=True)
class _OnDevice:
    """A block's parameters on the device.

    Args:
        parameters: one per slot of the block.
        versions: of the weights at rest that they were copied from: what is changed there is copied again.
        copied: is past once they are there; None: they are.
    """

    parameters: list[nn.Parameter]
    versions: tuple[int, ...]
    copied: torch.cuda.Event | None


class StreamedBlocks:
    """The blocks of one model.

    Args:
        modules: in forward order; their weights are at rest now.
        device: where they run.
        ahead: whether the block that is expected next is copied in the meantime.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device, *, ahead: bool) -> None:
        self._device = device
        self._slots = [
            [(part, name) for part in module.modules() for name, p in part._parameters.items() if p is not None]
            for module in modules
        ]
        self._here: dict[int, _OnDevice] = {}
        self._used = [0] * len(modules)
        self._around: list[list[Around]] = [[] for _ in modules]
        self._last = -1
        self._loader = ThreadPoolExecutor(1, "next block") if ahead else None
        self._next: tuple[int, Future[_OnDevice]] | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" and torch.cuda.is_available() else None
        for index, module in enumerate(modules):
            module.forward = self._streamed(index, module.forward)

    def _streamed(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A block's forward with its weights there."""

        @wraps(forward)
        def streamed(*args: Any, **kwargs: Any) -> Any:
            around = tuple(self._around[index])

            def run(*args: Any, **kwargs: Any) -> Any:
                with ExitStack() as running:
                    running.enter_context(self.resident(index))
                    for make in around:
                        running.enter_context(make())
                    return forward(*args, **kwargs)

            if torch.is_grad_enabled() and not self._used[index]:
                return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
            return run(*args, **kwargs)

        setattr(streamed, _MARK, True)
        return streamed

    @contextmanager
    def running_in(self, index: int, around: Around) -> Iterator[None]:
        """Whenever block `index` runs, it does so within what `around` makes, its weights being there."""
        self._around[index].append(around)
        try:
            yield
        finally:
            self._around[index].remove(around)

    @contextmanager
    def resident(self, index: int) -> Iterator[None]:
        """The parameters of block `index` are those on the device, until the context ends."""
        if self._used[index]:
            self._used[index] += 1
            try:
                yield
            finally:
                self._used[index] -= 1
            return
        slots = self._slots[index]
        copies = self._taken(index)
        at_rest = [_parameter(part, name) for part, name in slots]
        for (part, name), parameter in zip(slots, copies.parameters, strict=True):
            part._parameters[name] = parameter
        self._used[index] = 1
        try:
            yield
        finally:
            self._used[index] = 0
            for (part, name), parameter in zip(slots, at_rest, strict=True):
                part._parameters[name] = parameter

    def give_up(self) -> None:
        """Hold nothing on the device any more."""
        self._next = None
        self._here.clear()

    def _taken(self, index: int) -> _OnDevice:
        """The block's copies; those of blocks that nobody uses go, and the next one's are begun."""
        versions = self._versions(index)
        if index not in self._here or self._here[index].versions != versions:
            for other in [i for i in self._here if not self._used[i]]:
                del self._here[other]
            copies = self._expected(index)
            self._here[index] = copies if copies is not None and copies.versions == versions else self._copied(index)
            self._arrived(self._here[index])
            if self._loader is not None and len(self._slots) > 1:
                step = -1 if index == self._last - 1 else 1  # backward passes go the other way
                follows = (index + step) % len(self._slots)
                self._next = follows, self._loader.submit(self._copied, follows)
            self._last = index
        return self._here[index]

    def _expected(self, index: int) -> _OnDevice | None:
        """What was begun ahead, if that is block `index` and there was room for it; another one is given up."""
        expected, self._next = self._next, None
        if expected is None or expected[0] != index:
            return None
        try:
            return expected[1].result()
        except RuntimeError:  # out of memory, while the block before was there
            return None

    def _versions(self, index: int) -> tuple[int, ...]:
        """Of the weights at rest: every change in place makes another one."""
        return tuple(_parameter(part, name)._version for part, name in self._slots[index])

    def _copied(self, index: int) -> _OnDevice:
        """Begin to copy; in a thread of its own, of which the copies of mapped files have need."""
        versions = self._versions(index)
        at_rest = [_parameter(part, name).detach() for part, name in self._slots[index]]
        if self._stream is None:
            copies, event = [weight.to(self._device, copy=True) for weight in at_rest], None
        else:
            with torch.cuda.stream(self._stream):
                copies = [weight.to(self._device, non_blocking=True) for weight in at_rest]
                event = torch.cuda.Event()
                event.record(self._stream)
        return _OnDevice([nn.Parameter(weight, requires_grad=False) for weight in copies], versions, event)

    def _arrived(self, copies: _OnDevice) -> None:
        """Have what comes from now on wait for the copies, and their memory for what uses them."""
        if copies.copied is not None:
            now = torch.cuda.current_stream(self._device)
            now.wait_event(copies.copied)
            for parameter in copies.parameters:
                parameter.data.record_stream(now)


def _parameter(module: nn.Module, name: str) -> nn.Parameter:
    parameter = module._parameters[name]
    assert parameter is not None
    return parameter


_STREAMED: WeakKeyDictionary[Any, tuple[dict[str, int], StreamedBlocks]] = WeakKeyDictionary()
"""Models whose blocks are not on the device, with the places of their blocks by path."""


def stream_blocks(
    model: Any, paths: Sequence[str], device: torch.device, keep: Keep = in_memory, *, ahead: bool | None = None
) -> None:
    """Have a model's blocks wait where they are, on the CPU, and all else of it on `device`.

    Args:
        model: on the CPU; frozen.
        paths: of its blocks, in forward order.
        keep: where the weights at rest lie; in memory they are pinned where the device is a GPU of CUDA.
        ahead: whether the next block is copied while one works; None: on CUDA.
    """
    modules = [model.get_submodule(path) for path in paths]
    stay = {id(parameter) for module in modules for parameter in module.parameters()}
    pinned = keep is in_memory and device.type == "cuda" and torch.cuda.is_available()
    moved: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # an id is unique only while its object lives
    for part in model.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if id(parameter) in stay:
                parameter.data = parameter.data.pin_memory() if pinned else keep(parameter.data)
                continue
            if id(parameter) not in moved:  # tied ones stay tied
                moved[id(parameter)] = parameter, nn.Parameter(parameter.detach().to(device), requires_grad=False)
            part._parameters[name] = moved[id(parameter)][1]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else buffer.to(device)
    streamed = StreamedBlocks(modules, device, ahead=device.type == "cuda" if ahead is None else ahead)
    _STREAMED[model] = {path: index for index, path in enumerate(paths)}, streamed


def streamed_blocks(model: Any) -> StreamedBlocks | None:
    """The blocks of a model that are streamed; None where all of it is on its device."""
    found = _STREAMED.get(model)
    return None if found is None else found[1]


def streams(module: nn.Module) -> bool:
    """Whether a module is a streamed block."""
    return hasattr(module.__dict__.get("forward"), _MARK)


@contextmanager
def resident(model: Any, path: str) -> Iterator[None]:
    """The weights of the block at `path` are on the model's device, until the context ends."""
    found = _STREAMED.get(model)
    if found is None:
        yield
        return
    with found[1].resident(found[0][path]):
        yield


def on_device(model: Any, tensor: Tensor) -> Tensor:
    """A weight or hidden states that may wait on the CPU, where the model computes."""
    return tensor.to(next(iter(model.parameters())).device)


def waiting(model: Any, keep: Keep) -> Keep:
    """Where what is of all text or all blocks waits: on the CPU where the blocks do, and there as `keep` says."""
    return keep if streamed_blocks(model) is None else partial(_off_device, keep)


def _off_device(keep: Keep, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return keep(tensor.cpu(), dtype)
