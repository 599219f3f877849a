"""`tracenas score`: the proxy score of one architecture, with every ρ."""

from dataclasses import dataclass
from typing import Any

from tracenas.commands.search.command import kept_by_unit
from tracenas.config import ScoreConfig, check_used
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.scoring import REFERENCE, proxy_of, stored_pool
from tracenas.pipeline.session import open_session, options_of, space_of
from tracenas.proxies.combination import choose
from tracenas.reporting.terminal import Table, print_table
from tracenas.rundir import read_json
from tracenas.space.architecture import Architecture

__all__ = ["Scored", "score"]


@dataclass(frozen=True)
class Scored:
    """One architecture's score.

    Args:
        proxy: what it was scored by.
        value: the score.
        rho: trace correlations per sub-block name and layer; None where it is bypassed.
        loss: calibration loss, nats per token.
        params: parameters of the materialised model.
        kept: base ids of the kept units per unit name and layer.
    """

    proxy: str
    value: float
    rho: dict[str, list[float | None]]
    loss: float
    params: int
    kept: dict[str, list[list[int] | None]]

    def to_json(self) -> dict[str, Any]:
        """For `--json`: the score stands under the proxy's name."""
        return {
            self.proxy: self.value,
            "rho": self.rho,
            "loss": self.loss,
            "params": self.params,
            "kept": self.kept,
        }

    def show(self) -> None:
        """Score, loss and every ρ on stdout."""
        depth = max((len(v) for v in self.kept.values()), default=0)
        names = list(self.rho)
        rows = []
        for i in range(depth):
            kept = [f"{u} {len(ids)}" if (ids := v[i]) is not None else f"{u} –" for u, v in self.kept.items()]
            rho = ["–" if (r := self.rho[n][i]) is None else f"{r:.4f}" for n in names]
            rows.append((str(i), ", ".join(kept), *rho))
        print_table(Table("", ("layer", "kept", *(f"ρ {n}" for n in names)), rows))
        print(f"{self.proxy} {self.value:.6f}   loss {self.loss:.6f}   parameters {self.params:,}")


def score(config: ScoreConfig) -> Scored:
    """Score one architecture of a model (TraceNAS §3.4).

    Raises:
        UserError: for wrong input, or if the candidate could not be scored.
    """
    source = open_source(config.model)
    space = space_of(source, config, params=None)
    arch = space.validate(
        Architecture.from_json(read_json(config.arch), where=str(config.arch)), where=str(config.arch)
    )
    _ = config.trace_rank
    proxy = proxy_of(config.proxy, source)
    check_used(config.model_copy(update={"proxy": proxy}))
    choice, reference = choose(proxy), config.arch.parent / REFERENCE
    if not choice.single:
        stored_pool(reference, choice)
    session = open_session(source, space, config, data=config.data)
    evaluator = session.evaluator(proxy, config.rank, reference=None if choice.single else reference)
    result = evaluator.score(arch)
    if not result.ok or result.loss is None:
        raise UserError(f"{config.arch}: cannot be scored: {result.reason}")
    kept = session.ordering.kept(session.loaded.blocks(options_of(config)), arch)
    return Scored(
        proxy,
        result.score,
        result.extra.get("rho", {}),
        result.loss,
        space.parameters(arch),
        kept_by_unit(space, kept),
    )
