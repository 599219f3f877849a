"""`tracenas study ablation`: a proxy's ranking from fewer or shorter sequences, or a lower rank (TraceNAS Fig. 3)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.commands.study.grid import make_grid
from tracenas.commands.study.pool import draw_pool
from tracenas.commands.study.results import STUDY
from tracenas.config import AblationConfig
from tracenas.config.local_paths import with_absolute_paths
from tracenas.data.sources import probe
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.resume import as_started
from tracenas.pipeline.run_directory import JOURNAL, run_directory, starting
from tracenas.pipeline.target import PruningTarget, resolve_target
from tracenas.proxies import PROXIES
from tracenas.reporting.progress import START, phase
from tracenas.reporting.terminal import Outcome, Table, to_plain
from tracenas.rundir import atomic_path, provenance, read_json, write_json
from tracenas.space.architecture import Architecture
from tracenas.studies.ablation import ablation_tables, compare
from tracenas.studies.tables import StudyTarget

__all__ = ["Ablated", "ablation"]

ABLATION, MARKDOWN = "ablation.json", "ablation.md"
_NOT_RESULTS = ("resume", "out")


@dataclass(frozen=True)
class Ablated(Outcome):
    """Where a finished ablation is and what it found."""

    path: Path
    results: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"ablation": str(self.path), **self.results}

    def tables(self) -> list[Table]:
        """Every one of the ablation."""
        return list(ablation_tables(self.results))

    def show(self) -> None:
        """The tables on stdout."""
        print(self.results["protocol"])
        super().show()
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
    config = with_absolute_paths(config)
    source = open_source(config.model, decoder_only="study")
    if not config.resume:
        probe(config.text_field, config.data)
    if not PROXIES.get(config.proxy).runs:
        raise UserError(f"proxy {config.proxy} runs no candidate on the calibration: nothing to take less of")
    grid = make_grid(config, source)
    target, pool = _pool(config, source)
    with phase(START):
        from tracenas.commands.study.ablation_scores import (  # torch takes seconds to import
            open_ablation,
            score_settings,
        )

    with run_directory(config.out, "study ablation", config.resume) as begun:
        if begun:
            config = as_started(config.out, config, _NOT_RESULTS)
            if (config.out / ABLATION).is_file():
                return _written(config.out, read_json(config.out / ABLATION))
            grid, (target, pool) = make_grid(config, source), _pool(config, source)
        with starting(config.out, "study ablation", config.model_dump(), begun):
            session = open_ablation(config, target, grid)
        records = score_settings(config, session, grid, pool.architectures)
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
        return _written(config.out, results)


def _written(out: Path, results: dict[str, Any]) -> Ablated:
    """The outcome, with its tables in ablation.md."""
    with atomic_path(out / MARKDOWN) as temporary:
        parts = [results["protocol"], *(f"**{t.title}**\n\n{t.markdown()}" for t in ablation_tables(results))]
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return Ablated(out, results)


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
