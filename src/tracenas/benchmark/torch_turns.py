"""Latencies of architectures in PyTorch, cut out of one model, with weights that lie as a checkpoint's do."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tracenas.benchmark.compiled import compile_blocks
from tracenas.benchmark.latency import Trial, TrialSettings, prompt_ids, run_trial, take_turns
from tracenas.benchmark.latency_table import Point
from tracenas.benchmark.width_latency import Latencies, TurnTimes
from tracenas.families import Block, Projection, SubBlock, present
from tracenas.models.surgery.ordering import Key, Ordering
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

__all__ = ["TorchTurns"]


class _Copies(Realisation):
    """Weights as a written checkpoint has them: row after row without gaps."""

    def weight(self, net: Supernet, key: Key, sub: SubBlock, projection: Projection, kept: int) -> Tensor:
        """A copy where the kept part is no whole matrix."""
        return super().weight(net, key, sub, projection, kept).contiguous()


class TorchTurns:
    """Measures architectures of a model in turns with the base.

    Args:
        model: a causal language model of transformers; what its weights are does not matter.
        blocks: where its units live.
        space: of the base.
        points: how it is served.
        turns: trials of every architecture, after one that does not count.
        new_tokens: tokens that are decoded per trial.
        seed: of the prompt.
        compiled: whether blocks go through torch.compile.
    """

    def __init__(
        self,
        model: Any,
        blocks: Sequence[Block],
        space: SearchSpace,
        points: Sequence[Point],
        *,
        turns: int,
        new_tokens: int,
        seed: int,
        compiled: bool = False,
    ) -> None:
        same_order = {key: torch.zeros(sub.spec.units, dtype=torch.float64) for key, sub in present(blocks)}
        self._net = Supernet(model, blocks, Ordering.from_saliency(blocks, same_order))
        if compiled:
            compile_blocks(model, [block.path for block in blocks], any_width=True)
        self._space, self._points, self._turns = space, tuple(points), turns
        self._new_tokens, self._seed, self._compiled = new_tokens, seed, compiled

    def __call__(self, archs: Sequence[Architecture], advance: Callable[[int], None]) -> TurnTimes:
        """Every architecture and the base, turn by turn.

        Args:
            advance: told after every trial.
        """
        trials = [partial(self._trial, arch) for arch in (self._space.base, *archs)]
        base, *others = take_turns(trials, self._turns, 1, advance)
        return TurnTimes(tuple(base), tuple(map(tuple, others)))

    def trials(self, archs: int) -> int:
        """Of so many architectures."""
        return (archs + 1) * (self._turns + 1)

    def _trial(self, arch: Architecture) -> Latencies:
        with self._net.realise(arch, _Copies()) as model:
            return tuple(self._at(model, point) for point in self._points)

    def _at(self, model: Any, point: Point) -> dict[str, float]:
        """Milliseconds of a prefill, and of one token in the middle of those decoded at about the context."""
        new = self._new_tokens
        before = max(1, point.context - new // 2)
        read = self._run(model, point, point.prompt, new if before == point.prompt else 1)
        behind = read if before == point.prompt else self._run(model, point, before, new)
        return {"prefill_ms": 1000 * read.prefill, "decode_ms": 1000 * behind.decode / (new - 1)}

    def _run(self, model: Any, point: Point, prompt: int, new: int) -> Trial:
        """A trial; compiled blocks see caches of one size, so that they are not compiled for another."""
        room = max(point.prompt, point.context) + self._new_tokens
        settings = TrialSettings(prompt, new, point.batch, "static" if self._compiled else "dynamic", room)
        ids = prompt_ids(settings, int(model.config.vocab_size), self._seed).to(self._net.device)
        return run_trial(model, ids, settings)
