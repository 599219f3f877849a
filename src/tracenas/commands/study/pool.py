"""The architectures of a study: of one budget with uniform among them, or of many sizes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tracenas.config.study import PoolConfig, names
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.target import PruningTarget, resolve_target
from tracenas.registry import did_you_mean
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.studies.correlation import MINIMUM

__all__ = ["Drawn", "draw_pool", "parse_list"]

_STREAM = 0x504F4F4C
_REDRAWS = 50


@dataclass(frozen=True)
class Drawn:
    """An architecture and where it is from: `uniform`, `random` or `mutation` (of uniform)."""

    kind: str
    arch: Architecture


def draw_pool(source: ModelSource, config: PoolConfig) -> tuple[PruningTarget, list[Drawn]]:
    """What the sizes are counted in, and `config.architectures` distinct architectures.

    Within a budget: uniform, then in turns a random one and a mutation of uniform (widths jittered with a σ drawn from
    [0.05, 0.4], with probability 0.3 one block flipped; repaired into the budget). Random ones alone are nearly all
    far worse than uniform; what a search has to tell apart is near it.

    Across sizes: budgets at equal steps from the smallest to the largest share, and in turns a random architecture
    and a mutation of uniform at that size.

    Raises:
        UserError: for an infeasible budget, or if there are not that many architectures.
    """
    if config.architectures < MINIMUM:
        raise UserError(f"architectures {config.architectures}: a correlation needs at least {MINIMUM}")
    if config.across_sizes == (config.params is not None):
        raise UserError("give either params (one budget for all architectures) or across-sizes")
    if not config.across_sizes:
        target = resolve_target(source, config, params=config.params, tolerance=config.tolerance)
        return target, _within(target.space, config.architectures, config.seed)
    low, high = config.shares
    count = config.architectures
    spaces = []
    for place in range(count):
        share = f"{low + (high - low) * place / (count - 1):.4f}%"
        spaces.append(resolve_target(source, config, params=share, tolerance=config.tolerance).space)
    return resolve_target(source, config), list(_of_sizes(spaces, config.seed))


def _within(space: SearchSpace, count: int, seed: int) -> list[Drawn]:
    uniform = space.uniform()
    if uniform is None:
        raise UserError("no uniform architecture lies within the budget; widen the tolerance")
    pool = [Drawn("uniform", uniform)]
    for drawn in _in_turns([space] * (count - 1), seed, {uniform}):
        if drawn is None:
            raise UserError(
                f"architectures {count}: only {len(pool)} distinct ones of this budget could be drawn; "
                "ask for fewer, or widen the tolerance or the space"
            )
        pool.append(drawn)
    return pool


def _of_sizes(spaces: list[SearchSpace], seed: int) -> Iterator[Drawn]:
    for space, drawn in zip(spaces, _in_turns(spaces, seed, set()), strict=True):
        if drawn is None:
            raise UserError(
                f"architectures {len(spaces)}: no new one of {space.window[1]:,} parameters could be drawn; "
                "ask for fewer, or for another range of sizes"
            )
        yield drawn


def _in_turns(spaces: Iterable[SearchSpace], seed: int, seen: set[Architecture]) -> Iterator[Drawn | None]:
    """A random architecture and a mutation of uniform in turns, of each space one that is not in `seen`, if any."""
    rng = np.random.default_rng([seed, _STREAM])
    for turn, space in enumerate(spaces):
        uniform = space.uniform()
        assert uniform is not None  # checked with the budget
        kinds = ("mutation", "random") if turn % 2 else ("random", "mutation")
        yield _new(kinds, space, uniform, rng, seen)


def _new(
    kinds: tuple[str, ...], space: SearchSpace, uniform: Architecture, rng: np.random.Generator, seen: set[Architecture]
) -> Drawn | None:
    """An architecture not in `seen`, which it is added to; of the first kind that yields one."""
    draws: dict[str, Callable[[], Architecture | None]] = {
        "random": lambda: space.sample(rng),
        "mutation": lambda: _mutated(space, uniform, rng),
    }
    for kind in kinds:
        for _ in range(_REDRAWS):
            arch = draws[kind]()
            if arch is not None and arch not in seen:
                seen.add(arch)
                return Drawn(kind, arch)
    return None


def _mutated(space: SearchSpace, uniform: Architecture, rng: np.random.Generator) -> Architecture | None:
    sigma = float(rng.uniform(0.05, 0.4))
    return space.repair(space.mutate(uniform, rng, depth=0.3, width=1.0, sigma=sigma), rng)


def parse_list(name: str, text: str, accepted: tuple[str, ...]) -> tuple[str, ...]:
    """Names separated by commas, in the order of `accepted`.

    Raises:
        UserError: for none, or an unknown one.
    """
    parts = names(text)
    for part in parts:
        if part not in accepted:
            raise UserError(f"{name} '{part}': {did_you_mean(part, list(accepted))}")
    if not parts:
        raise UserError(f"{name} is empty; accepted: {', '.join(accepted)}")
    return tuple(part for part in accepted if part in parts)
