"""Scoring a generation block by block where that saves work: the same scores as candidate by candidate, in every bit.

Where weights wait in files, or off the device, each of a candidate's passes reads all of them; here a block is read
once for as many candidates and sequences as their hidden states have room. Where the model is in memory, only equal
prefixes of layers are saved.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import torch

from tracenas.models.functionals.memory import attempt, free_memory
from tracenas.models.surgery.streaming import streamed_blocks
from tracenas.paging import Keep, in_memory
from tracenas.scoring.block_pass import BlockPass, shared_passes
from tracenas.scoring.evaluator import Evaluator, Total
from tracenas.scoring.measuring import BatchReading
from tracenas.scoring.raced import Race, RacingEvaluator
from tracenas.scoring.scorer import Scorer
from tracenas.space.architecture import Architecture
from tracenas.strategies.score import Score

__all__ = ["BlockMajorScorer", "runs_by_blocks"]

_log = logging.getLogger("tracenas")

_READ = frozenset({"base_logits", "compensated"})
"""Needs of proxies that look at nothing but the outputs."""
_WORTH = 0.2
"""The share of the blocks' passes that equal prefixes must save; refits may have to be made again at every look."""
_WAITING = 1 << 31
"""Bytes of hidden states that wait at most, and no more than a quarter of what is free where they do."""


def runs_by_blocks(scorer: Scorer[Any]) -> bool:
    """Whether a scorer's candidates can go through the model block by block."""
    evaluator = scorer.evaluator if isinstance(scorer, RacingEvaluator) else scorer
    if not isinstance(evaluator, Evaluator):
        return False
    single_chain = all(not block.stack for block in evaluator.net.blocks)
    return evaluator.proxy.additive and evaluator.proxy.needs <= _READ and single_chain


Report = Callable[[int, int], None]
Shown = Callable[[int], AbstractContextManager[Report]]
"""Shows how far so many candidates are while they go together: is told how many blocks of how many are done."""


@contextmanager
def _unseen(_: int) -> Iterator[Report]:
    yield lambda done, total: None


