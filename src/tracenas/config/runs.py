"""Settings of report, resume, runs and watch."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from tracenas.config.shared import StageConfig

__all__ = ["ReportConfig", "ResumeConfig", "RunsConfig", "WatchConfig"]


class ResumeConfig(StageConfig):
    """Go on with a run as its directory says."""

    without = ("seed", "device", "dtype", "trust_remote_code")
    wanted = ("threads",)

    run: Path = Field(description="The run directory to go on with.")
    threads: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="CPU threads of torch, where the run's results do not depend on them: on a GPU.",
    )


class RunsConfig(StageConfig):
    """What runs there are."""

    without = ("seed", "device", "dtype", "threads", "trust_remote_code")
    optional_positional: ClassVar[str] = "directory"
    wanted = ("directory",)

    directory: Path = Field(Path("."), description="Directory whose runs are listed: itself and what is right in it.")


class WatchConfig(StageConfig):
    """A run's page in a browser, current while the run goes on."""

    without = ("seed", "device", "dtype", "threads", "trust_remote_code")
    wanted = ("port", "open")

    run: Path = Field(description="The run: its directory.")
    port: int = Field(8765, ge=0, le=65535, description="Port of 127.0.0.1 that serves the page; 0: any free one.")
    open: bool = Field(False, description="Open the page in a browser.")


class ReportConfig(StageConfig):
    """Draw a run's report again."""

    wanted = ("out",)
    without = ("seed", "device", "dtype", "threads", "trust_remote_code")

    run: Path = Field(description="The run: its directory.")
    out: Path | None = Field(None, description="HTML file to write; default: RUN/report.html.")
