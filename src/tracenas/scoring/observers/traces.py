"""Gradient traces (TraceNAS §3.4) of a pass, and their sums against the base's."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from tracenas.families import present
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.streaming import streamed_blocks
from tracenas.models.surgery.supernet import Supernet
from tracenas.proxies.trace import Trace, TraceRecorder, correlation_sums
from tracenas.scoring.observers.observer import AnchoredObserver
from tracenas.space.architecture import Architecture

__all__ = ["TraceObserver"]


class TraceObserver(AnchoredObserver):
    """Memory: the base's trace and the candidate's, 4 · rank bytes per row of every linear weight."""

    backward = True

    def __init__(self, net: Supernet, tokens: Tensor, *, rank: int, seed: int) -> None:
        super().__init__(net, tokens, rank=rank, seed=seed)
        self.recorder = TraceRecorder(net, rank, seed)
        self._trace = self._base = Trace()
        self._base_sums: dict[Key, Any] = {}

    def unsupported(self) -> str | None:
        """Traces of fused experts are read off their weights' gradients."""
        stacked = any(sub.stacked for _, sub in present(self.net.blocks))
        if stacked and streamed_blocks(self.net.model) is not None:
            return "gradient traces of fused experts want all weights on the device (device-memory)"
        return None

    @contextmanager
    def watch(self, arch: Architecture) -> Iterator[None]:
        """Add up the traces of every backward pass."""
        with self.recorder.record(arch) as self._trace:
            yield
        self._trace.divide(self.scale)

    def anchor(self) -> None:
        """The functional anchor of §3.4."""
        self._base, self._trace = self._trace, Trace()

    def result(self, arch: Architecture) -> dict[str, Any]:
        """`sums`."""
        trace, self._trace = self._trace, Trace()
        return {"sums": correlation_sums(self.net, arch, trace, self._base, self._base_sums)}
