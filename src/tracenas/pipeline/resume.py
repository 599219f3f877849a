"""The settings of a resumable run: written once, compared when it goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tracenas.config import StageConfig, current_names
from tracenas.config.local_paths import names_same
from tracenas.errors import UserError
from tracenas.hub.commits import COMMITS, commits
from tracenas.reporting.terminal import to_plain
from tracenas.rundir import atomic_path, read_json, write_json
from tracenas.settings import read_settings
from tracenas.strategies.score import is_number

__all__ = [
    "CONFIG",
    "KIND",
    "LEFT_OPEN",
    "RECOVERY_CONFIG",
    "as_started",
    "check_same",
    "given_settings",
    "left_open",
    "on_gpu",
    "recorded_base_loss",
    "recorded_commits",
    "resolve_settings",
    "resolved_settings",
    "same_model",
    "same_settings",
    "settings_file",
    "stored_settings",
    "write_commits",
    "write_settings",
]

CONFIG = "config.yaml"
KIND, LEFT_OPEN = "kind", "left_open"
"""In config.yaml: the command whose directory it is, and settings as they were before `auto` and defaults came to
something."""

_BASE = "base.json"
"""The loss of the base on the calibration: the model must not have changed when a run goes on."""

RECOVERY_CONFIG = "recover.yaml"
"""In its place in a recovery's directory, which is a checkpoint."""
C = TypeVar("C", bound=StageConfig)


def settings_file(run: Path) -> Path | None:
    """The file that holds a run's settings; None in a directory that holds no run."""
    return next((file for name in (CONFIG, RECOVERY_CONFIG) if (file := run / name).is_file()), None)


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write a YAML file of settings, and beside it the commits that names on the hub stand for."""
    write_commits(path.parent)
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(to_plain(dict(settings)), sort_keys=False), encoding="utf-8")


def write_commits(run: Path) -> None:
    """Keep the commits that names on the hub stand for, where there are any."""
    if known := commits():
        write_json(run / COMMITS, known)


def recorded_commits(run: Path) -> dict[str, str]:
    """The commits that names on the hub stand for in a run; none where there is no such run.

    Raises:
        UserError: if the file holds something else.
    """
    path = run / COMMITS
    known = read_json(path) if path.is_file() else {}
    if not isinstance(known, dict) or not all(isinstance(commit, str) for commit in known.values()):
        raise UserError(f"{path}: expected an object of commits by name")
    return known


def stored_settings(path: Path, kind: type[StageConfig]) -> dict[str, Any]:
    """The settings that a run directory keeps, under the names that they have now."""
    return current_names(kind, read_settings(path))


def resolved_settings(run: Path, kind: type[StageConfig]) -> dict[str, Any]:
    """The settings of a run directory with what they came to, and its command."""
    return {key: value for key, value in stored_settings(run / CONFIG, kind).items() if key != LEFT_OPEN}


def resolve_settings(config: StageConfig, out: Path, settings: Mapping[str, Any]) -> None:
    """Put into RUN/config.yaml what the settings that it leaves open came to, and that it left them open."""
    stored = stored_settings(out / CONFIG, type(config))
    values = {k: v for k, v in settings.items() if stored.get(k) in (None, "auto") and v not in (None, "auto")}
    if values:
        given = {**left_open(stored, values), **stored.get(LEFT_OPEN, {})}
        write_settings(out / CONFIG, {**stored, **values, LEFT_OPEN: given})


def left_open(given: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings among `resolved` that were given as `None` or `auto`, and came to something else."""
    unsaid = {key: given.get(key) for key in resolved if given.get(key) in (None, "auto")}
    return {key: value for key, value in unsaid.items() if value != resolved[key]}


def given_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run directory as the command was given them: what they came to here is left out."""
    kept = {key: value for key, value in stored.items() if key not in (KIND, LEFT_OPEN)}
    return {**kept, **(stored.get(LEFT_OPEN) or {})}


def same_settings(out: Path, config: StageConfig, ignore: tuple[str, ...]) -> dict[str, Any]:
    """The run's settings; refuses to go on with others. `None` and `auto` stand for the run's own.

    Raises:
        UserError: naming the setting.
    """
    stored = stored_settings(out / CONFIG, type(config))
    for key, value in to_plain(config.model_dump()).items():
        if key in ignore or value in (None, "auto") or (key == "threads" and on_gpu(stored)):
            continue
        check_same(key.replace("_", "-"), stored.get(key), value)
    return stored


def on_gpu(settings: Mapping[str, Any]) -> bool:
    """Whether a run's sums are a GPU's, so that they do not depend on the number of threads."""
    return str(settings.get("device")).startswith("cuda")


def check_same(name: str, stored: object, value: object, owner: str = "the run", remedy: str = "") -> None:
    """Refuse to go on with another value of a setting.

    Args:
        owner: what has the stored value.
        remedy: behind the message.

    Raises:
        UserError: naming both values.
    """
    if isinstance(value, str) and type(stored) is int:  # a setting that took one number, and now takes several
        stored = str(stored)
    if not names_same(stored, value):
        raise UserError(f"--resume with another {name}: {owner} has {stored!r}, not {value!r}{remedy}")


def as_started(out: Path, config: C, ignore: tuple[str, ...]) -> C:
    """The settings with what `None` and `auto` came to when the run was started.

    Args:
        ignore: what may differ, and stays as it is.

    Raises:
        UserError: if others differ.
    """
    settings = config.model_dump()
    stored = same_settings(out, config, ignore)
    open_ones = [
        key for key, value in settings.items() if value in (None, "auto") and key in stored and key not in ignore
    ]
    return config.model_copy(update={key: stored[key] for key in open_ones})


def same_model(out: Path, base_loss: float) -> None:
    """Record the base's loss, or compare it with the recorded one: the model must not have changed.

    Raises:
        UserError: if it has.
    """
    if (recorded := recorded_base_loss(out)) is not None:
        if abs(recorded - base_loss) > 1e-4 * max(1.0, abs(recorded)):
            raise UserError(
                f"--resume with another model: its calibration loss is {base_loss:.6f}, the run's is {recorded:.6f}"
            )
    else:
        write_json(out / _BASE, {"loss": base_loss})


def recorded_base_loss(run: Path) -> float | None:
    """The base's loss on a run's calibration, nats per token; None where it is not recorded yet.

    Raises:
        UserError: if the file holds something else.
    """
    path = run / _BASE
    if not path.is_file():
        return None
    stored = read_json(path)
    recorded = stored.get("loss") if isinstance(stored, dict) else None
    if not is_number(recorded):
        raise UserError(f"{path}: holds no loss; remove it if the model is the one that the run began with")
    return float(recorded)
