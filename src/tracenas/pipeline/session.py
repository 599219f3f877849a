"""What search, score, prune and studies share: model, calibration tokens, unit order, importance, super-network."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tracenas.data.windows import BosRule, WindowStart
from tracenas.families import Block
from tracenas.models.checkpoints.loading import LoadedModel
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.refit.statistics import StoredGrams
from tracenas.pipeline.target import PruningTarget
from tracenas.saliency.sensitivity.table import SensitivityTable
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies import Prior

__all__ = ["Calibrated", "RankedTarget", "RefitSettings", "Session"]


@dataclass(frozen=True)
class RefitSettings:
    """What output projections are refitted on, and how strongly.

    Args:
        data: source of text beside the calibration; None: there is none.
        text_field: field of its rows that holds the text.
        bos: whether its windows begin with BOS.
        samples: sequences to fit on; None: the default, or fewer where there is no more text.
        ridge: relative strength; None: the default in scores, chosen on held-out text by prune.
        scale: what it is relative to: the `mean` diagonal of a Gram matrix, or every `channel`'s own entry.
        tokens: to fit on where `samples` is None; None: a default number of sequences.
    """

    data: str | None = None
    text_field: str | None = None
    bos: BosRule = "auto"
    samples: int | None = None
    ridge: float | None = None
    scale: str = "mean"
    tokens: int | None = None


@dataclass
class _Targeted:
    """Something made for a target."""

    target: PruningTarget

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The model's blocks in the target's units."""
        return self.target.blocks

    @property
    def space(self) -> SearchSpace:
        """The target's architectures."""
        return self.target.space


@dataclass
class RankedTarget(_Targeted):
    """A target with its units ranked: all that can be said of its candidates without the model.

    Args:
        importance: I_l per (block, sub-block) (TraceNAS A.1).
    """

    ordering: Ordering
    importance: Mapping[tuple[int, str], float]

    def kept_units(self, arch: Architecture) -> dict[str, list[list[int] | None]]:
        """Base ids of kept units per layer, under `heads`, `channels`, …; null where a sub-block is bypassed."""
        kept = self.ordering.kept(self.blocks, arch)
        out: dict[str, list[list[int] | None]] = {}
        for i, layer in enumerate(self.space.layers):
            for s in layer.sub_blocks:
                ids = kept.get((i, s.name))
                out.setdefault(s.unit, [None] * len(self.space.layers))[i] = None if ids is None else ids.tolist()
        return out

    def prior(self) -> Prior:
        """Layer importance as a width profile: I_l over its mean within attention and within MLP (decision 9)."""
        names = {name for _, name in self.importance}
        means = {n: _mean([v for (_, m), v in self.importance.items() if m == n]) for n in names}
        ratios = [
            [
                self.importance[i, s.name] / means[s.name] if s.units and means[s.name] > 0 else 0.0
                for s in layer.sub_blocks
            ]
            for i, layer in enumerate(self.space.layers)
        ]
        order = sorted(range(len(ratios)), key=lambda i: (_mean(ratios[i]), i))
        return Prior(ratios, order)


@dataclass
class Calibrated(_Targeted):
    """A loaded model and its calibration.

    Args:
        tokens: int64 [N, L].
        start: how these windows begin.
        run: the run directory, if there is one.
        seed: of everything random.
        grams: Gram matrices that a sensitivity table's pass puts aside for refits; None: it does not.
        sweepers: sub-blocks whose widths are swept at a time.
    """

    loaded: LoadedModel
    tokens: torch.Tensor
    start: WindowStart
    run: Path | None
    seed: int
    refit: RefitSettings
    grams: StoredGrams | None = field(default=None, kw_only=True)
    sweepers: int = field(default=1, kw_only=True)


@dataclass
class Session(RankedTarget, Calibrated):
    """A loaded model, ready to be cut.

    Args:
        saliency: what units are ranked by.
        micro_batch: sequences per forward pass.
        net: the super-network once it is made.
        table: the costs of all widths once they are measured (`session_table`).
        plain_losses: calibration losses of candidates that were cut and not refitted, of every window, once measured.
    """

    saliency: str
    micro_batch: int
    threads: int
    net: Supernet | None = None
    table: SensitivityTable | None = None
    plain_losses: dict[Architecture, torch.Tensor] = field(default_factory=dict, init=False)

    def machine(self) -> dict[str, Any]:
        """What `auto` and defaults came to here: device, dtype, threads, micro-batch and whether there is a BOS."""
        return {
            "device": str(self.loaded.device),
            "dtype": self.loaded.dtype_name,
            "threads": self.threads,
            "batch": self.micro_batch,
            "bos": self.start.rule,
        }

    @property
    def dtype(self) -> str:
        """Of the weights, as torch calls it: `float32`."""
        return str(self.loaded.dtype).removeprefix("torch.")

    def supernet(self) -> Supernet:
        """The super-network, the same one until it is restored; the model's weights are permuted in place, once."""
        if self.net is None or self.net.restored:
            self.net = Supernet(self.loaded.model, self.blocks, self.ordering)
        return self.net


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
