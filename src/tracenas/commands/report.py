"""`tracenas report`: draw a run's report.html."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.config import ReportConfig
from tracenas.errors import UserError
from tracenas.pipeline.resume import CONFIG
from tracenas.pipeline.run_directory import KIND
from tracenas.reporting import write_report
from tracenas.reporting.pages.metric import write_metric_report
from tracenas.reporting.pages.study import write_study_report
from tracenas.settings import read_settings

__all__ = ["Reported", "report"]

_PAGES: dict[str, Callable[[Path, Path | None], Path]] = {
    "search": write_report,
    "run": write_report,
    "demo": lambda out, page: write_report(out / "run", page or out / "report.html"),
    "metric search": write_metric_report,
    "study": write_study_report,
}
_SETTINGS = {"starts": "study", "variables": "metric search", "sample_counts": "study ablation", "ratios": "sparsify"}
"""A setting of each command that others have not: older directories do not say what they are of."""
_FILES = {"known.json": "metric search", "study.json": "study", "recover.yaml": "recover", "sparsity.json": "sparsify"}


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
    kind = _kind(config.run, read_settings(config.run / CONFIG, required=False))
    if kind not in _PAGES:
        raise UserError(f"{config.run}: of `tracenas {kind}`, which has no page; accepted: of {', '.join(_PAGES)}")
    return Reported(_PAGES[kind](config.run, config.out))


def _kind(run: Path, settings: Mapping[str, Any]) -> str:
    """The command that a directory is of; `search` where nothing says so."""
    guesses = [kind for key, kind in _SETTINGS.items() if key in settings]
    guesses += [kind for name, kind in _FILES.items() if (run / name).is_file()]
    return str(settings.get(KIND) or next(iter(guesses), "search"))
