"""Activation codes of the MLPs (NASWOT) and correlations between features of the sub-blocks' outputs (MeCo)."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tracenas.families import active, present
from tracenas.models.functionals.loss import tokens_of_stack
from tracenas.models.surgery.ordering import Key
from tracenas.scoring.observers.observer import Observer, spread
from tracenas.space.architecture import Architecture

__all__ = ["CODE_POSITIONS", "FEATURES", "CodeObserver", "FeatureObserver"]

CODE_POSITIONS = 32
"""Positions per sequence whose codes are read, evenly spaced."""

FEATURES = 64
"""Features per sub-block whose correlations are taken, evenly spaced."""


class CodeObserver(Observer):
    """Signs of the gates' pre-activations. Memory: a byte per sequence, code position and kept MLP channel."""

    def unsupported(self) -> str | None:
        """Fused experts are no modules, and which of them a token goes to differs."""
        if any(sub.stacked and not sub.spec.score_width for _, sub in present(self.net.blocks)):
            return "activation codes are not read of fused experts"
        return None

    def hooks(self, arch: Architecture) -> Iterator[RemovableHandle]:
        """Read the codes of every forward pass."""
        self._codes: list[list[Tensor]] = []
        for index, sub, _ in active(self.net.blocks, arch):
            if not sub.spec.score_width:
                length = tokens_of_stack(self.net.blocks[index].stack, self.tokens.shape[1])
                positions = spread(length, CODE_POSITIONS, self.net.device)
                # its rows (where several matrices are fused: the first of them) enter the activation
                gate = next(p for p in sub.projections if p.path != sub.output)
                self._codes.append([])
                module = self.net.linear((index, sub.spec.name), gate)
                yield module.register_forward_hook(_reader(self._codes[-1], positions, len(gate.row_units)))

    def result(self, arch: Architecture) -> dict[str, Any]:
        """`kernel`: bits that agree = (bits + s sᵀ)/2 with s = ±1."""
        count = len(self.tokens)
        kernel = torch.zeros(count, count, dtype=torch.float64)
        codes, self._codes = self._codes, []
        for parts in codes:
            signs = torch.cat(parts).flatten(1).float().mul_(2).sub_(1)
            kernel += ((signs @ signs.T).double().cpu() + signs.shape[1]) / 2
        return {"kernel": kernel.numpy()}


def _reader(codes: list[Tensor], positions: Tensor, fused: int) -> Callable[..., None]:
    def read(_: Any, __: Any, output: Tensor) -> None:
        channels = output.shape[-1] // fused
        codes.append(output.detach()[:, positions, :channels] > 0)

    return read


class FeatureObserver(Observer):
    """Correlation matrices over all tokens. Memory: FEATURES² float64 numbers per sub-block."""

    def hooks(self, arch: Architecture) -> Iterator[RemovableHandle]:
        """Add up moments of the outputs of every active sub-block."""
        self._moments: dict[Key, list[Tensor]] = {}
        self._rows: dict[Key, int] = {}
        for index, sub, _ in active(self.net.blocks, arch):
            module = self.net.model.get_submodule(f"{self.net.blocks[index].path}.{sub.module}")
            yield module.register_forward_hook(self._adder((index, sub.spec.name)))

    def _adder(self, key: Key) -> Callable[..., None]:
        def add(_: Any, __: Any, output: Any) -> None:
            x = (output[0] if isinstance(output, tuple) else output).detach().flatten(0, -2)
            x = x[:, spread(x.shape[-1], FEATURES, x.device)].double()
            if key not in self._moments:
                # Sums are taken about the first micro-batch's mean, so that little is lost in their difference.
                self._moments[key] = [x.mean(dim=0), x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1], x.shape[1])]
            self._rows[key] = self._rows.get(key, 0) + len(x)
            centre, first, second = self._moments[key]
            x = x - centre
            first += x.sum(dim=0)
            second.addmm_(x.T, x)

        return add

    def result(self, arch: Architecture) -> dict[str, Any]:
        """`features`."""
        moments, self._moments = self._moments, {}
        rows = self._rows
        return {"features": {key: _correlation(m[1], m[2], rows[key]).cpu().numpy() for key, m in moments.items()}}


def _correlation(first: Tensor, second: Tensor, count: int) -> Tensor:
    """Pearson's, from Σx and Σxxᵀ; 0 where a feature is constant, except with itself."""
    covariance = second - torch.outer(first, first) / count
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    scale = torch.outer(deviation, deviation)
    correlation = torch.where(scale == 0, 0.0, covariance / scale.where(scale != 0, 1.0))
    correlation.diagonal()[deviation == 0] = 1.0
    return correlation
