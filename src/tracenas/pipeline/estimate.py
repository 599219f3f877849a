"""What a search takes on this machine: seconds before the first candidate, and of every candidate.

Counted work at rates that were measured (`measured_estimate`); no torch before that. Proxies and combinations of them
add passes, refits and statistics; the sensitivity table that searches start from has passes and sweeps of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tracenas.errors import UserError
from tracenas.families import Block, present
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.reference import POOL
from tracenas.pipeline.refit import (
    COMPARED_SHARE,
    COMPARED_TOKENS,
    DEFAULT_SAMPLES,
    DRIFT_TOKENS,
    HELD_OUT_SAMPLES,
    RIDGES,
    SCALE_TOKENS,
    STEP_TOKENS,
    compared_windows,
    scale_steps,
)
from tracenas.pipeline.target import PruningTarget
from tracenas.proxies.combination import Choice
from tracenas.recovery.settings import SUSTAINED
from tracenas.refits.aim import DRIFTS
from tracenas.refits.costs import reconstruction_costs, refit_costs, refit_memory
from tracenas.saliency.sensitivity import fisher_tokens, trial_operations
from tracenas.scoring.workload import Shape, Workload, default_micro_batch, workload
from tracenas.space.architecture import Architecture
from tracenas.strategies.selection import CONTENDERS, WINDOWS

if TYPE_CHECKING:
    from tracenas.benchmark.machine import Rates

__all__ = [
    "SearchEstimate",
    "SearchTime",
    "compensation_memory",
    "forward_only",
    "in_passes",
    "measured_estimate",
    "pool_size",
    "search_shape",
    "trace_rank",
    "workload_seconds",
]

_FEW_STEPS = 6 * 4
"""Sequences that `few_steps` trains on."""


@dataclass(frozen=True)
class SearchTime:
    """Estimated seconds.

    Args:
        once: beside the candidates: the base's passes, statistics and factors, the sensitivity table, the pool of a
            combination, the best ones on held-out text.
        each: of a candidate, none of whose refits is remembered, on all of the calibration.
    """

    once: float
    each: float


def search_shape(source: ModelSource, samples: int, length: int, rank: int | None, *, device: str, dtype: str) -> Shape:
    """The calibration as candidates see it, one sequence per pass; `auto` as far as it can be told without torch.

    Args:
        samples, length: N sequences of L tokens.
        rank: of the traces.

    Raises:
        UserError: for more tokens than the model has positions.
    """
    if length > source.positions:
        raise UserError(f"seq-len {length}: the model has {source.positions} positions")
    kind = "cuda" if device.startswith("cuda") else "cpu"
    half = dtype in ("bf16", "fp16") or (dtype == "auto" and kind == "cuda")
    return Shape(samples, length, 1, rank, 2 if half else 4, kind)


def in_passes(shape: Shape, target: PruningTarget) -> Shape:
    """The shape with the micro-batch that a search would take."""
    default = default_micro_batch(
        target.blocks, target.space.base, target.hidden, shape.seq_len, shape.element, shape.device
    )
    return replace(shape, micro_batch=min(shape.samples, default))


@dataclass(frozen=True)
class SearchEstimate:
    """What a search and what follows it take on this machine.

    Args:
        target: what is searched.
        arch: what candidates are like.
        choice: what scores them.
        rank: of the traces, where a proxy takes any.
        rates: of this machine.
        table: whether a sensitivity table is measured.
    """

    target: PruningTarget
    arch: Architecture
    choice: Choice
    rank: int
    rates: "Rates"
    table: bool

    def forward(self, of: Architecture, part: Shape, *, head: bool = True) -> float:
        """Seconds of passes over all sequences, backward with traces, too.

        Args:
            head: whether every token has logits.
        """
        source = self.target.source
        weights = source.family.head_weights(source.config) if head else 0
        work = workload(self.target.blocks, of, weights, self.target.hidden, part)
        return workload_seconds(work, self.rates, part)

    def search(self, shape: Shape, statistics: int | None = None) -> SearchTime:
        """The search's parts.

        Args:
            shape: of the calibration.
            statistics: sequences of refits, and of the table beside them; None: the default.
        """
        blocks, base, rates = self.target.blocks, self.target.space.base, self.rates
        each = _per_candidate(self.choice, self.rank, shape, lambda part: self.forward(self.arch, part))
        # The base's anchor and the pass for the saliency come before the candidates.
        once = 1.5 * self.forward(base, shape)
        tokens = (statistics or DEFAULT_SAMPLES) * shape.seq_len
        if self.choice.compensated:
            costs = refit_costs(blocks, self.arch, tokens)
            each += costs.candidate / rates.flops
            once += costs.forward / rates.flops + costs.gram / rates.single_flops + costs.factor / rates.double_flops
        if self.table:
            text = tokens if self.choice.compensated else shape.tokens
            once += _table_seconds(blocks, base, text, shape, rates, self.forward)
        if self.choice.additive and not self.target.source.is_encoder_decoder:  # the best ones on held-out text
            once += (1 + CONTENDERS) * WINDOWS / shape.samples * each
        return SearchTime(once + pool_size(self.choice) * each, each)

    def prune(self, shape: Shape, statistics: int | None = None, *, steps: int, scales: str) -> float:
        """Seconds of `prune --compensate best`: both refits chosen and written, losses, the checkpoint's check.

        Args:
            statistics: sequences of refits; None: the default.
            steps: that every block is trained for.
            scales: as the setting of `prune`.
        """
        trained = self._trained(shape, statistics or DEFAULT_SAMPLES, steps) if steps else 0.0
        rates = self.rates
        costs = refit_costs(self.target.blocks, self.arch, (statistics or DEFAULT_SAMPLES) * shape.seq_len)
        strengths = len(RIDGES["mean"])
        aims = strengths + len(DRIFTS) - 1  # one pair is in both comparisons
        passes = (2 * costs.forward + costs.sequential * (1 + (aims - 1) / COMPARED_SHARE)) / rates.flops
        whole, begun = (compared_windows(tokens, shape.seq_len) for tokens in (COMPARED_TOKENS, DRIFT_TOKENS))
        held_out = (strengths + 3) * min(HELD_OUT_SAMPLES, whole) + aims * min(HELD_OUT_SAMPLES, begun)
        runs = (self.target.space.base, shape.samples), (self.arch, 3 * shape.samples + held_out)
        losses = sum(self.forward(of, replace(shape, samples=samples, rank=None)) for of, samples in runs)
        losses += self._scales(shape, statistics or DEFAULT_SAMPLES, scales)
        return passes + 2 * (costs.gram / rates.single_flops + costs.candidate / rates.double_flops) + losses + trained

    def _scales(self, shape: Shape, statistics: int, scales: str) -> float:
        """Seconds of fitting scales, and of the losses that decide on them."""
        if scales == "none" or self.target.source.is_encoder_decoder:
            return 0.0
        # A step goes forward twice and back once; Newton's passes over the head are worth another pass.
        steps = scale_steps(statistics * shape.seq_len) * max(1, SCALE_TOKENS // shape.seq_len)
        sequences = shape.samples + (4 * steps if scales == "fit" else 2 * HELD_OUT_SAMPLES)
        return self.forward(self.arch, replace(shape, samples=sequences, rank=None))

    def _trained(self, shape: Shape, statistics: int, steps: int) -> float:
        """Seconds of training the blocks, and of the losses that decide on them."""
        length, share = shape.seq_len, SUSTAINED["bf16" if shape.element == 2 else "fp32"]
        held_out, each = HELD_OUT_SAMPLES * length, max(1, STEP_TOKENS // length) * length
        passes, training = reconstruction_costs(
            self.target.blocks, self.arch, tokens=statistics * length, held_out=held_out, trained=steps * each
        )
        runs = replace(shape, samples=2 * HELD_OUT_SAMPLES + shape.samples, rank=None)
        return (passes + training / share) / self.rates.flops + self.forward(self.arch, runs)


def measured_estimate(
    target: PruningTarget,
    arch: Architecture,
    choice: Choice,
    rank: int,
    shape: Shape,
    *,
    table: bool,
    device: str,
    dtype: str,
    threads: int | None,
) -> tuple[SearchEstimate, Shape]:
    """The estimate with this machine's rates, and the shape with the device and dtype that `auto` comes to."""
    from tracenas.benchmark.machine import measure_rates
    from tracenas.models.checkpoints.loading import pick_device, pick_dtype
    from tracenas.pipeline.precision import may_halve
    from tracenas.threads import set_threads

    set_threads(threads)
    where, config, shape = pick_device(device), target.source.config, in_passes(shape, target)
    parameters = target.space.parameters(target.space.base)
    if forward_only(choice.needs) and may_halve(dtype, where, config, parameters, shape.tokens):
        dtype = "bf16"
    number = pick_dtype(dtype, where)
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    rates = measure_rates(
        where,
        number,
        tokens=shape.micro_batch * shape.seq_len,
        hidden=hidden,
        width=int(config["intermediate_size"]),
        head_dim=int(config.get("head_dim") or hidden // heads),
        rank=shape.rank or 64,
    )
    shape = replace(shape, device=where.type, element=number.itemsize)
    return SearchEstimate(target, arch, choice, rank, rates, table), in_passes(shape, target)


def workload_seconds(work: Workload, rates: "Rates", shape: Shape) -> float:
    """Estimated seconds of one evaluation: each kind of work at the rate it was measured at."""
    per_pair = rates.score_seconds_forward if shape.rank is None else rates.score_seconds
    thin = rates.flops if shape.rank == 0 else rates.thin_flops
    return (
        work.flops / rates.flops
        + work.trace_flops / thin
        + work.elements * shape.element / rates.bytes
        + work.score_pairs * per_pair
    )


def trace_rank(needs: frozenset[str], rank: int) -> int | None:
    """Rank of the traces in a pass for these needs, None without a backward pass.

    A weight's gradient is what its trace at full rank is: the same product, whichever else is taken.
    """
    if needs & {"weight_gradients", "steps"}:
        return 0
    return rank if "trace" in needs else None


def forward_only(needs: frozenset[str]) -> bool:
    """Whether proxies with these needs take no gradients, which bf16 would change more than losses."""
    return trace_rank(needs, 1) is None


def _per_candidate(choice: Choice, rank: int, shape: Shape, timed: Callable[[Shape], float]) -> float:
    """One plain pass and one compensated pass where there are proxies for them, and the steps of `few_steps`."""
    total = 0.0
    for refitted in (False, True):
        run = [p for p in choice.proxies if p.runs and ("compensated" in p.needs) is refitted]
        wanted = [p.needs - {"steps"} for p in run]
        if wanted:
            total += timed(replace(shape, rank=trace_rank(frozenset[str]().union(*wanted), rank)))
    if "steps" in choice.needs:
        total += _FEW_STEPS / shape.samples * timed(replace(shape, rank=0)) + timed(replace(shape, rank=None)) / 2
    return total


def _table_seconds(
    blocks: tuple[Block, ...],
    base: Architecture,
    tokens: int,
    shape: Shape,
    rates: "Rates",
    timed: Callable[[Architecture, Shape], float],
) -> float:
    """A forward pass over all tokens, one of the gradients with the blocks run twice, products, sweeps, trials."""
    windows = -(-fisher_tokens(tokens, blocks) // shape.seq_len)
    passes = timed(base, replace(shape, samples=max(1, tokens // shape.seq_len), rank=None))
    gradients = replace(shape, samples=windows)
    passes += timed(base, replace(gradients, rank=None)) + timed(base, replace(gradients, rank=1))
    moments = swept = tried = 0.0
    for _, sub in present(blocks):
        n, rows = sub.output_projection.columns, sub.output_projection.rows
        parts = sub.output_projection.stack or 1
        moments += tokens * float(n * n) + windows * shape.seq_len * float(rows * rows)
        swept += parts * (1.6 * n**3 + 1.4 * n * n * rows)
        tried += parts * trial_operations(n)
    return passes + (moments + tried) / rates.single_flops + swept / rates.double_flops


def compensation_memory(choice: Choice, blocks: tuple[Block, ...], shape: Shape) -> int:
    """Bytes."""
    return refit_memory(blocks, DEFAULT_SAMPLES * shape.seq_len, shape.element) if choice.compensated else 0


def pool_size(choice: Choice) -> int:
    """Architectures that a combination's ranks are taken in, scored before the search."""
    return 0 if choice.single else POOL + 1
