"""How long `tracenas demo --model smollm2` will take: what this machine needs for a piece of each kind of work.

Every term is a piece that was timed here times how often the demo does it; nothing is assumed of the machine.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from tracenas.errors import UserError
from tracenas.families import Block
from tracenas.models.checkpoints.loading import load
from tracenas.models.checkpoints.source import ModelSource
from tracenas.models.functionals.perplexity import perplexity
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.private import private_weights
from tracenas.models.surgery.supernet import Supernet
from tracenas.refits.gram import gram_matrices
from tracenas.refits.realisation import CompensatedRealisation
from tracenas.saliency.sensitivity import fisher_tokens
from tracenas.saliency.sensitivity.held_out import held_out_rises
from tracenas.saliency.sensitivity.moments import Moments
from tracenas.saliency.sensitivity.rises import predicted_rises
from tracenas.space.constraints import Budget, parse_size
from tracenas.threads import set_threads

__all__ = ["Amounts", "Pieces", "amounts_within", "estimate", "measure", "to_json"]

ANSWERED, ANSWER_TOKENS = 3, 48
"""Models that answer the prompts (base, pruned, recovered) and tokens of an answer."""
PROMPTS, BENCH_PROMPT, BENCH_TOKENS, BENCH_TURNS = 3, 256, 32, 4
_CUT = 3
"""Pruned checkpoints, all recovered: found, uniform, random."""
_RACED = 0.9
"""Share of the calibration that candidates are measured on: the clearly worse ones are stopped half-way."""


@dataclass(frozen=True)
class Pieces:
    """Seconds, measured once.

    Args:
        load: model and tokenizer from disk.
        forward, candidate: one sequence through the dense model, and through the uniform candidate.
        refit: the refits of a candidate none of whose widths was seen before.
        gram: statistics of one sequence; factor: the Cholesky factors from them.
        step: one optimizer step of the uniform candidate; its teacher's pass is a `forward`.
        token: one generated token.
        table: the sensitivity table, its pass for the statistics apart.
    """

    load: float
    forward: float
    candidate: float
    refit: float
    gram: float
    factor: float
    step: float
    token: float
    table: float


@dataclass(frozen=True)
class Amounts:
    """How much of everything the demo does.

    Args:
        samples: calibration sequences a candidate is scored on.
        population, elites, iterations: of the evolution.
        compensate_samples: sequences that compensation is fitted on.
        steps: of every recovery.
        windows: held-out windows of a perplexity.
    """

    samples: int = 4
    population: int = 12
    elites: int = 4
    iterations: int = 11
    compensate_samples: int = 24
    steps: int = 40
    windows: int = 16

    @property
    def evaluations(self) -> int:
        """Candidates at most."""
        return self.population + (self.iterations - 1) * (self.population - self.elites)

    def scaled(self, share: float) -> "Amounts":
        """A share of what can be less; what a comparison needs at least stays."""
        return Amounts(
            self.samples,
            self.population,
            self.elites,
            max(2, math.floor(share * self.iterations)),
            max(8, math.floor(share * self.compensate_samples)),
            max(4, math.floor(share * self.steps)),
            max(8, math.floor(share * self.windows)),
        )


def estimate(p: Pieces, a: Amounts, random_architectures: int) -> dict[str, float]:
    """Seconds of every part, in their order."""
    fit = p.load + a.compensate_samples * p.gram + p.factor
    scored = a.samples * p.candidate + p.refit
    perplexity = a.windows * p.candidate
    models = 3 + random_architectures
    recovery = 4 * p.load + a.steps * (p.step + p.forward)
    table = a.compensate_samples * p.gram + p.table
    return {
        "search": fit
        + table
        + 3 * a.samples * p.forward
        + a.evaluations * (_RACED * a.samples * p.candidate + 0.7 * p.refit),
        "prune, compensate and check": fit + 2 * p.load + 3 * scored,
        "perplexity of all architectures": fit + p.load + models * (scored + perplexity),
        "recover found, uniform and random": (_CUT - 1) * (fit + 2 * p.load + 3 * scored)
        + _CUT * (recovery + 2 * p.load + 2 * perplexity),
        "speed": models * p.load + BENCH_TURNS * models * (0.5 * p.forward + BENCH_TOKENS * p.token),
        "answers": ANSWERED * (p.load + PROMPTS * (0.2 * p.forward + ANSWER_TOKENS * p.token)),
    }


def amounts_within(p: Pieces, seconds: float, random_architectures: int) -> tuple[Amounts, dict[str, float]]:
    """The most that fits into the time (at full size where it does), and its estimate."""
    for tenth in range(20, -1, -1):
        amounts = Amounts() if tenth == 20 else Amounts().scaled(tenth / 20)
        parts = estimate(p, amounts, random_architectures)
        if sum(parts.values()) <= seconds:
            break
    return amounts, parts


def measure(source: ModelSource, params: str, seq_len: int, batch: int, threads: int | None) -> tuple[Pieces, int]:
    """Do a piece of every kind of work once, after a first one that does not count; returns the pieces and the threads.

    Raises:
        UserError: if the model cannot be loaded, or the budget cannot be met.
    """
    count = set_threads(threads)
    free = source.space()
    space = source.space(budget=Budget(parse_size(params, free.parameters(free.base)), 0.01))
    uniform = space.uniform()
    if uniform is None:
        raise UserError(f"params {params}: the uniform architecture cannot be brought into this budget")
    load(source, device="cpu", dtype="fp32")  # the first one imports, and converts where that is needed
    loading, loaded = _timed(lambda: load(source, device="cpu", dtype="fp32"))
    blocks = loaded.blocks()
    ids = torch.randint(0, int(source.config["vocab_size"]), (1, seq_len), generator=torch.Generator().manual_seed(0))
    perplexity(loaded.model, ids, 1)
    forward, _ = _timed(lambda: perplexity(loaded.model, ids, 1))
    units = {(i, s.spec.name): s.spec.units for i, b in enumerate(blocks) for s in b.sub_blocks if s.spec.units}
    as_they_are = {key: -torch.arange(number, dtype=torch.float64) for key, number in units.items()}
    net = Supernet(loaded.model, blocks, Ordering.from_saliency(blocks, as_they_are))
    statistics, grams = _timed(lambda: list(gram_matrices(net.model, blocks, ids, 1)))
    factor, how = _timed(lambda: CompensatedRealisation(net, iter(grams), 0.01))
    grams.clear()
    seconds = []
    with ExitStack() as realised:
        refit, _ = _timed(partial(realised.enter_context, net.realise(uniform, how)))
    for _ in range(3):
        with net.realise(uniform, how) as model:
            seconds.append(_timed(partial(perplexity, model, ids, 1))[0])
    del how
    token, _ = _timed(lambda: perplexity(loaded.model, ids[:, :2], 1))
    with net.realise(uniform) as model, private_weights(model) as weights:
        step = _step(model, weights, ids.expand(batch, -1))
    candidate = min(seconds[1:])
    swept, _ = _timed(partial(_sweep, blocks[0]))
    gradients = fisher_tokens(Amounts().compensate_samples * seq_len, blocks)
    table = -(-gradients // seq_len) * step / batch + len(blocks) * swept
    pieces = Pieces(loading, forward, candidate, refit, statistics, factor, step, token, table)
    return pieces, count


def _sweep(block: Block) -> None:
    """The elimination of a block's units; how long it takes depends on its shapes alone."""
    for sub in block.sub_blocks:
        projection, spec = sub.output_projection, sub.spec
        gram, metric = (torch.eye(n, dtype=torch.float64) for n in (projection.columns, projection.rows))
        owner = torch.from_numpy(projection.matrix_unit_ids(1, spec.units))
        weight = torch.ones(projection.rows, projection.columns)
        swept = predicted_rises(gram, weight, metric, owner, spec.choices(), groups=sub.groups)
        moments = Moments(gram, gram.diagonal(), 1, (gram.float(), gram.float()))
        held_out_rises(swept, moments, weight, metric, owner, spec.choices())


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def _step(model: Any, weights: Sequence[torch.nn.Parameter], ids: torch.Tensor) -> float:
    """Seconds of a training step: the faster of two after the first one, which allocates."""
    optimizer = torch.optim.AdamW(weights, lr=0.0)

    def run() -> None:
        for one in ids.split(1):
            model(input_ids=one, labels=one, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    run()
    return min(_timed(run)[0] for _ in range(2))


def to_json(p: Pieces, a: Amounts, parts: dict[str, float], threads: int) -> dict[str, Any]:
    """What demo.json keeps of it."""
    return {
        "measured_seconds": {k: round(v, 4) for k, v in asdict(p).items()},
        "amounts": {**asdict(a), "evaluations": a.evaluations},
        "estimate_seconds": {k: round(v, 1) for k, v in parts.items()},
        "threads": threads,
    }
