"""One pass of a candidate over the calibration, and everything that the wanted proxies read off it."""

import math
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tracenas.errors import UserError
from tracenas.models.functionals.loss import LogitsWatch, gradient_scale, next_token_nll, predicted_tokens
from tracenas.models.functionals.memory import failure, within_memory
from tracenas.models.surgery.recomputed import recomputed_blocks
from tracenas.models.surgery.streaming import streamed_blocks
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.proxies import Measurement, Proxy
from tracenas.saliency.sensitivity.table import SensitivityTable
from tracenas.scoring.few_steps import FewSteps, recovered_losses
from tracenas.scoring.observers import OBSERVERS, AnchoredObserver, Observer
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

__all__ = ["BatchReading", "Measurer", "ScoringSettings", "proxy_value"]


@dataclass(frozen=True)
class ScoringSettings:
    """How candidates are measured.

    Args:
        rank: of the gradient traces; 0 for exact gradients.
        seed: of the projections A.
        micro_batch: sequences per forward pass.
        few_steps: of recovery, for the proxy of that name.
        recompute: whether blocks keep their inputs only, and compute their activations again in the backward pass: the
            same gradients with the memory of one block.
    """

    rank: int = 64
    seed: int = 0
    micro_batch: int = 1
    few_steps: FewSteps = field(default_factory=FewSteps)
    recompute: bool = False


@dataclass(frozen=True)
class BatchReading:
    """What a micro-batch says of a candidate, for an additive proxy.

    Args:
        measurement: of its sequences alone.
        share: what it adds to the mean loss over all tokens of the calibration.
    """

    measurement: Measurement
    share: float


