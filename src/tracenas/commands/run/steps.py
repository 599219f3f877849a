"""The stages of a run: their names, the files that say that they are done, and with which settings they were."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.commands.recover.result import RESULT as RECOVERY
from tracenas.commands.run.written import CHECKPOINTS, PRUNED, RECOVERED_CHECKPOINT, size_directory
from tracenas.config import RunConfig, current_names
from tracenas.errors import UserError
from tracenas.pipeline.resume import check_same
from tracenas.reporting.terminal import to_plain
from tracenas.rundir import read_json, write_json

__all__ = [
    "BENCH",
    "COMPARISON",
    "EVALUATION",
    "FIT",
    "RECOVERED",
    "Step",
    "begin",
    "check_finished",
    "fit",
    "stage_steps",
]

COMPARISON, RECOVERED = "comparison.json", "recovered.json"
EVALUATION, BENCH = "evaluation.json", "bench.json"
STEPS = "stages.json"
FIT = ("compensate_samples", "ridge")
"""Settings that a refit is fitted with, where it is not as scored."""
_MEASURED = ("text", "windows")
"""Settings of the perplexities of a front's checkpoints."""


@dataclass(frozen=True)
class Step:
    """One stage of a run.

    Args:
        name: as its section is called.
        result: the file in the run directory that is there when it is done.
        settings: what its result depends on, beside the search.
        parts: files that are there when a part of it is done; empty where it is done as a whole.
    """

    name: str
    result: str
    settings: Mapping[str, Any]
    parts: tuple[str, ...] = ()


def stage_steps(config: RunConfig) -> tuple[Step, ...]:
    """The stages after the search that the settings ask for, in their order."""
    pruning = {"compensate": config.compensate, **fit(config), **(config.prune or {})}
    measured = {name: getattr(config, name) for name in _MEASURED}
    models: dict[str, Any] = {"recovered": config.recover is not None}
    homes = [size_directory(config, size) for size in config.sizes_of_checkpoints]
    if config.front:
        models["checkpoints"] = ",".join(config.sizes_of_checkpoints)
        trained: dict[str, Any] = {"text": config.text}
        steps = [Step("checkpoints", CHECKPOINTS, {**measured, **pruning}, _inside(config, homes, PRUNED))]
    else:
        models["rivals"] = config.recover_rivals
        trained = {"recover_rivals": config.recover_rivals, "text": config.text}
        compared = {**measured, "random_architectures": config.random_architectures, **pruning}
        steps = [Step("prune", PRUNED, pruning), Step("comparison", COMPARISON, compared)]
    if config.recover is not None:
        parts = _inside(config, homes, f"{RECOVERED_CHECKPOINT}/{RECOVERY}")
        steps.append(Step("recover", RECOVERED, {**trained, **config.recover}, parts))
    if config.eval is not None:
        steps.append(Step("eval", EVALUATION, {**models, "text": config.text, **config.eval}))
    if config.bench is not None:
        steps.append(Step("bench", BENCH, {**models, **config.bench}))
    return tuple(Step(s.name, s.result, to_plain(dict(s.settings)), s.parts) for s in steps)


def fit(config: RunConfig) -> dict[str, Any]:
    """What compensation is fitted with, where it is not as scored."""
    if config.compensate in ("auto", "none"):
        return {}
    return {key: getattr(config, key) for key in FIT}


def _inside(config: RunConfig, homes: list[Path], file: str) -> tuple[str, ...]:
    return tuple((home / file).relative_to(config.out).as_posix() for home in homes)


def begin(config: RunConfig, name: str) -> bool:
    """Whether the stage called `name`, one of those asked for, is still to be run: its settings are recorded then."""
    step = next(step for step in stage_steps(config) if step.name == name)
    if (config.out / step.result).is_file():
        return False
    path = config.out / STEPS
    recorded = read_json(path) if path.is_file() else {}
    write_json(path, {**recorded, step.name: dict(step.settings)})
    return True


def check_finished(config: RunConfig) -> None:
    """Refuse stages that other settings than the run's were for, or that would be older than what they need.

    Raises:
        UserError: naming what to remove.
    """
    out, missing = config.out, ""
    path = out / STEPS
    recorded = read_json(path) if path.is_file() else {}
    for step in stage_steps(config):
        result, settings = out / step.result, recorded.get(step.name)
        if not result.is_file():
            missing = missing or step.name
            if settings is not None and any((out / part).is_file() for part in step.parts):
                _check_settings(config, step, settings, "finished part")
            continue
        if missing:
            told = f"{result} is there, but the stage {missing} before it has to be run: {_again(config, step)}"
            raise UserError(told)
        if settings is None:
            raise UserError(f"{result} is not recorded in {path.name} as this run's: {_again(config, step)}")
        _check_settings(config, step, settings, "finished stage")


def _again(config: RunConfig, step: Step, setting: str = "") -> str:
    """What has to be removed for a stage to be run again, with another value of a setting."""
    paths = [config.out / step.result]
    if not _measures(step, setting):
        paths += [(config.out / part).parent for part in step.parts]
    if step.name == "recover" and not step.parts:
        paths.append(config.out / RECOVERED_CHECKPOINT)
    return f"remove {' and '.join(str(path) for path in paths if path.exists())} to run that stage again"


def _measures(step: Step, setting: str) -> bool:
    """Whether a setting is of a front's perplexities alone, not of its checkpoints."""
    return step.name == "checkpoints" and setting in _MEASURED


def _check_settings(config: RunConfig, step: Step, recorded: Mapping[str, Any], what: str) -> None:
    kind = RunConfig.sections.get(step.name, RunConfig)
    theirs = current_names(kind, recorded)
    for key in dict.fromkeys([*step.settings, *theirs]):
        if what == "finished part" and _measures(step, key):
            continue
        name = f"{step.name}.{key}" if step.name not in ("comparison", "checkpoints") else key
        again = f"; {_again(config, step, key)}"
        check_same(name, theirs.get(key), step.settings.get(key), f"the {what}", again)
