"""`tracenas run`: search → prune → compare → recover → eval → bench → report, each stage skipped where it is done."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.commands.prune.result import Pruned
from tracenas.commands.report import report
from tracenas.commands.run.comparison import compare, rivals, verdict
from tracenas.commands.run.recovery import CHECKPOINT, RECOVERED_CHECKPOINT, RIVALS, prune_once, recover_all
from tracenas.commands.run.sections import BENCH, EVALUATION, begin, bench_config, check_run, eval_config, prune_config
from tracenas.commands.search.command import SUMMARY, SearchOutcome, resolved, search
from tracenas.config import ReportConfig, RunConfig, SearchConfig, check_used
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.refit.text import HELD_OUT
from tracenas.pipeline.run_directory import in_use
from tracenas.reporting.data.stages import Stages
from tracenas.reporting.pages.stage_tables import stage_tables
from tracenas.reporting.terminal import Table, print_table
from tracenas.rundir import read_json, write_json

__all__ = ["RunOutcome", "rivals", "run", "verdict"]


@dataclass(frozen=True)
class RunOutcome:
    """Everything a run produced.

    Args:
        comparison: a row per architecture: as scored, and under `checkpoint` and `recovered` what it came to.
        recovered: what was recovered and how; empty without the section `recover`.
    """

    search: SearchOutcome
    pruned: Pruned
    comparison: list[dict[str, Any]]
    report: Path
    recovered: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        out: Path = self.search.path
        found = {
            "search": self.search.to_json(),
            "pruned": self.pruned.to_json(),
            "comparison": self.comparison,
            "report": str(self.report),
        }
        if self.recovered:
            found["recovered"] = self.recovered
        for key, name in (("evaluation", EVALUATION), ("bench", BENCH)):
            if (out / name).is_file():
                found[key] = read_json(out / name)
        return found

    def show(self) -> None:
        """The comparison and where everything is, on stdout."""
        self.search.show()
        print_table(self._comparison())
        print(verdict(self.comparison))
        for title, columns, rows, notes in stage_tables(Stages.read(self.search.path)):
            print_table(Table(title, tuple(columns), rows))
            for note in notes:
                print(note)
        losses = f"reloaded: loss {self.pruned.loss:.6f}, as scored {self.pruned.scored_loss:.6f}"
        print(f"checkpoint  {self.pruned.path} ({losses})")
        if self.pruned.held_out_losses:
            print(f"realisation {self.pruned.written} (held-out loss: {self.pruned.held_out_losses})")
        if self.recovered:
            print(f"recovered   {self.recovered[0]['path']}")
        print(f"report      {self.report}")

    def _comparison(self) -> Table:
        proxy = self.search.summary["proxy"]
        names = ["architecture", "parameters", proxy, "calibration loss", "perplexity as scored"]
        further = [("checkpoint", self._realisation), ("recovered", "recovered")]
        further = [(key, name) for key, name in further if any(key in row for row in self.comparison)]
        rows = [
            (
                row["name"],
                f"{row['params']:,}",
                "–" if row["score"] is None else f"{row['score']:.4f}",
                f"{row['loss']:.4f}",
                _perplexity(row),
                *(_perplexity(row[key]) if key in row else "" for key, _ in further),
            )
            for row in self.comparison
        ]
        return Table("perplexity of the same text", (*names, *(name for _, name in further)), rows)

    @property
    def _realisation(self) -> str:
        made = next((row["checkpoint"]["realisation"] for row in self.comparison if "checkpoint" in row), "")
        return f"compensated ({made})" if made != "plain" else "not compensated"


def _perplexity(figures: dict[str, Any]) -> str:
    return "overflow" if figures["perplexity"] is None else f"{figures['perplexity']:,.2f}"


def run(config: RunConfig) -> RunOutcome:
    """Every stage that the settings ask for, in `config.out`; `--resume` goes on where an interrupted run stopped.

    Raises:
        UserError: for wrong input, that of later stages included, before any work is done.
    """
    config = resolved(config, open_source(config.model))
    check_used(config)
    with in_use(config.out):
        return _stages(config)


def _stages(config: RunConfig) -> RunOutcome:
    check_run(config)
    found = search(SearchConfig(**{key: getattr(config, key) for key in SearchConfig.model_fields}), kind="run")
    if config.compensate == "best" and prune_config(config, found.best, config.out).compensate == "auto":
        print(f"no {HELD_OUT}: nothing to compare refits on, checkpoints are written as scored", file=sys.stderr)
    begin(config, "prune")
    pruned = prune_once(config, found.best, config.out)
    comparison = compare(config, found, pruned)
    _summarise(config, pruned, comparison)
    recovered = recover_all(config, comparison, found.best) if config.recover is not None else []
    comparison = _with_recovery(comparison, recovered)
    _evaluate(config, recovered)
    _bench(config, recovered)
    _summarise(config, pruned, comparison)
    return RunOutcome(found, pruned, comparison, report(ReportConfig(run=config.out)).path, recovered)


def _summarise(config: RunConfig, pruned: Pruned, comparison: list[dict[str, Any]]) -> None:
    """Put the comparison so far into summary.json, so that a report can be drawn while the rest is running."""
    summary = {**read_json(config.out / SUMMARY), "comparison": comparison, "checkpoint": pruned.to_json()}
    write_json(config.out / SUMMARY, summary)


def _with_recovery(comparison: list[dict[str, Any]], recovered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparison's rows with what their checkpoints reached before and after recovery."""
    by_name = {row["name"]: row for row in recovered}
    made = next((row["checkpoint"]["realisation"] for row in comparison if "checkpoint" in row), None)
    rows = []
    for row in comparison:
        if (more := by_name.get(row["name"])) is not None:
            row = {**row, "recovered": more["recovered"]}
            if made is not None and "checkpoint" not in row:
                row["checkpoint"] = {"realisation": made, **more["pruned"]}
        rows.append(row)
    return rows


def _checkpoints(config: RunConfig, recovered: list[dict[str, Any]], *, pruned: bool) -> tuple[str, ...]:
    """The base and the run's checkpoints; the pruned one also where it was recovered, if asked for."""
    paths = [config.model]
    if pruned or not recovered:
        paths.append(str(config.out / CHECKPOINT))
    for row in recovered:
        home = config.out if row["name"] == "found" else config.out / RIVALS / row["name"].replace(" ", "-")
        paths.append(str(home / RECOVERED_CHECKPOINT))
    return tuple(paths)


def _evaluate(config: RunConfig, recovered: list[dict[str, Any]]) -> None:
    if config.eval is None or not begin(config, "eval"):
        return
    from tracenas.commands.evaluate import evaluate

    settings = eval_config(config, _checkpoints(config, recovered, pruned=True))
    evaluate(settings.model_copy(update={"out": config.out / EVALUATION}))


def _bench(config: RunConfig, recovered: list[dict[str, Any]]) -> None:
    """Recovery changes no shape, so a recovered checkpoint is timed in place of the pruned one."""
    if config.bench is None or not begin(config, "bench"):
        return
    from tracenas.commands.bench import bench

    settings = bench_config(config, _checkpoints(config, recovered, pruned=False))
    bench(settings.model_copy(update={"out": config.out / BENCH}))
