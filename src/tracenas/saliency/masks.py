"""Which weights stay: a share per output row, per layer or over all layers, and N of every M in a row.

Of equal scores the earlier one is pruned first, so that counts are exact. Masks are True where the weight stays.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tracenas.errors import UserError

__all__ = ["COMPARISONS", "Sparsity", "Threshold", "keep", "nm_holds", "pruned_count", "threshold"]

COMPARISONS = ("row", "layer", "global")
"""Weights are compared within their output row, their matrix, or all matrices of the model."""


@dataclass(frozen=True)
class Sparsity:
    """How sparse: a share of the weights, or N of every M consecutive inputs stay.

    Args:
        share: of zeros, in [0, 1).
        n, m: 2 and 4 for 2:4; 0 where only the share counts.
    """

    share: float
    n: int = 0
    m: int = 0

    @classmethod
    def parse(cls, text: str) -> "Sparsity":
        """`0.5`, `50%` or `2:4`.

        Raises:
            UserError: outside [0, 1), or N not below M.
        """
        accepted = "accepted: a share in [0, 1) such as 0.5, or N:M such as 2:4"
        if match := re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text):
            n, m = int(match.group(1)), int(match.group(2))
            if not 0 < n < m:
                raise UserError(f"sparsity '{text}': N must be from 1 to M - 1; {accepted}")
            return cls(1 - n / m, n, m)
        try:
            share = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
        except ValueError as error:
            raise UserError(f"sparsity '{text}': {accepted}") from error
        if not (math.isfinite(share) and 0 <= share < 1):
            meant = f"; did you mean {share:g}%?" if 1 <= share < 100 else ""
            raise UserError(f"sparsity '{text}': outside [0, 1); {accepted}{meant}")
        return cls(share)

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.m else f"{self.share:g}"

    def check_columns(self, columns: int, name: str) -> None:
        """Refuse N:M for a matrix whose rows are no whole number of groups.

        Raises:
            UserError: naming the matrix.
        """
        if self.m and columns % self.m:
            raise UserError(f"sparsity {self}: {name} has {columns} inputs, which is not divisible by {self.m}")


def pruned_count(size: int, share: float) -> int:
    """Weights pruned among `size`: ⌊share · size⌋, exact for decimal shares."""
    return int(share * size + 1e-9)


def keep(score: Tensor, target: Sparsity, compare: str = "row") -> Tensor:
    """Where weights stay, bool [rows, columns]: all but the lowest scores of every row, group or the matrix."""
    if target.m:
        rows, columns = score.shape
        grouped = score.reshape(rows, columns // target.m, target.m)
        return _lowest_out(grouped, target.m - target.n).reshape(rows, columns)
    if compare == "row":
        return _lowest_out(score, pruned_count(score.shape[1], target.share))
    if compare == "layer":
        return _lowest_out(score.reshape(1, -1), pruned_count(score.numel(), target.share)).reshape(score.shape)
    raise ValueError(f"compare '{compare}': one matrix is compared by row or layer")


def _lowest_out(score: Tensor, count: int) -> Tensor:
    """False at the `count` lowest of the last axis."""
    order = torch.sort(score, dim=-1, stable=True).indices[..., :count]
    return torch.ones_like(score, dtype=torch.bool).scatter_(-1, order, False)


def nm_holds(weight: Tensor, target: Sparsity) -> bool:
    """Whether at most N of every M consecutive inputs of a row are not 0."""
    rows, columns = weight.shape
    return bool(((weight.reshape(rows, columns // target.m, target.m) != 0).sum(dim=-1) <= target.n).all())


@dataclass
class Threshold:
    """The k-th lowest score of a model: below it everything is pruned, and `ties` of its equals.

    `keep` must be given the matrices in the order in which the threshold was found.
    """

    key: int
    ties: int

    def keep(self, score: Tensor) -> Tensor:
        """Where this matrix's weights stay."""
        keys = _sortable(score)
        equal = (keys == self.key).reshape(-1)
        first = equal & (equal.cumsum(0) <= self.ties)
        self.ties -= int(first.sum())
        return ~((keys < self.key).reshape(-1) | first).reshape(score.shape)


def threshold(scores: Callable[[], Iterable[Tensor]], share: float) -> Threshold:
    """The exact threshold over all matrices, by two passes of counting: one matrix is in memory at a time.

    Args:
        scores: makes the float32 scores of every matrix, the same ones every time.
        share: of all weights to prune.
    """
    high, total = torch.zeros(1 << 16, dtype=torch.int64), 0
    for score in scores():
        total += score.numel()
        high += torch.bincount((_sortable(score).reshape(-1) >> 16).cpu(), minlength=1 << 16)
    k = pruned_count(total, share)
    if k == 0:
        return Threshold(-1, 0)
    bucket, below = _place(high, k)
    low = torch.zeros(1 << 16, dtype=torch.int64)
    for score in scores():
        keys = _sortable(score).reshape(-1)
        low += torch.bincount((keys[keys >> 16 == bucket] & 0xFFFF).cpu(), minlength=1 << 16)
    place, before = _place(low, k - below)
    return Threshold((bucket << 16) | place, k - below - before)


def _place(counts: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th lowest (k from 1), and how many lie in the bins before."""
    ends = counts.cumsum(0)
    bin_ = int(torch.searchsorted(ends, k))
    return bin_, int(ends[bin_] - counts[bin_])


def _sortable(score: Tensor) -> Tensor:
    """Integers from 0 to 2³² - 1 in the order of the float32 scores; -0 and 0 are equal."""
    bits = (score.float() + 0.0).view(torch.int32).long()
    return torch.where(bits < 0, -1 - (bits & 0x7FFFFFFF), bits) + (1 << 31)
