"""`tracenas report`: draw a run's report.html."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.commands.stored import command_of
from tracenas.config import ReportConfig
from tracenas.errors import UserError
from tracenas.pipeline.resume import CONFIG
from tracenas.reporting import write_report
from tracenas.reporting.pages.metric import write_metric_report
from tracenas.reporting.pages.study import write_study_report
from tracenas.rundir import REPORT
from tracenas.settings import read_settings

__all__ = ["PAGES", "Reported", "report"]

PAGES: dict[str, Callable[[Path, Path | None], Path]] = {
    "search": write_report,
    "run": write_report,
    "demo": lambda out, page: write_report(out / "run", page or out / REPORT),
    "metric search": write_metric_report,
    "study": write_study_report,
}


@dataclass(frozen=True)
class Reported:
    """Where the report is."""

    path: Path

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"report": str(self.path)}

    def show(self) -> None:
        """Its path on stdout."""
        print(self.path)


def report(config: ReportConfig) -> Reported:
    """Write the report of a run directory: of one that is still running, what there is.

    Raises:
        UserError: if the directory holds no run, or one that has no page.
    """
    kind = command_of(config.run, read_settings(config.run / CONFIG, required=False))
    if kind not in PAGES:
        raise UserError(f"{config.run}: of `tracenas {kind}`, which has no page; accepted: of {', '.join(PAGES)}")
    return Reported(PAGES[kind](config.run, config.out))
