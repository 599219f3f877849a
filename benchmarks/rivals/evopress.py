"""EvoPress (Sieberling et al., arXiv:2410.14649) over depth: which attentions and MLPs go, by evolution.

Algorithm 1 with λ offspring of one parent. A candidate is a set of sub-blocks that are gone, as many of every kind as
the budget asks for. Level-switch mutation: of one kind, one that was gone comes back and one that was there goes, so
that the budget stays met; between one and three such switches, the smaller of two draws. Selection in stages: few
survive a little text, these are compared on more, and in the last stage the parent takes part. The fitness is the KL
divergence of the candidate from the dense model (§3.3), lower is better.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tracenas.families import Block, Key
from tracenas.models.functionals.divergence import token_kl
from tracenas.models.functionals.loss import hidden_states
from tracenas.models.surgery.supernet import bypass

__all__ = ["Divergence", "Dropped", "Stage", "evolve"]

Dropped = frozenset[Key]
"""Sub-blocks that are gone."""

Fitness = Callable[[Dropped, int], float]
"""(candidate, sequences of the text) → fitness, lower is better."""


class Stage(NamedTuple):
    """One comparison of a selection.

    Args:
        survivors: candidates that are left behind it.
        sequences: of the text, the first ones.
    """

    survivors: int
    sequences: int


class Divergence:
    """KL(dense ‖ candidate) on text, mean over the predicted tokens, nats.

    Args:
        tokens: int64 [N, L].
    """

    def __init__(self, model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> None:
        self.model, self.blocks, self.tokens, self.micro_batch = model, tuple(blocks), tokens, micro_batch
        self._head = model.get_output_embeddings().weight
        self._softcap = getattr(model.config, "final_logit_softcapping", None)
        self._dense = self._predicting(len(tokens))

    def __call__(self, dropped: Dropped, sequences: int) -> float:
        """Of a candidate, on the first sequences."""
        with ExitStack() as undo:
            for index, block in enumerate(self.blocks):
                for sub in block.sub_blocks:
                    if (index, sub.spec.name) in dropped:
                        bypass(self.model, block, sub, undo)
            states = self._predicting(sequences)
        dense = self._dense[: len(states)]
        return float(token_kl(dense, states, self._head, self._softcap).mean(dtype=torch.float64))

    def _predicting(self, sequences: int) -> Tensor:
        """Final hidden states that predict a token, [tokens, D]."""
        with torch.no_grad():
            batches = self.tokens[:sequences].split(self.micro_batch)
            return torch.cat([hidden_states(self.model, ids)[:, :-1].flatten(0, 1) for ids in batches])


def evolve(
    candidates: Sequence[Key],
    counts: Mapping[str, int],
    fitness: Fitness,
    stages: Sequence[Stage],
    rng: np.random.Generator,
    *,
    generations: int,
    offspring: int,
    initial: int,
    report: Callable[[int, float], None] = lambda generation, value: None,
) -> Dropped:
    """The best set of sub-blocks to drop.

    Args:
        candidates: sub-blocks that may go.
        counts: how many of every kind (`attention`, `mlp`) go.
        stages: of a selection; the last one has one survivor.
        generations: of offspring.
        offspring: of every generation.
        initial: random candidates, the best of which on the last stage's text begins.
        report: told the fitness of the parent after every generation.
    """
    if stages[-1].survivors != 1:
        raise ValueError(f"the last stage leaves one survivor, not {stages[-1].survivors}")
    text = stages[-1].sequences
    first = [_drawn(candidates, counts, rng) for _ in range(initial)]
    value, parent = _best([(fitness(one, text), one) for one in dict.fromkeys(first)])
    for generation in range(generations):
        children = dict.fromkeys(_mutated(parent, candidates, rng) for _ in range(offspring))
        children.pop(parent, None)
        left = list(children)
        for stage in stages[:-1]:
            scored = sorted(((fitness(one, stage.sequences), one) for one in left), key=lambda pair: pair[0])
            left = [one for _, one in scored[: stage.survivors]]
        value, parent = _best([(value, parent), *((fitness(one, text), one) for one in left)])
        report(generation, value)
    return parent


def _best(scored: Sequence[tuple[float, Dropped]]) -> tuple[float, Dropped]:
    """The first of the lowest fitness."""
    return min(scored, key=lambda pair: pair[0])


def _drawn(candidates: Sequence[Key], counts: Mapping[str, int], rng: np.random.Generator) -> Dropped:
    """A random set with as many of every kind."""
    found: set[Key] = set()
    for kind, count in counts.items():
        of_kind = [key for key in candidates if key[1] == kind]
        found |= {of_kind[i] for i in rng.permutation(len(of_kind))[:count]}
    return frozenset(found)


def _mutated(parent: Dropped, candidates: Sequence[Key], rng: np.random.Generator) -> Dropped:
    """The parent after a few level switches."""
    gone = set(parent)
    for _ in range(int(min(rng.integers(1, 4), rng.integers(1, 4)))):
        kinds = sorted({kind for _, kind in gone if any(k == kind and (i, k) not in gone for i, k in candidates)})
        if not kinds:  # nothing is gone, or everything
            break
        kind = kinds[int(rng.integers(len(kinds)))]
        back, leaving = (
            [key for key in candidates if key[1] == kind and (key in gone) == is_gone] for is_gone in (True, False)
        )
        gone.remove(back[int(rng.integers(len(back)))])
        gone.add(leaving[int(rng.integers(len(leaving)))])
    return frozenset(gone)
