"""The scores of an ablation: one proxy on the same architectures under every setting."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tracenas.commands.study.grid import Grid
from tracenas.config import AblationConfig
from tracenas.journal import Journal
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.refit.losses import candidate_loss
from tracenas.pipeline.refit.text import compensation_text
from tracenas.pipeline.resume import resolve_settings, same_model
from tracenas.pipeline.run_directory import JOURNAL, ORDERING
from tracenas.pipeline.scoring import make_panel
from tracenas.pipeline.session import Session
from tracenas.pipeline.target import PruningTarget
from tracenas.proxies import PROXIES
from tracenas.reporting.progress import phase
from tracenas.rundir import atomic_path
from tracenas.space.architecture import Architecture
from tracenas.studies.ablation import Setting

__all__ = ["open_ablation", "score_settings"]


def open_ablation(config: AblationConfig, target: PruningTarget, grid: Grid) -> Session:
    """The session with as much text as any setting reads, its units in the study's order."""
    if config.study is not None and not (config.out / ORDERING).is_file():
        with atomic_path(config.out / ORDERING) as temporary:
            shutil.copyfile(config.study / ORDERING, temporary)
    most = max([grid.samples, *grid.counts])
    loading = config.model_copy(update={"samples": most, "seq_len": grid.length})
    session = open_session(target, loading, data=config.data, run=config.out)
    resolve_settings(config, config.out, session.machine())
    return session


def score_settings(
    config: AblationConfig, session: Session, grid: Grid, pool: Sequence[Architecture]
) -> dict[Setting, Mapping[str, Any]]:
    """Scores per setting, in the pool's order; one journal line per setting."""
    journal = Journal(config.out / JOURNAL)
    done: dict[Setting, Mapping[str, Any]] = {Setting(r["samples"], r["length"], r["rank"]): r for r in journal.read()}
    all_settings = dict.fromkeys(s for settings in grid.settings().values() for s in settings)
    if "compensated" in PROXIES.get(config.proxy).needs:
        # Beside all of the calibration, not the part that a setting uses.
        compensation_text(session, required=True, keep=True)
    same_model(config.out, candidate_loss(session, session.space.base))
    with phase("ablation", len(all_settings) * len(pool)) as steps:
        for setting in all_settings:
            if setting in done:
                steps.advance(len(pool))
                continue
            record = _scored(config, session, setting, pool, steps.advance)
            journal.append(record)
            done[setting] = record
    return done


def _scored(
    config: AblationConfig,
    session: Session,
    setting: Setting,
    pool: Sequence[Architecture],
    advance: Any,
) -> dict[str, Any]:
    tokens = session.tokens[: setting.samples, : setting.length].contiguous()
    micro_batch = max(1, session.micro_batch * session.tokens.shape[1] // setting.length)
    shorter = replace(session, tokens=tokens, micro_batch=micro_batch)
    panel = make_panel(shorter, (config.proxy,), setting.rank)
    scores = []
    for arch in pool:
        scores.append(panel.measure(arch)[config.proxy])
        advance()
    return {
        "samples": setting.samples,
        "length": setting.length,
        "rank": setting.rank,
        "ids": [arch.id for arch in pool],
        "scores": [s.value for s in scores],
        "reasons": sorted({s.reason for s in scores if s.reason}),
        "seconds": sum(s.seconds for s in scores) / len(scores),
        "bos": session.start.carried,
    }
