"""Several candidates over the same sequences, block by block: block i of all of them before block i + 1.

A block is realised once per layer that the candidates have there, and run once per prefix of layers: those who begin
alike are one until they part. What a candidate gives is what its own pass over the model gives, in every bit: the
same modules are called with the same arguments, in another order.

Shapes: B sequences of a micro-batch, T tokens, D hidden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from tracenas.models.functionals.memory import attempt
from tracenas.models.surgery.stepping import BlockRunner
from tracenas.paging import Keep
from tracenas.scoring.evaluator import Evaluator
from tracenas.scoring.measuring import BatchReading
from tracenas.space.architecture import Architecture, Layer

__all__ = ["BlockPass", "shared_passes"]


@dataclass(eq=False)
class _Prefix:
    """Candidates that have begun with the same layers.

    Args:
        states: what has left these layers, [B, T, D] per micro-batch.
        places: of the candidates.
    """

    states: list[Tensor]
    places: list[int]


class BlockPass:
    """Passes of candidates over sequences of the calibration, for additive proxies that read the outputs alone.

    Args:
        evaluator: of a decoder-only model.
        keep: where hidden states wait.
    """

    def __init__(self, evaluator: Evaluator, keep: Keep) -> None:
        self._net, self._how, self._measurer = evaluator.net, evaluator.realisation, evaluator.measurer
        self._needs = evaluator.proxy.needs
        self._runner = BlockRunner(self._net.model, self._net.blocks, keep)

    def __call__(
        self,
        candidates: Sequence[Architecture],
        parts: Sequence[slice],
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[BatchReading] | None]:
        """Every candidate's readings of the micro-batches `parts`; None where its pass failed.

        Args:
            report: told how many blocks of how many are done.
        """
        readings: list[list[BatchReading] | None] = [None] * len(candidates)
        with self._net.realise_outside(self._how):
            prefixes = self._begun(candidates, parts)
            for index in range(len(self._net.blocks)):
                prefixes = self._advanced(index, candidates, prefixes)
                report(index + 1, len(self._net.blocks))
            while prefixes:
                prefix = prefixes.pop()
                read, _ = attempt(partial(self._read, candidates[prefix.places[0]], parts, prefix), self._net.device)
                for place in prefix.places:
                    readings[place] = read
        return readings

    def _begun(self, candidates: Sequence[Architecture], parts: Sequence[slice]) -> list[_Prefix]:
        """All candidates as one, before the first block; nobody where that fails."""
        embedded, _ = attempt(partial(self._embedded, parts), self._net.device)
        return [] if embedded is None else [_Prefix(embedded, list(range(len(candidates))))]

    def _embedded(self, parts: Sequence[slice]) -> list[Tensor]:
        tokens = self._measurer.tokens
        return [hidden for part in parts for hidden in self._runner.embed(tokens[part], part.stop - part.start)]

    def _advanced(self, index: int, candidates: Sequence[Architecture], prefixes: list[_Prefix]) -> list[_Prefix]:
        """The prefixes with one layer more; `prefixes` is empty afterwards, so that states go as soon as they may."""
        by_layer: dict[Layer, list[_Prefix]] = {}
        while prefixes:
            for layer, branch in _branches(prefixes.pop(), lambda place: candidates[place].layers[index]).items():
                by_layer.setdefault(layer, []).append(branch)
        after: list[_Prefix] = []
        for layer in sorted(by_layer, key=lambda layer: layer.kept):
            after += by_layer.pop(layer) if layer.skip else self._run(index, layer, by_layer.pop(layer))
        return after

    def _run(self, index: int, layer: Layer, branches: list[_Prefix]) -> list[_Prefix]:
        """Prefixes that end with this layer, without those whose pass failed; `branches` is empty afterwards."""
        passed: list[_Prefix] = []

        def run() -> None:
            with self._net.realise_block(index, layer, self._how):
                while branches:
                    further, _ = attempt(partial(self._further, index, branches.pop()), self._net.device)
                    passed.extend([further] if further is not None else [])

        attempt(run, self._net.device)
        return passed

    def _further(self, index: int, prefix: _Prefix) -> _Prefix:
        """Over the block as it is."""
        states = [self._runner.keep(self._runner(index, hidden)) for hidden in prefix.states]
        return _Prefix(states, prefix.places)

    def _read(self, candidate: Architecture, parts: Sequence[slice], prefix: _Prefix) -> list[BatchReading]:
        """What the head says of the states that have left the last block."""
        readings = []
        for part, hidden in zip(parts, prefix.states, strict=True):
            with self._runner.behind(hidden) as model:
                readings.append(self._measurer.reading(model, candidate, part, self._needs))
        return readings


def _branches(prefix: _Prefix, layer_of: Callable[[int], Layer]) -> dict[Layer, _Prefix]:
    """Where the candidates of a prefix part: by the layer that comes next."""
    branches: dict[Layer, _Prefix] = {}
    for place in prefix.places:
        branches.setdefault(layer_of(place), _Prefix(prefix.states, [])).places.append(place)
    return branches


def shared_passes(candidates: Sequence[Architecture]) -> tuple[int, int]:
    """How often blocks run where equal prefixes of layers run once, and where every candidate runs by itself."""
    runs: dict[tuple[int, int, Layer], int] = {}
    alone = 0
    for candidate in candidates:
        at = 0
        for index, layer in enumerate(candidate.layers):
            if not layer.skip:
                at = runs.setdefault((at, index, layer), len(runs) + 1)
                alone += 1
    return len(runs), alone
