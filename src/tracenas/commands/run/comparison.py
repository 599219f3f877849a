"""The comparison of a run: base, uniform, random and found architecture on the same text, before any training."""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tracenas.commands.prune.command import as_searched, realisation
from tracenas.commands.prune.result import Pruned
from tracenas.commands.run.sections import COMPARISON, begin, prune_config
from tracenas.commands.search.command import SearchOutcome
from tracenas.config import RunConfig
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.refit.fitting import candidate_loss, realisation_facts
from tracenas.pipeline.session import Session, open_session, space_of
from tracenas.reporting.terminal import to_plain
from tracenas.rundir import read_json, write_json
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

if TYPE_CHECKING:
    from tracenas.models.functionals.perplexity import Perplexity
    from tracenas.models.surgery.supernet import Supernet

__all__ = ["compare", "rivals", "verdict"]

_TIE = 1e-3
"""Nats per token: closer ones count as equal."""


def verdict(comparison: list[dict[str, Any]]) -> str:
    """Who has the lowest perplexity among the architectures of the budget, in a sentence per stage."""
    rows = [row for row in comparison if row["name"] != "base"]
    said = [_winner({row["name"]: row["nll"] for row in rows}, "")]
    for key in ("checkpoint", "recovered"):
        later = {row["name"]: row[key]["nll"] for row in rows if key in row}
        if "found" in later and len(later) > 1:
            said.append(_winner(later, {"checkpoint": "Realised as the checkpoint: ", "recovered": "Recovered: "}[key]))
    return "\n".join(said)


def _winner(nll: dict[str, float], when: str) -> str:
    found = nll["found"]
    others = {name: value for name, value in nll.items() if name != "found"}
    if not others:
        return "Nothing to compare the found architecture with."
    best = min(others, key=lambda name: others[name])
    gap = others[best] - found
    start = f"{when}{'the' if when else 'The'} found architecture"
    if abs(gap) < _TIE:
        return f"{start} is as good as '{best}'."
    if gap > 0:
        return f"{start} has the lowest perplexity of its budget by {gap:.3f} nats per token."
    nats = f"{others[best]:.3f} against {found:.3f} nats"
    return f"{when}'{best}' has a lower perplexity than the found architecture ({nats})."


def rivals(space: SearchSpace, count: int, seed: int) -> dict[str, Architecture]:
    """The uniform architecture and `count` random ones, all of the same budget."""
    out: dict[str, Architecture] = {}
    uniform = space.uniform()
    if uniform is not None:
        out["uniform"] = uniform
    rng = np.random.default_rng([seed, 0x52414E44])
    for _ in range(20 * count):
        sampled = space.sample(rng)
        if sampled is not None and sampled not in out.values() and len([k for k in out if k != "uniform"]) < count:
            out[f"random {len(out) - ('uniform' in out) + 1}"] = sampled
    return out


def compare(config: RunConfig, found: SearchOutcome, pruned: Pruned) -> list[dict[str, Any]]:
    """Score, loss and perplexity of every architecture as it was scored; found and uniform compensated, too.

    A row's `checkpoint` is what the architecture reaches realised as the run's checkpoint is (`compensate`), where
    that is not how candidates were scored; of `best`, each is written in what is best for it (`written`).
    """
    if not begin(config, "comparison"):
        stored: list[dict[str, Any]] = read_json(config.out / COMPARISON)
        return stored
    from tracenas.pipeline.calibration import evaluation_windows
    from tracenas.reporting.progress import stage_progress

    source = open_source(config.model)
    space = space_of(source, config, params=config.params, tolerance=config.tolerance)
    session = open_session(source, space, config, data=config.data, run=config.out)
    length = min(session.tokens.shape[1], source.positions)
    windows = evaluation_windows(session.loaded, config, length)
    measure = _Measure(session, windows)
    net = session.supernet()
    evaluator = session.evaluator(config.proxy, config.rank, net)
    named = {"base": space.base, **rivals(space, config.random_architectures, config.seed), "found": found.architecture}
    other = _other_realisation(config)
    rows = []
    with stage_progress("perplexity", len(named)) as advance:
        for name, arch in named.items():
            scored = evaluator.score(arch)
            if name == "found" and not other:
                measured = measure.checkpoint(pruned)
            else:
                measured = measure.candidate(net, arch, evaluator.realisation)
            row = {"name": name, "params": space.parameters(arch), **_figures(measured), "loss": scored.loss}
            row["score"] = scored.score if scored.ok else None
            row |= {"arch": arch.to_json(), "tokens": measured.tokens, "text": config.eval_text}
            if other and name == "found":
                figures = {**_figures(measure.checkpoint(pruned)), "loss": pruned.loss, "written": pruned.written}
                row["checkpoint"] = {"realisation": other, **figures}
            if other and name == "uniform":
                row["checkpoint"] = {"realisation": other, **_realised(config, measure, net, arch)}
            rows.append(row)
            advance(1)
    write_json(config.out / COMPARISON, to_plain(rows))
    return rows


@dataclasses.dataclass(frozen=True)
class _Measure:
    """Perplexity on the same windows, of candidates in the super-network and of checkpoints."""

    session: Session
    windows: Any

    def candidate(self, net: "Supernet", arch: Architecture, how: Any) -> "Perplexity":
        from tracenas.models.functionals.perplexity import perplexity

        with net.realise(arch, how) as model:
            return perplexity(model, self.windows, self.session.micro_batch)

    def checkpoint(self, pruned: Pruned) -> "Perplexity":
        from tracenas.models.checkpoints.loading import load
        from tracenas.models.functionals.perplexity import perplexity

        loaded = self.session.loaded
        again = load(str(pruned.path), device=str(loaded.device), dtype=loaded.dtype_name)
        return perplexity(again.model, self.windows, self.session.micro_batch)


def _figures(measured: "Perplexity") -> dict[str, Any]:
    finite = math.isfinite(measured.perplexity)
    return {"perplexity": measured.perplexity if finite else None, "nll": measured.nll}


def _other_realisation(config: RunConfig) -> str:
    """How the checkpoint is realised if not as candidates were scored; empty if it is."""
    compensate = prune_config(config, config.out, config.out).compensate
    if compensate == "auto":
        return ""
    asked = "plain" if compensate == "none" else compensate
    plain = realisation_facts(config.proxy, config.ridge)["realisation"] == "plain"
    return "" if asked == "plain" and plain else asked  # a ridge of its own is another one than the scores'


def _realised(config: RunConfig, measure: _Measure, net: "Supernet", arch: Architecture) -> dict[str, Any]:
    """Perplexity and calibration loss of an architecture, realised with the same settings as the run's checkpoint."""
    from tracenas.refits.ridge import FittedRealisation

    settings, data = as_searched(prune_config(config, config.out, config.out), config.out)
    session = dataclasses.replace(measure.session, config=settings, data=data)
    facts = realisation_facts(config.proxy, config.ridge)
    scored = (facts["realisation"], facts.get("ridge", 0.0))
    choice = realisation(settings, session, net, arch, scored)
    refit = choice.compensation
    loss = candidate_loss(session, net, arch) if refit is None else refit.loss
    figures = _figures(measure.candidate(net, arch, None if refit is None else FittedRealisation(refit.outputs)))
    return {**figures, "loss": loss, "written": choice.written}
