"""`tracenas score`: the proxy score of one architecture, with every ρ."""

from dataclasses import dataclass
from typing import Any

from tracenas.config import ScoreConfig, check_used
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.reference import REFERENCE, stored_pool
from tracenas.pipeline.resume import CONFIG
from tracenas.pipeline.target import resolve_proxy, resolve_target
from tracenas.proxies.combination import choose
from tracenas.reporting.progress import START, phase
from tracenas.reporting.terminal import Outcome, Table
from tracenas.rundir import read_json
from tracenas.saliency import SALIENCIES
from tracenas.settings import read_settings
from tracenas.space.architecture import Architecture

__all__ = ["Scored", "score"]


@dataclass(frozen=True)
class Scored(Outcome):
    """One architecture's score.

    Args:
        proxy: what it was scored by.
        value: the score.
        rho: trace correlations per sub-block name and layer; None where it is bypassed.
        loss: calibration loss, nats per token; None where the proxy runs no candidate.
        params: parameters of the materialised model.
        kept: base ids of the kept units per unit name and layer.
    """

    proxy: str
    value: float
    rho: dict[str, list[float | None]]
    loss: float | None
    params: int
    kept: dict[str, list[list[int] | None]]

    def to_json(self) -> dict[str, Any]:
        """For `--json`: the score stands under the proxy's name."""
        figures = {key: value for key, value in vars(self).items() if key not in ("proxy", "value")}
        return {self.proxy: self.value, **figures}

    def tables(self) -> list[Table]:
        """Score, loss and every ρ."""
        depth = max((len(v) for v in self.kept.values()), default=0)
        names = list(self.rho)
        rows = []
        for i in range(depth):
            kept = [f"{u} {len(ids)}" if (ids := v[i]) is not None else f"{u} –" for u, v in self.kept.items()]
            rho = ["–" if (r := self.rho[n][i]) is None else f"{r:.4f}" for n in names]
            rows.append((str(i), ", ".join(kept), *rho))
        loss = "–" if self.loss is None else f"{self.loss:.6f}"
        figures = f"{self.proxy} {self.value:.6f}   loss {loss}   parameters {self.params:,}"
        return [Table("", ("layer", "kept", *(f"ρ {n}" for n in names)), rows, [figures])]


def score(config: ScoreConfig) -> Scored:
    """Score one architecture of a model (TraceNAS §3.4).

    Raises:
        UserError: for wrong input, or if the candidate could not be scored.
    """
    config = _as_ranked(config)
    target, where = resolve_target(open_source(config.model), config), str(config.arch)
    arch = target.space.validate(Architecture.from_json(read_json(config.arch), where=where), where=where)
    proxy = resolve_proxy(config.proxy, target.source)
    check_used(config.model_copy(update={"proxy": proxy}))
    reference = None
    if not (choice := choose(proxy)).single:
        reference = config.arch.parent / REFERENCE
        stored_pool(reference, choice)
    with phase(START):
        from tracenas.pipeline.opening import open_session
        from tracenas.pipeline.scoring import by_blocks, make_evaluator

    session = open_session(target, config, data=config.data)
    evaluator = make_evaluator(session, proxy, config.trace_rank, reference)
    with phase("score"):
        result = by_blocks(session, evaluator).score(arch)
    if not result.ok:
        raise UserError(f"{config.arch}: cannot be scored: {result.reason}")
    rho = result.extra.get("rho", {})
    return Scored(proxy, result.score, rho, result.loss, target.space.parameters(arch), session.kept_units(arch))


def _as_ranked(config: ScoreConfig) -> ScoreConfig:
    """The settings with the saliency of the run that the architecture is of, where they name none."""
    file = config.arch.parent / CONFIG
    if config.asks_for("saliency") or not file.is_file():
        return config
    saliency = str(read_settings(file).get("saliency"))
    return config.model_copy(update={"saliency": saliency}) if saliency in SALIENCIES else config