class Measurer:
    """Runs candidates, with what some proxies need recorded in one forward and, if it must be, one backward pass.

    Args:
        net: the super-network.
        space: for parameter counts.
        tokens: calibration token ids, int64 [N, L].
        needs: all that will be wanted; the base model is run once, for the records that candidates' are held against.
        table: for the need `sensitivity`.

    Raises:
        ValueError: if there is no table and one is needed.
        UserError: if the base model's own loss on the calibration is not finite, or its pass needs too much memory.
    """

    def __init__(
        self,
        net: Supernet,
        space: SearchSpace,
        tokens: Tensor,
        needs: Collection[str],
        settings: ScoringSettings,
        table: SensitivityTable | None = None,
    ) -> None:
        if "sensitivity" in needs and table is None:
            raise ValueError("a proxy that reads predicted rises needs a sensitivity table")
        self.net, self.space, self.settings, self.table = net, space, settings, table
        self.tokens = tokens.to(net.device)
        observers = {
            name: kind(net, self.tokens, rank=settings.rank, seed=settings.seed)
            for name, kind in OBSERVERS.items()
            if name in needs
        }
        self.unsupported = {name: why for name, o in observers.items() if (why := o.unsupported()) is not None}
        """Needs that this model cannot meet, and why."""
        if "steps" in needs and streamed_blocks(net.model) is not None:
            self.unsupported["steps"] = "steps of recovery want all weights on the device (device-memory)"
        self.observers: dict[str, Observer] = {n: o for n, o in observers.items() if n not in self.unsupported}
        self.base_loss = self._anchor()

    def _anchor(self) -> float:
        anchored = [o for o in self.observers.values() if isinstance(o, AnchoredObserver)]

        def run(tokens: Tensor) -> float:
            with self._watched(self.space.base, Realisation(), anchored) as model:
                return self._losses(model, anchored, tokens)[1]

        loss = within_memory(
            lambda: run(self.tokens),
            lambda count: run(self.tokens[:count]),
            what="the base model's pass over the calibration",
            micro_batch=min(self.settings.micro_batch, len(self.tokens)),
            device=self.net.device,
        )
        if not math.isfinite(loss):
            raise UserError("the base model's loss on the calibration data is not finite; try dtype=fp32")
        for observer in anchored:
            observer.anchor()
        return loss

    def measure(self, arch: Architecture, how: Realisation, needs: Collection[str]) -> Measurement:
        """What proxies with these `needs` read; the candidate is run unless the table is all that they read.

        Raises:
            Undefined: if the model's family cannot meet one of them.
        """
        rise = None
        if self.table is not None and "sensitivity" in needs:
            rise = self.table.total(self.space.layers, arch)
            if set(needs) == {"sensitivity"}:
                return Measurement(self.space.parameters(arch), math.nan, rise=rise)
        observers = [o for name, o in self.observers.items() if name in needs]
        with self._watched(arch, how, observers) as model:
            losses, loss = self._losses(model, observers, self.tokens)
        records: dict[str, Any] = {}
        for observer in observers:
            records |= observer.result(arch)
        measured = Measurement(self.space.parameters(arch), loss, losses=losses, rise=rise, **records)
        return self.recovered(measured, arch, how) if "steps" in needs else measured

    def recovered(self, measured: Measurement, arch: Architecture, how: Realisation) -> Measurement:
        """The measurement with the losses after a few steps of recovery, where they can be made."""
        if "steps" in self.unsupported:
            return measured
        settings = self.settings
        losses = recovered_losses(self.net, arch, how, self.tokens, settings.few_steps, settings.micro_batch)
        return replace(measured, recovered=losses)

    def stream(
        self,
        arch: Architecture,
        how: Realisation,
        needs: Collection[str],
        pieces: Sequence[slice],
    ) -> Generator[BatchReading]:
        """One reading per micro-batch, for additive proxies; nothing is run ahead.

        The candidate stays realised until the iterator ends or is closed; no other may be measured in the meantime.

        Args:
            pieces: ranges of sequences, in order, that no micro-batch reaches across.
        """
        with self.net.realise(arch, how) as model:
            for piece in pieces:
                for part in self.micro_batches(piece):
                    yield self.reading(model, arch, part, needs)

    def micro_batches(self, piece: slice) -> list[slice]:
        """The sequences of a piece as they go through the model."""
        step = self.settings.micro_batch
        return [slice(at, min(at + step, piece.stop)) for at in range(piece.start, piece.stop, step)]

    def reading(self, model: Any, arch: Architecture, part: slice, needs: Collection[str]) -> BatchReading:
        """What one forward pass of a model that is realised as `arch` says, over the sequences of a micro-batch.

        Args:
            needs: of an additive proxy.
        """
        observers = [o for name, o in self.observers.items() if name in needs]
        if any(o.backward for o in observers):
            raise ValueError("only proxies without a backward pass are taken sequence by sequence")
        with ExitStack() as watching, torch.no_grad():
            for observer in observers:
                watching.enter_context(observer.watch(arch))
            nll = self._nll(model, self.tokens[part], part.start, observers)
        records: dict[str, Any] = {}
        for observer in observers:
            records |= observer.result(arch)
        each = nll.double().mean(dim=1)
        kls = tuple(records.get("kls", ()))[part]
        measurement = Measurement(self.space.parameters(arch), float(each.mean()), losses=tuple(each.tolist()), kls=kls)
        return BatchReading(measurement, float(nll.sum() / self._predicted(self.tokens)))

    @contextmanager
    def _watched(self, arch: Architecture, how: Realisation, observers: Sequence[Observer]) -> Iterator[Any]:
        with self.net.realise(arch, how) as model, ExitStack() as watching:
            for observer in observers:
                watching.enter_context(observer.watch(arch))
            if self.settings.recompute and any(o.backward for o in observers):
                watching.enter_context(recomputed_blocks(model, self.net.blocks, arch))
            yield model

    def _losses(self, model: Any, observers: Sequence[Observer], tokens: Tensor) -> tuple[tuple[float, ...], float]:
        """Every sequence's loss and E_b[L]; where gradients are wanted, a backward pass follows every micro-batch."""
        total = torch.zeros((), dtype=torch.float64)
        count = self._predicted(tokens)
        scale = gradient_scale(model, count)
        for observer in observers:
            observer.scale = scale
        each: list[Tensor] = []
        first = 0
        with torch.set_grad_enabled(any(o.backward for o in observers)):
            for batch in tokens.split(self.settings.micro_batch):
                nll = self._nll(model, batch, first, observers)
                loss = nll.sum() / count
                if loss.requires_grad:
                    (loss * scale).backward()
                total += loss.detach().double().cpu()
                each.append(nll.detach().double().mean(dim=1))
                first += len(batch)
        return tuple(torch.cat(each).tolist()), float(total)

    def _predicted(self, tokens: Tensor) -> int:
        """How many tokens of them have a loss."""
        return tokens.shape[0] * predicted_tokens(self.net.model, tokens.shape[1])

    def _nll(self, model: Any, batch: Tensor, first: int, observers: Sequence[Observer]) -> Tensor:
        for observer in observers:
            observer.first = first
        watch: LogitsWatch | None = next((w for o in observers if (w := o.logits_watch()) is not None), None)
        return next_token_nll(model, batch, watch)


def proxy_value(proxy: Proxy, measurement: Measurement, unsupported: dict[str, str]) -> tuple[float | None, str | None]:
    """A proxy's value, or None and the reason why it has none."""
    for need in sorted(proxy.needs & unsupported.keys()):
        return None, unsupported[need]
    try:
        value = float(proxy.score(measurement))
    except (ValueError, ArithmeticError) as error:
        return None, failure(error)
    if not (math.isfinite(value) and (math.isfinite(measurement.loss) or not proxy.runs)):
        return None, "loss or score is not finite"
    return value, None
