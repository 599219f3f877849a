"""`tracenas study ablation`: a proxy's ranking from fewer or shorter sequences, or a lower rank (TraceNAS Fig. 3)."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracenas.commands.study.pool import draw_pool
from tracenas.commands.study.results import STUDY
from tracenas.config import AblationConfig, parse_rank
from tracenas.config.study import names
from tracenas.data.sources import probe
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.models.functionals.perplexity import perplexity
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.refit.text import compensation_text
from tracenas.pipeline.resume import as_started, resolve_settings, same_model
from tracenas.pipeline.run_directory import JOURNAL, ORDERING, run_directory, starting
from tracenas.pipeline.scoring import make_panel
from tracenas.pipeline.session import Session
from tracenas.pipeline.target import PruningTarget, resolve_target
from tracenas.proxies import PROXIES
from tracenas.reporting.progress import stage_progress
from tracenas.reporting.terminal import print_table, to_plain
from tracenas.rundir import atomic_path, provenance, read_json, write_json
from tracenas.space.architecture import Architecture
from tracenas.studies.ablation import Setting, ablation_tables, compare
from tracenas.studies.tables import StudyTarget

__all__ = ["Ablated", "ablation"]

ABLATION, MARKDOWN = "ablation.json", "ablation.md"
_NOT_RESULTS = ("resume", "out")
_SAMPLES = 16


@dataclass(frozen=True)
class Ablated:
    """Where a finished ablation is and what it found."""

    path: Path
    results: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"ablation": str(self.path), **self.results}

    def show(self) -> None:
        """The tables on stdout."""
        print(self.results["protocol"])
        for table in ablation_tables(self.results):
            print_table(table)
        print(f"results {self.path / ABLATION}\ntables  {self.path / MARKDOWN}")


@dataclass(frozen=True)
class _ArchitecturePool:
    """Architectures, and what a study measured of them: target → value per architecture."""

    architectures: list[Architecture]
    targets: list[StudyTarget]
    values: Mapping[str, list[float | None]]


def ablation(config: AblationConfig) -> Ablated:
    """Run or resume an ablation into the directory `config.out`.

    Raises:
        UserError: for wrong input, before any work is done.
    """
    source = open_source(config.model, decoder_only="study")
    if not config.resume:
        probe(config.text_field, config.data)
    PROXIES.check(config.proxy)
    grid = _grid(config, source)
    target, pool = _pool(config, source)
    with run_directory(config.out, "study ablation", config.resume) as begun:
        if begun:
            config = as_started(config.out, config, _NOT_RESULTS)
            grid, (target, pool) = _grid(config, source), _pool(config, source)
        with starting(config.out, "study ablation", config.model_dump(), begun):
            session = _open(config, target, grid)
        records = _score(config, session, grid, pool.architectures)
        protocol = (
            f"{config.proxy} of {len(pool.architectures)} architectures; unless varied: "
            f"{grid.samples} sequences of {grid.length} tokens, rank {config.rank}."
        )
        results = {
            "model": config.model,
            "proxy": config.proxy,
            "architectures": len(pool.architectures),
            "protocol": protocol,
            "categories": compare(
                grid.settings(), records, pool.targets, pool.values, seed=config.seed, resamples=config.resamples
            ),
            "provenance": provenance(model=config.model, seed=config.seed, bos=session.start.carried),
        }
        write_json(config.out / ABLATION, to_plain(results))
        with atomic_path(config.out / MARKDOWN) as temporary:
            parts = [protocol, *(f"**{t.title}**\n\n{t.markdown()}" for t in ablation_tables(results))]
            temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        return Ablated(config.out, results)


# --- what is varied -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """Values of each category, ascending; the last is the reference (0 is full rank)."""

    counts: list[int]
    lengths: list[int]
    ranks: list[int]
    samples: int
    length: int
    rank: int

    def settings(self) -> dict[str, list[Setting]]:
        """Category → its settings, the reference last."""
        return {
            "samples": [Setting(n, self.length, self.rank) for n in self.counts],
            "length": [Setting(self.samples, n, self.rank) for n in self.lengths],
            "rank": [Setting(self.samples, self.length, r) for r in self.ranks],
        }


def _grid(config: AblationConfig, source: ModelSource) -> _Grid:
    length = config.seq_len or min(4096, source.positions)
    if length > source.positions:
        raise UserError(f"seq-len {length}: the model has {source.positions} positions")
    shares = ",".join(str(length // n) for n in (8, 4, 2, 1) if length // n >= 2)
    lengths = _numbers("lengths", shares if config.lengths is None else config.lengths, 2)
    if lengths[-1] > length:
        raise UserError(f"lengths {lengths[-1]}: more than seq-len {length}")
    ranks = sorted({parse_rank(part) for part in names(config.ranks)}, key=lambda r: r or float("inf"))
    if not ranks:
        raise UserError("ranks is empty; expected numbers or full, such as 2,8,64,full")
    counts = _numbers("sample-counts", config.sample_counts, 1)
    traced = "trace" in PROXIES.get(config.proxy).needs
    return _Grid(counts, lengths, ranks if traced else [], config.samples or _SAMPLES, length, config.trace_rank)


def _numbers(name: str, text: str, least: int) -> list[int]:
    parts = names(text)
    if not parts or not all(part.isdigit() and int(part) >= least for part in parts):
        raise UserError(f"{name} '{text}': expected whole numbers from {least} up, separated by commas")
    return sorted(int(part) for part in parts)


def _pool(config: AblationConfig, source: ModelSource) -> tuple[PruningTarget, _ArchitecturePool]:
    """A study's architectures and targets, or new architectures.

    Raises:
        UserError: if the study is not finished, or of another model.
    """
    if config.study is None:
        target, drawn = draw_pool(source, config)
        return target, _ArchitecturePool([d.arch for d in drawn], [], {})
    if not (config.study / STUDY).is_file():
        raise UserError(f"study {config.study}: holds no {STUDY}; expected the directory of a finished study")
    if config.params is not None or config.across_sizes:
        raise UserError("the study says which architectures there are: leave out params and across-sizes")
    study = read_json(config.study / STUDY)
    records = Journal(config.study / JOURNAL).read()
    target = resolve_target(source, config)
    space = target.space
    where = f"study {config.study}"
    architectures = [space.validate(Architecture.from_json(r["arch"], where=where), where=where) for r in records]
    targets = [StudyTarget(t["name"], t["label"], t["loss"]) for t in study["targets"]]
    values = {t.name: [r["targets"][t.name]["value"] for r in records] for t in targets}
    return target, _ArchitecturePool(architectures, targets, values)


def _open(config: AblationConfig, target: PruningTarget, grid: _Grid) -> Session:
    """The session with as much text as any setting reads, its units in the study's order."""
    if config.study is not None and not (config.out / ORDERING).is_file():
        with atomic_path(config.out / ORDERING) as temporary:
            shutil.copyfile(config.study / ORDERING, temporary)
    most = max([grid.samples, *grid.counts])
    loading = config.model_copy(update={"samples": most, "seq_len": grid.length})
    session = open_session(target, loading, data=config.data, run=config.out)
    resolve_settings(config.out, session.machine())
    return session


# --- scores ---------------------------------------------------------------------------------------


def _score(
    config: AblationConfig, session: Session, grid: _Grid, pool: Sequence[Architecture]
) -> dict[Setting, Mapping[str, Any]]:
    """Scores per setting, in the pool's order; one journal line per setting."""
    journal = Journal(config.out / JOURNAL)
    done: dict[Setting, Mapping[str, Any]] = {Setting(r["samples"], r["length"], r["rank"]): r for r in journal.read()}
    all_settings = dict.fromkeys(s for settings in grid.settings().values() for s in settings)
    net = session.supernet()
    if "compensated" in PROXIES.get(config.proxy).needs:
        # Beside all of the calibration, not the part that a setting uses.
        compensation_text(session, required=True, keep=True)
    same_model(config.out, perplexity(net.model, session.tokens, session.micro_batch).nll)
    with stage_progress("ablation", len(all_settings) * len(pool)) as advance:
        for setting in all_settings:
            if setting in done:
                advance(len(pool))
                continue
            record = _scored(config, session, setting, pool, advance)
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
