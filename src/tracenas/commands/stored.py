"""A run directory as it was left: the command that it is of and the settings that it keeps."""

from collections.abc import Mapping
from contextlib import chdir, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.config import StageConfig, construct
from tracenas.config.local_paths import absolute_path, with_absolute_paths
from tracenas.errors import UserError
from tracenas.pipeline.resume import KIND, given_settings, settings_file
from tracenas.pipeline.run_directory import CALIBRATION
from tracenas.settings import read_settings

__all__ = ["StoredRun", "command_of"]

_SETTINGS = {"starts": "study", "variables": "metric search", "sample_counts": "study ablation", "ratios": "sparsify"}
"""A setting of each command that others have not: older directories do not say what they are of."""
_FILES = {"known.json": "metric search", "study.json": "study", "recover.yaml": "recover", "sparsity.json": "sparsify"}


def command_of(run: Path, settings: Mapping[str, Any]) -> str:
    """The command that a directory is of; `search` where nothing says so."""
    guesses = [kind for key, kind in _SETTINGS.items() if key in settings]
    guesses += [kind for name, kind in _FILES.items() if (run / name).is_file()]
    return str(settings.get(KIND) or next(iter(guesses), "search"))


@dataclass(frozen=True)
class StoredRun:
    """A run directory with what it says of itself.

    Args:
        path: absolute.
        file: that its settings stand in.
        command: as in `COMMANDS`.
        settings: as they stand there.
    """

    path: Path
    file: Path
    command: str
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, directory: Path) -> "StoredRun":
        """Read a directory.

        Raises:
            UserError: if there is none, it holds no run, or its settings cannot be read.
        """
        run = absolute_path(directory)
        if not run.is_dir():
            raise UserError(f"run {directory}: {'is a file' if run.exists() else 'no such directory'}")
        file = settings_file(run)
        settings = {} if file is None else read_settings(file)
        if file is None or (KIND not in settings and "recover" not in file.name and not (run / CALIBRATION).exists()):
            raise UserError(f"run {directory}: holds no run (its settings would stand in config.yaml or recover.yaml)")
        return cls(run, file, command_of(run, settings), settings)

    def build(self, kind: type[StageConfig], **changes: Any) -> Any:
        """The settings as their command takes them, to go on with, with absolute paths.

        Raises:
            UserError: if they are not whole, as those of earlier versions may be.
        """
        values = {key: value for key, value in given_settings(self.settings).items() if key not in kind.without}
        try:
            config = construct(kind, {**values, "resume": True, **changes})
        except UserError as error:
            words = f"{self.file}: {error}".rstrip(".")
            raise UserError(
                f"{words}; if another version wrote it, go on with the run's own command and --resume"
            ) from error
        began = self._working_directory()
        with nullcontext() if began is None else chdir(began):
            return with_absolute_paths(config)

    def _working_directory(self) -> Path | None:
        """Where the run was started, by its own relative name, which earlier versions kept; None if that says nothing.

        What is relative in its settings is relative to it.
        """
        out = Path(str(self.settings.get("out", "")))
        count = len(out.parts)
        if out.is_absolute() or not count or self.path.parts[-count:] != out.parts:
            return None
        return Path(*self.path.parts[:-count])
