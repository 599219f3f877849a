"""The comparison of a run: base, uniform, random and found architecture on the same text, before any training."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tracenas.commands.prune.realising import written_candidate
from tracenas.commands.prune.result import Pruned
from tracenas.commands.prune.settings import as_searched, reconstruction_work
from tracenas.commands.run.sections import prune_config
from tracenas.commands.run.steps import COMPARISON
from tracenas.config import PruneConfig, RunConfig
from tracenas.models.checkpoints.loading import load
from tracenas.models.checkpoints.source import ModelSource
from tracenas.models.functionals.perplexity import Perplexity, perplexity
from tracenas.models.surgery.supernet import Realisation
from tracenas.pipeline.budgets import resolve_budgets
from tracenas.pipeline.calibration import evaluation_windows
from tracenas.pipeline.opening import open_session, refit_settings
from tracenas.pipeline.refit.losses import candidate_loss
from tracenas.pipeline.refit.record import ScoredRealisation, realisation_facts
from tracenas.pipeline.resume import CONFIG
from tracenas.pipeline.scoring import make_evaluator
from tracenas.pipeline.session import Session
from tracenas.reporting.progress import phase
from tracenas.reporting.terminal import to_plain
from tracenas.rundir import write_json
from tracenas.settings import read_settings
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

__all__ = ["compare", "rivals"]


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


def compare(config: RunConfig, source: ModelSource, best: Architecture, pruned: Pruned) -> list[dict[str, Any]]:
    """Score, loss and perplexity of every architecture as it was scored; found and uniform compensated, too.

    A row's `checkpoint` is what the architecture reaches realised as the run's checkpoint is (`compensate`), where
    that is not how candidates were scored; of `best`, each is written in what is best for it (`written`).

    Args:
        best: the architecture that the search found.
        pruned: its checkpoint.
    """
    stored = read_settings(config.out / CONFIG)
    searched = config.model_copy(update={key: stored.get(key) for key in ("min_depth", "exclude")})
    target = resolve_budgets(source, searched, config.out)
    session = open_session(target, config, data=config.data, run=config.out)
    windows = evaluation_windows(session.loaded, config, min(session.tokens.shape[1], source.positions))
    evaluator = make_evaluator(session, config.proxy, config.trace_rank)
    space = target.space
    named = {"base": space.base, **rivals(space, config.random_architectures, config.seed), "found": best}
    pruning = prune_config(config, config.out, config.out / "uniform")
    other = _other_realisation(config, pruning)
    rows = []
    with phase("comparison", len(named)) as steps:
        for name, arch in named.items():
            scored = evaluator.score(arch)
            if name == "found" and not other:
                measured = _checkpoint_perplexity(session, pruned, windows)
            else:
                measured = _candidate_perplexity(session, arch, windows, evaluator.realisation)
            row = {"name": name, "params": space.parameters(arch), **_figures(measured), "loss": scored.loss}
            row["score"] = scored.score if scored.ok else None
            row |= {"arch": arch.to_json(), "tokens": measured.tokens, "text": config.text}
            if other and name == "found":
                figures = _figures(_checkpoint_perplexity(session, pruned, windows))
                row["checkpoint"] = {"realisation": other, **figures, "loss": pruned.loss, "written": pruned.written}
            if other and name == "uniform":
                row["checkpoint"] = {"realisation": other, **_as_checkpoint(config, pruning, session, arch, windows)}
            rows.append(row)
            steps.advance()
    write_json(config.out / COMPARISON, to_plain(rows))
    return rows


def _candidate_perplexity(
    session: Session, arch: Architecture, windows: torch.Tensor, how: Realisation | None
) -> Perplexity:
    with session.supernet().realise(arch, how) as model:
        return _perplexity(session, model, windows)


def _checkpoint_perplexity(session: Session, pruned: Pruned, windows: torch.Tensor) -> Perplexity:
    loaded = session.loaded
    with phase("load the checkpoint"):
        again = load(
            str(pruned.path),
            device=str(loaded.device),
            dtype=loaded.dtype_name,
            keep=loaded.keep,
            streamed=loaded.streamed,
        )
    return _perplexity(session, again.model, windows)


def _perplexity(session: Session, model: Any, windows: torch.Tensor) -> Perplexity:
    with phase("perplexity") as steps:
        return perplexity(model, windows, session.micro_batch, report=steps.report)


def _figures(measured: Perplexity) -> dict[str, Any]:
    finite = math.isfinite(measured.perplexity)
    return {"perplexity": measured.perplexity if finite else None, "nll": measured.nll}


def _other_realisation(config: RunConfig, pruning: PruneConfig) -> str:
    """How the checkpoint is realised if not as candidates were scored; empty if it is."""
    scored = realisation_facts(config.proxy, config.ridge)["realisation"]
    realisation = {"none": "plain", "auto": scored}.get(pruning.compensate, pruning.compensate)
    if pruning.reconstruct != "none":
        return f"{realisation}, blocks trained"
    if pruning.compensate == "auto":
        return ""
    plain = scored == "plain"
    return "" if realisation == "plain" and plain else realisation  # a ridge of its own is another than the scores'


def _as_checkpoint(
    config: RunConfig, pruning: PruneConfig, session: Session, arch: Architecture, windows: torch.Tensor
) -> dict[str, Any]:
    """Perplexity and calibration loss of an architecture, realised with the same settings as the run's checkpoint.

    Args:
        pruning: of a checkpoint of this architecture, which is not written.
    """
    settings, data = as_searched(pruning, config.out)
    session = replace(session, seed=settings.seed, refit=refit_settings(settings, data))
    facts = realisation_facts(config.proxy, config.ridge)
    scored = ScoredRealisation(facts["realisation"], facts.get("ridge", 0.0))
    with reconstruction_work(settings):
        candidate = written_candidate(settings, session, arch, scored)
        loss = candidate_loss(session, arch) if candidate.loss is None else candidate.loss
        figures = _figures(_candidate_perplexity(session, arch, windows, candidate.how))
        candidate.finish(settings)
    return {**figures, "loss": loss, "written": candidate.choice.written}
