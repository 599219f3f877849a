"""The sections of a run: what is checked of them before any work, and what every stage is told."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracenas.commands.run.steps import BENCH, EVALUATION, FIT, RECOVERED, check_finished, fit
from tracenas.config import BenchConfig, EvalConfig, PruneConfig, RecoverConfig, RunConfig, construct
from tracenas.data.sources import probe
from tracenas.errors import UserError
from tracenas.hub.commits import pinned
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.refit import HELD_OUT
from tracenas.pipeline.resume import CONFIG
from tracenas.settings import read_settings
from tracenas.world import World

__all__ = ["bench_config", "check_run", "eval_config", "prune_config", "recover_config", "recovery_processes"]


def check_run(config: RunConfig, source: ModelSource) -> None:
    """Everything about the stages after the search that can be told before it; nothing is written.

    Raises:
        UserError: for settings that a stage would refuse, for a finished stage with other settings than the run's,
            and for a stage whose result would be of an older checkpoint than is there.
    """
    if World.from_environment().size > 1:
        raise UserError(
            "run is one process, which starts those that train: recover.processes=N, without torchrun in front"
        )
    if config.resume:
        check_finished(config)
    else:
        probe(config.text_field, config.data, config.text)
    if feature := _decoder_only(config):
        source.require_decoder(feature)
    if config.recover is not None and not (config.out / RECOVERED).is_file():
        from tracenas.commands.recover.checks import check_input

        check_input(recover_config(config, config.model, config.out), source, World(size=recovery_processes(config)))
    if config.eval is not None and not (config.out / EVALUATION).is_file():
        _check_evaluation(eval_config(config, (config.model,)), source)
    if config.bench is not None and not (config.out / BENCH).is_file():
        from tracenas.commands.bench.trials import trial_settings

        trial_settings(bench_config(config, (config.model,)), [source])


def _decoder_only(config: RunConfig) -> str:
    """What of the stages only decoder-only models can have; empty if nothing."""
    if config.compensate in ("ridge", "sequential"):
        return f"compensate {config.compensate} (auto, none: all models)"
    if (config.prune or {}).get("reconstruct") == "blocks":
        return "prune.reconstruct blocks"
    return next((name for name in ("recover", "bench") if getattr(config, name) is not None), "")


def _check_evaluation(config: EvalConfig, source: ModelSource) -> None:
    from tracenas.evaluation.suites import requests

    probe(config.text_field, config.text)
    wanted = requests(config.tasks, config.suite, config.shots)
    if config.task_data is not None and not wanted:
        raise UserError("eval.task_data without tasks: name them with eval.tasks or eval.suite")
    if config.seq_len is not None and config.seq_len > source.positions:
        raise UserError(f"eval.seq_len {config.seq_len}: the model has {source.positions} positions")
    if wanted:
        from tracenas.evaluation.harness import Harness

        Harness(wanted, config.task_data)


# --- what every stage is told ---------------------------------------------------------------------


def prune_config(config: RunConfig, arch: Path, out: Path) -> PruneConfig:
    """Settings of pruning one architecture of the run; as scored where the run has no text to compare refits on."""
    section = config.prune or {}
    settings = {"compensate": config.compensate, **fit(config), **section}
    if config.compensate == "best" and not (config.out / HELD_OUT).is_file() and "data" not in section:
        settings = {key: value for key, value in section.items() if key not in FIT} | {"compensate": "auto"}
    machine = {**_machine(config), **_memory(config), "batch": config.batch}
    return PruneConfig(**{"model": config.model, "arch": arch, "out": out, "resume": True, **machine, **settings})


def recover_config(config: RunConfig, model: str | Path, out: Path) -> RecoverConfig:
    """Settings of recovering one pruned checkpoint, resumable."""
    section = {key: value for key, value in (config.recover or {}).items() if key != "processes"}
    shared = {key: getattr(config, key) for key in ("data", "text", "seed", "bos")}
    if "data" not in section:
        shared["text_field"] = config.text_field
    if "report_to" not in section and config.report_to:
        name = f"{config.run_name or config.out.name}/{out.relative_to(config.out).as_posix()}"
        shared |= {"report_to": config.report_to, "run_name": name}
    if section.get("method") == "distill":
        shared["teacher"] = pinned(config.model)
    place = {"model": str(model), "out": out, "resume": True}
    return construct(RecoverConfig, {**_machine(config), **shared, **section, **place})


def recovery_processes(config: RunConfig) -> int:
    """Processes that train."""
    return int((config.recover or {}).get("processes", 1))


def eval_config(
    config: RunConfig,
    models: tuple[str, ...],
    *,
    section: Mapping[str, Any] | None = None,
    out: Path | None = None,
) -> EvalConfig:
    """Settings of evaluating checkpoints as the comparison does, but for what the section `eval` says.

    Args:
        section: in place of the run's own.
        out: file of the results.
    """
    settings = {
        **_machine(config),
        **_memory(config),
        "text": config.text,
        "windows": config.windows,
        "seed": config.seed,
        "text_field": config.text_field,
        "bos": config.bos,
        "batch": config.batch,
        **_as_searched(config),
        **((config.eval or {}) if section is None else section),
    }
    return EvalConfig(**{**settings, "models": models, "out": out})


def bench_config(config: RunConfig, models: tuple[str, ...], out: Path | None = None) -> BenchConfig:
    """Settings of timing checkpoints."""
    section = config.bench or {}
    return BenchConfig(**{**_machine(config), "seed": config.seed, **section, "models": models, "out": out})


def _machine(config: RunConfig) -> dict[str, Any]:
    names = ("device", "dtype", "threads", "trust_remote_code")
    return {name: getattr(config, name) for name in names}


def _memory(config: RunConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("host_memory", "device_memory")}


def _as_searched(config: RunConfig) -> dict[str, Any]:
    """Window length and dtype of the search, once it has begun."""
    if not (config.out / CONFIG).is_file():
        return {}
    stored = read_settings(config.out / CONFIG)
    return {key: stored[key] for key in ("seq_len", "dtype") if stored.get(key) is not None}
