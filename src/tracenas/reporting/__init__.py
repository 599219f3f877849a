"""Reports on a run directory: one self-contained HTML page, terminal tables, live progress."""

from pathlib import Path

from tracenas.reporting.data.run import RunData
from tracenas.rundir import atomic_path

__all__ = ["RunData", "write_report"]


def write_report(run_dir: Path | str, out: Path | str | None = None) -> Path:
    """Write the page of a run (RUN/report.html, or `out`) and return its path.

    Everything optional in the run directory may be missing; the page then shows what there is.

    Raises:
        UserError: if the directory holds no run, a file in it is corrupt, or the page cannot be written.
    """
    from tracenas.reporting.pages.run import render

    run = RunData.read(run_dir)
    path = Path(out) if out is not None else Path(run_dir) / "report.html"
    page = render(run)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path