class BlockMajorScorer(Scorer[Architecture]):
    """`evaluate(list[Architecture]) -> Score…` of another scorer, block by block wherever that is less work.

    Candidates that go together are all measured before the first of them has its score. Whoever fails on the way is
    measured again by itself, so a failure has the reason that it has there, and is nobody else's.

    Args:
        scorer: `runs_by_blocks`.
        keep: where hidden states wait, and weights.
        at_once: candidates that may go together; None: any number.
        waiting: bytes of hidden states that may wait; None: what the machine has room for.
        shown: shows every pass.
    """

    def __init__(
        self,
        scorer: Evaluator | RacingEvaluator,
        keep: Keep = in_memory,
        *,
        at_once: int | None = None,
        waiting: int | None = None,
        shown: Shown = _unseen,
    ) -> None:
        self._shown = shown
        self.scorer, self._at_once, self._waiting = scorer, at_once, waiting
        self._evaluator = scorer.evaluator if isinstance(scorer, RacingEvaluator) else scorer
        self._paged = keep is not in_memory
        self._streamed = self._paged or streamed_blocks(self._evaluator.net.model) is not None
        self._pass = BlockPass(self._evaluator, keep)

    def on_generation(self, elites: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> None:
        """As the scorer's."""
        self.scorer.on_generation(elites, records)

    def decoded(self, data: Any) -> Architecture:
        """An architecture of the space."""
        return self.scorer.decoded(data)

    def _score(self, candidate: Architecture) -> Score:
        return next(self([candidate]))

    def __call__(self, candidates: Sequence[Architecture]) -> Iterator[Score]:
        """One score per candidate, in order."""
        most = self._room() // self._state_bytes(self._evaluator.settings.micro_batch)
        most = max(1, most if self._at_once is None else min(most, self._at_once))
        for start in range(0, len(candidates), most):
            together = candidates[start : start + most]
            yield from self._scored(together) if self._worth(together) else self.scorer(together)

    def _worth(self, candidates: Sequence[Architecture]) -> bool:
        """Whether these go block by block."""
        runs, alone = shared_passes(candidates)
        worth = self._streamed or runs <= (1 - _WORTH) * alone
        how = "block by block" if worth else "one by one"
        _log.debug("%d candidates %s: %d of %d passes of blocks differ", len(candidates), how, runs, alone)
        return worth

    def _scored(self, candidates: Sequence[Architecture]) -> Iterator[Score]:
        """Piece by piece, each over all blocks, or all at once; every candidate's time is its share."""
        tallies = [self.scorer.tally(candidate) for candidate in candidates]
        cohort = _Cohort(candidates, tallies, self._evaluator.net.device)
        pieces = [self._evaluator.measurer.micro_batches(piece) for piece in self.scorer.pieces]
        for left in pieces if any(tally.may_stop for tally in tallies) else [list(chain(*pieces))]:
            while left and (running := cohort.running):
                each = self._state_bytes(max(part.stop - part.start for part in left))
                count = max(1, self._room() // (len(running) * each))
                parts, left = left[:count], left[count:]
                with self._shown(len(running)) as report:
                    cohort.run(running, self._pass, parts, report)
        for place, candidate in enumerate(candidates):
            score, seconds = cohort.score(place), cohort.seconds[place]
            if score is None:
                score = self.scorer.score(candidate)
            yield replace(score, seconds=seconds + (score.seconds or 0.0))

    def _state_bytes(self, sequences: int) -> int:
        """Of one candidate's hidden states of so many sequences: those that enter a block, and those that leave it."""
        embeddings = self._evaluator.net.model.get_input_embeddings().weight
        length = self._evaluator.tokens.shape[1]
        return int(2 * sequences * length * embeddings.shape[1] * embeddings.element_size())

    def _room(self) -> int:
        """Bytes of hidden states that may wait."""
        if self._waiting is not None:
            return self._waiting
        device = torch.device("cpu") if self._streamed else self._evaluator.net.device
        return _room(device, paged=self._paged)


class _Cohort:
    """Candidates that go together, and how far they are.

    Args:
        tallies: one per candidate.
    """

    def __init__(
        self, candidates: Sequence[Architecture], tallies: Sequence[Race | Total], device: torch.device
    ) -> None:
        self._candidates, self._tallies, self._device = candidates, tallies, device
        self._failed: set[int] = set()
        self.seconds = [0.0] * len(candidates)

    @property
    def running(self) -> list[int]:
        """Places of those who are neither stopped nor failed."""
        return [p for p, tally in enumerate(self._tallies) if not tally.stopped and p not in self._failed]

    def run(self, places: Sequence[int], over: BlockPass, parts: Sequence[slice], report: Report) -> None:
        """Take some candidates over a few micro-batches of one piece."""
        started = time.perf_counter()
        read = over([self._candidates[p] for p in places], parts, report)
        for place, readings in zip(places, read, strict=True):
            if readings is None or attempt(partial(self._add, place, readings), self._device)[1] is not None:
                self._failed.add(place)
        for place in places:
            self.seconds[place] += (time.perf_counter() - started) / len(places)

    def _add(self, place: int, readings: list[BatchReading]) -> None:
        for reading in readings:
            self._tallies[place].add(reading)

    def score(self, place: int) -> Score | None:
        """Of a candidate at the end; None if it failed."""
        if place in self._failed:
            return None
        return attempt(self._tallies[place].score, self._device)[0]


def _room(device: torch.device, *, paged: bool) -> int:
    """Bytes of hidden states that may wait on a device, in memory or in files."""
    in_files = paged and device.type == "cpu"
    free = shutil.disk_usage(tempfile.gettempdir()).free if in_files else free_memory(device)
    return _WAITING if free is None else min(_WAITING, free // 4)
