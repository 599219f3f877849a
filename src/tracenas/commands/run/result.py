"""What `tracenas run` answers: the results of all of its stages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.commands.prune.result import Pruned
from tracenas.commands.run.steps import BENCH, EVALUATION
from tracenas.commands.search.result import SearchOutcome
from tracenas.reporting.data.run import RunData
from tracenas.reporting.data.stages import Stages
from tracenas.reporting.stage_tables import stage_tables
from tracenas.reporting.terminal import Outcome, Table, print_table
from tracenas.reporting.verdict import run_verdict
from tracenas.rundir import read_json

__all__ = ["FrontOutcome", "RunOutcome"]


@dataclass(frozen=True)
class RunOutcome(Outcome):
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
        result = {
            "search": self.search.to_json(),
            "pruned": self.pruned.to_json(),
            "comparison": self.comparison,
            "report": str(self.report),
        }
        return {**result, **_of_later_stages(self.search.path, self.recovered)}

    def records(self) -> list[dict[str, Any]]:
        """The comparison."""
        return self.comparison

    def tables(self) -> list[Table]:
        """The search, the comparison and what the further stages measured."""
        return [*self.search.tables(), self._comparison(), *stage_tables(Stages.read(self.search.path))]

    def show(self) -> None:
        """The comparison and where everything is, on stdout."""
        self.search.show()
        print_table(self._comparison())
        verdict = run_verdict(RunData.read(self.search.path))
        print("\n".join([verdict.sentence, *verdict.remarks]))
        for table in stage_tables(Stages.read(self.search.path)):
            print_table(table)
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
                "–" if row["loss"] is None else f"{row['loss']:.4f}",
                _perplexity(row),
                *(_perplexity(row[key]) if key in row else "" for key, _ in further),
            )
            for row in self.comparison
        ]
        return Table("perplexity of the same text", (*names, *(name for _, name in further)), rows)

    @property
    def _realisation(self) -> str:
        realisation = next((row["checkpoint"]["realisation"] for row in self.comparison if "checkpoint" in row), "")
        return f"compensated ({realisation})" if realisation != "plain" else "not compensated"


@dataclass(frozen=True)
class FrontOutcome(Outcome):
    """A front and its checkpoints.

    Args:
        checkpoints: a row for the base and one per size: costs, losses, perplexity, where it is, and what the stages
            after it came to.
        recovered: what was recovered and how; empty without the section `recover`.
    """

    search: SearchOutcome
    checkpoints: list[dict[str, Any]]
    report: Path
    recovered: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        result = {"search": self.search.to_json(), "checkpoints": self.checkpoints, "report": str(self.report)}
        return {**result, **_of_later_stages(self.search.path, self.recovered)}

    def records(self) -> list[dict[str, Any]]:
        """The checkpoints."""
        return self.checkpoints

    def tables(self) -> list[Table]:
        """The search, the checkpoints and what the further stages measured."""
        return [*self.search.tables(), *stage_tables(Stages.read(self.search.path))]

    def show(self) -> None:
        """The tables and where the report is, on stdout."""
        super().show()
        print(f"report      {self.report}")


def _of_later_stages(run: Path, recovered: list[dict[str, Any]]) -> dict[str, Any]:
    """What came after the checkpoints, as far as the run has it."""
    found: dict[str, Any] = {"recovered": recovered} if recovered else {}
    files = {"evaluation": run / EVALUATION, "bench": run / BENCH}
    return found | {name: read_json(file) for name, file in files.items() if file.is_file()}


def _perplexity(figures: dict[str, Any]) -> str:
    return "overflow" if figures["perplexity"] is None else f"{figures['perplexity']:,.2f}"
