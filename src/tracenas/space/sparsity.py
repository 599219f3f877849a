"""The genome of unstructured pruning: a share of zeros per sub-block under one global share (TraceNAS D.4)."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracenas.errors import UserError

__all__ = ["GRID", "Shares", "SparsitySpace"]

GRID = 1000
"""Shares are multiples of 1/GRID."""

_TOLERANCE = 0.002
"""The global share may exceed the asked one by this much."""


@dataclass(frozen=True)
class Shares:
    """Zeros in every sub-block, in thousandths: per layer (name, thousandths) in the model's order."""

    layers: tuple[tuple[tuple[str, int], ...], ...]

    @property
    def id(self) -> str:
        """Short hash, equal in every process."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """`{"layers": [{"attention": 0.5, "mlp": 0.6}, …]}`."""
        return {"layers": [{name: value / GRID for name, value in layer} for layer in self.layers]}

    def by_key(self) -> dict[tuple[int, str], float]:
        """Share per (block, sub-block)."""
        return {(i, name): value / GRID for i, layer in enumerate(self.layers) for name, value in layer}

    @classmethod
    def from_json(cls, data: object, *, where: str = "ratios") -> "Shares":
        """Parse `to_json`'s object, or a `best.json` that holds one under `architecture`.

        Raises:
            UserError: naming the layer.
        """
        while isinstance(data, Mapping) and "architecture" in data:
            data = data["architecture"]
        raw = data.get("layers") if isinstance(data, Mapping) and set(data) == {"layers"} else None
        if not isinstance(raw, list) or not raw:
            raise UserError(f"{where}: expected a JSON object with just 'layers', a non-empty list")
        layers = []
        for i, layer in enumerate(raw):
            if not isinstance(layer, Mapping):
                raise UserError(f"{where}: layer {i}: expected an object such as {{'attention': 0.5, 'mlp': 0.6}}")
            for name, value in layer.items():
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if not number or not 0 <= value < 1:
                    raise UserError(f"{where}: layer {i}: '{name}' must be a share in [0, 1), found {value!r}")
            layers.append(tuple((str(n), round(v * GRID)) for n, v in layer.items()))
        return cls(tuple(layers))


class SparsitySpace:
    """Shares per sub-block whose mean, weighted by the sub-blocks' sizes, is the global share; fulfils `Space`.

    Args:
        sizes: prunable weights per layer and sub-block, in the model's order.
        share: global share of zeros.
        total: all parameters of the model.
        spread: no sub-block's share is farther than this from the global one.

    Raises:
        UserError: if the spread leaves nothing to choose.
    """

    def __init__(
        self, sizes: Sequence[Sequence[tuple[str, int]]], share: float, total: int, *, spread: float = 0.25
    ) -> None:
        if not 0 < share < 1:
            raise UserError(f"sparsity {share:g}: a search needs a share between 0 and 1")
        if not 0 < spread < 1:
            raise UserError(f"spread {spread:g}: accepted: between 0 and 1")
        self.sizes = tuple(tuple(layer) for layer in sizes)
        self.share, self.total = share, total
        self._weights = np.array([n for layer in self.sizes for _, n in layer], dtype=np.float64)
        self._low = max(0, math.ceil((share - spread) * GRID))
        self._high = min(GRID - 1, math.floor((share + spread) * GRID))

    def __len__(self) -> int:
        return len(self._weights)

    def uniform(self) -> Shares | None:
        """The global share everywhere."""
        return self._repaired(np.full(len(self), self.share * GRID))

    def profile(self, ratios: Sequence[Sequence[float]], drop_order: Sequence[int] | None = None) -> Shares | None:
        """Kept shares in proportion to `ratios`, as far as the spread allows."""
        wanted = np.array([r for row in ratios for r in row], dtype=np.float64)
        scale = (1 - self.share) / max(1e-12, float(wanted @ self._weights / self._weights.sum()))
        return self._repaired((1 - wanted * scale) * GRID)

    def sample(self, rng: np.random.Generator) -> Shares | None:
        """Independent uniform shares, moved to the global one."""
        return self._repaired(rng.uniform(self._low, self._high, len(self)))

    def crossover(self, a: Shares, b: Shares, rng: np.random.Generator) -> Shares:
        """One contiguous range of layers from `b`, the rest interpolated: β·a + (1-β)·b, β ~ U(0.2, 0.8)."""
        x, y = self._array(a), self._array(b)
        child = y + rng.uniform(0.2, 0.8, len(self)) * (x - y)
        ends = np.cumsum([0] + [len(layer) for layer in self.sizes])
        first, last = np.sort(rng.integers(0, len(self.sizes) + 1, 2))
        child[ends[first] : ends[last]] = y[ends[first] : ends[last]]
        return self._shares(child)

    def mutate(
        self, arch: Shares, rng: np.random.Generator, *, depth: float = 0.2, width: float = 0.2, sigma: float = 0.3
    ) -> Shares:
        """Width: every kept share times a Gaussian N(1, σ). Depth: one sub-block's share drawn afresh."""
        values = self._array(arch)
        if rng.random() < width:
            values = GRID - (GRID - values) * rng.normal(1.0, sigma, len(self))
        if rng.random() < depth:
            values[rng.integers(len(self))] = rng.uniform(self._low, self._high)
        return self._shares(values)

    def repair(self, arch: Shares, rng: np.random.Generator) -> Shares | None:
        """All shares shifted alike, within the spread, until the global share is met."""
        return arch if self._met(self._array(arch)) else self._repaired(self._array(arch))

    def parameters(self, arch: Shares) -> int:
        """Parameters that are not zero."""
        return self.total - round(float(self._array(arch) @ self._weights) / GRID)

    def ratios(self, arch: Shares) -> Sequence[Sequence[float]]:
        """Kept shares per layer and sub-block."""
        return [[1 - value / GRID for _, value in layer] for layer in arch.layers]

    def check(self, arch: Shares, *, where: str) -> Shares:
        """The shares, if they name this model's sub-blocks.

        Raises:
            UserError: naming the first layer that differs.
        """
        if len(arch.layers) != len(self.sizes):
            raise UserError(f"{where}: {len(arch.layers)} layers, the model has {len(self.sizes)}")
        for i, (layer, sizes) in enumerate(zip(arch.layers, self.sizes, strict=True)):
            if {n for n, _ in layer} != {n for n, _ in sizes}:
                names = ", ".join(n for n, _ in sizes) or "no sub-blocks"
                raise UserError(f"{where}: layer {i} must name {names}")
        return arch

    def _array(self, arch: Shares) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([value for layer in arch.layers for _, value in layer], dtype=np.float64)

    def _shares(self, values: np.ndarray[Any, np.dtype[np.float64]]) -> Shares:
        rounded = iter(np.clip(np.rint(values), 0, GRID - 1).astype(int).tolist())
        return Shares(tuple(tuple((name, next(rounded)) for name, _ in layer) for layer in self.sizes))

    def _mean(self, values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
        return float(values @ self._weights / self._weights.sum()) / GRID

    def _met(self, values: np.ndarray[Any, np.dtype[np.float64]]) -> bool:
        inside = bool((values >= self._low).all() and (values <= self._high).all())
        return inside and -1e-9 <= self._mean(values) - self.share <= _TOLERANCE

    def _repaired(self, values: np.ndarray[Any, np.dtype[np.float64]]) -> Shares | None:
        """Shift by bisection, round up, and take back thousandths while the global share allows it."""
        low, high = -float(GRID), float(GRID)
        for _ in range(60):
            middle = (low + high) / 2
            if self._mean(np.clip(values + middle, self._low, self._high)) < self.share:
                low = middle
            else:
                high = middle
        moved = np.ceil(np.clip(values + high, self._low, self._high) - 1e-6)
        for i in np.argsort(-self._weights, kind="stable"):
            lower = moved.copy()
            lower[i] -= 1
            if lower[i] >= self._low and self._mean(lower) >= self.share - 1e-9:
                moved = lower
        return self._shares(moved) if self._met(moved) else None
