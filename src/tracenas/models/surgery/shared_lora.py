"""One LoRA for every candidate of a super-network: adapters are cut as the weights are (TraceNAS §4.2, once for all).

For a projection W [rows, columns] the adapter is B A with A [r, columns] and B [rows, r]. A candidate that keeps rows
R and columns C computes x ↦ W_RC x + (α/r) B_R A_C x: A is cut in its columns, B in its rows, both prefix views
of the same tensors, so that training any candidate trains them all. A is random, B starts at 0: at first nothing
changes. Stacked projections (experts) have no adapter.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tracenas.families import Projection, SubBlock, active, present
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.supernet import Supernet
from tracenas.space.architecture import Architecture

__all__ = ["SharedLora"]


class SharedLora:
    """Adapters of all sub-block projections of a super-network.

    Args:
        net: its units are in saliency order; its weights are never written.
        rank: r.
        alpha: adapters are scaled by α / r.
        seed: of A.
    """

    def __init__(self, net: Supernet, rank: int, *, alpha: float, seed: int) -> None:
        self.net, self.scale = net, alpha / rank
        generator = torch.Generator().manual_seed(seed)
        self._pairs: dict[tuple[Key, str], tuple[nn.Parameter, nn.Parameter]] = {}
        for key, _, projection in self._projections():
            down = torch.randn(rank, projection.columns, generator=generator) / math.sqrt(projection.columns)
            up = torch.zeros(projection.rows, rank)
            self._pairs[key, projection.path] = nn.Parameter(down.to(net.device)), nn.Parameter(up.to(net.device))

    def _projections(self) -> Iterator[tuple[Key, SubBlock, Projection]]:
        for key, sub in present(self.net.blocks):
            yield from ((key, sub, projection) for projection in sub.projections if not projection.stack)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """A and B of every projection; float32."""
        return [p for pair in self._pairs.values() for p in pair]

    def state(self) -> dict[str, Tensor]:
        """Tensors by name, for a safetensors file."""
        return {
            f"{key[0]}.{path}.{name}": tensor.detach().cpu()
            for (key, path), pair in self._pairs.items()
            for name, tensor in zip(("A", "B"), pair, strict=True)
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            ValueError: for other names or shapes.
        """
        parameters = {name: p for name, p in zip(self.state(), self.parameters, strict=True)}
        if {n: t.shape for n, t in parameters.items()} != {n: t.shape for n, t in state.items()}:
            raise ValueError("the stored adapters are those of another model or rank")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])

    @contextmanager
    def attached(self, arch: Architecture) -> Iterator[None]:
        """Adapters added to the outputs of the projections of `arch`, until the block ends.

        Entered inside `Supernet.realise(arch)`.
        """
        with ExitStack() as undo:
            widths = {(index, sub.spec.name): kept for index, sub, kept in active(self.net.blocks, arch)}
            for key, sub, projection in self._projections():
                if (kept := widths.get(key, 0)) == 0:
                    continue
                down, up = self._pairs[key, projection.path]
                rows, columns = (self.net.cut(sub, projection, axis, kept) for axis in (0, 1))
                hook = _Added(columns.take(down, -1), rows.take(up, -2), self.scale)
                undo.callback(self.net.linear(key, projection).register_forward_hook(hook).remove)
            yield


class _Added:
    """A forward hook: y + (α/r) B A x."""

    def __init__(self, down: Tensor, up: Tensor, scale: float) -> None:
        self.down, self.up, self.scale = down, up, scale

    def __call__(self, module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        (x,) = inputs
        added = nn.functional.linear(nn.functional.linear(x.to(self.down.dtype), self.down), self.up)
        return output + (self.scale * added).to(output.dtype)
