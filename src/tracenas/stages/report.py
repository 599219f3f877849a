"""`tracenas report`: draw a run's report.html."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.config import ReportConfig
from tracenas.report import write_report
from tracenas.report.metric_page import is_metric_search, write_metric_report
from tracenas.report.study_page import is_study, write_study_report

__all__ = ["Reported", "report"]


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
    """Write the report of a run directory.

    Raises:
        UserError: if the directory holds no run.
    """
    if is_metric_search(config.run):
        return Reported(write_metric_report(config.run, config.out))
    if is_study(config.run):
        return Reported(write_study_report(config.run, config.out))
    return Reported(write_report(config.run, config.out))
