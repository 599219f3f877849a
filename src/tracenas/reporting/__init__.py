"""Reports on a run directory: one self-contained HTML page, terminal tables, live progress."""

from pathlib import Path

from tracenas.reporting.data.run import RunData
from tracenas.rundir import REPORT

__all__ = ["RunData", "write_report"]


def write_report(run_dir: Path | str, out: Path | str | None = None) -> Path:
    """Write the page of a run (RUN/report.html, or `out`) and return its path.

    Everything optional in the run directory may be missing; the page then shows what there is.

    Raises:
        UserError: if the directory holds no run, a file in it is corrupt, or the page cannot be written.
    """
    from tracenas.reporting.pages.page import write_page
    from tracenas.reporting.pages.run import run_page

    return write_page(Path(out or Path(run_dir) / REPORT), run_page(RunData.read(run_dir)))
