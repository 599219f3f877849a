"""Settings of push."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from tracenas.config.shared import StageConfig

__all__ = ["PushConfig"]


class PushConfig(StageConfig):
    """Put a checkpoint on the hub."""

    without = ("seed", "device", "dtype", "threads", "trust_remote_code")
    behind: ClassVar[str] = "repo"
    wanted = ("private", "revision", "dry_run")

    directory: Path = Field(description="The checkpoint: its directory.")
    repo: str = Field(description="Where to: ORGANISATION/NAME on the hub; made if it is not there.")
    private: bool = Field(False, description="Make the repository private; one that is there must be.")
    revision: str | None = Field(None, description="Branch to push to; made if it is not there. Default: main.")
    dry_run: bool = Field(False, description="Check the checkpoint and list what would be pushed, without the hub.")
