"""What all records of a pass have in common."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tracenas.models.functionals.loss import LogitsWatch
from tracenas.models.surgery.supernet import Supernet
from tracenas.space.architecture import Architecture

__all__ = ["AnchoredObserver", "Observer", "spread"]


class Observer(ABC):
    """Watches passes over the calibration, one candidate at a time.

    Args:
        net: the super-network; what is watched are modules of its model while it is realised.
        tokens: calibration, int64 [N, L], on the model's device.
        rank, seed: of gradient traces.
    """

    backward: ClassVar[bool] = False
    """Whether every micro-batch must be followed by a backward pass."""

    def __init__(self, net: Supernet, tokens: Tensor, *, rank: int, seed: int) -> None:
        self.net, self.tokens, self.rank, self.seed = net, tokens, rank, seed
        self.first = 0
        """The first sequence of the micro-batch that is running."""
        self.scale = 1.0
        """What the gradients of the pass are multiplied by (`gradient_scale`)."""

    @contextmanager
    def watch(self, arch: Architecture) -> Iterator[None]:
        """Record passes of the model, realised as `arch`, until the context ends."""
        with ExitStack() as watching:
            for hook in self.hooks(arch):
                watching.enter_context(hook)
            yield

    def hooks(self, arch: Architecture) -> Iterable[RemovableHandle]:
        """What records them, attached to modules of the model."""
        return ()

    @abstractmethod
    def result(self, arch: Architecture) -> dict[str, Any]:
        """Fields of the `Measurement`, from what was recorded; the record is given up."""

    def logits_watch(self) -> LogitsWatch | None:
        """What is shown the logits, if anything."""
        return None

    def unsupported(self) -> str | None:
        """Why this model cannot be watched, or None."""
        return None


class AnchoredObserver(Observer):
    """An observer that needs the base model's own record first."""

    @abstractmethod
    def anchor(self) -> None:
        """Keep what was recorded as the base model's."""


def spread(length: int, count: int, device: torch.device) -> Tensor:
    """At most `count` evenly spaced indices below `length`, ascending, int64."""
    count = min(length, count)
    index = (torch.arange(count, dtype=torch.float64) + 0.5) * (length / count)
    return index.long().to(device)
