"""`tracenas prune`: write the checkpoint of an architecture, exactly as it was scored, and check it."""

from pathlib import Path

from tracenas.commands.prune.result import Pruned
from tracenas.commands.prune.settings import as_refittable, as_searched, decoder_only, reconstruction_work
from tracenas.config import PruneConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.budgets import resolve_budgets
from tracenas.pipeline.method import resolve_method
from tracenas.pipeline.refit import HELD_OUT
from tracenas.pipeline.refit.record import recorded_loss, recorded_realisation
from tracenas.pipeline.run_directory import run_of
from tracenas.pipeline.target import resolve_target
from tracenas.reporting.progress import START, phase
from tracenas.rundir import check_free, read_json
from tracenas.space.architecture import Architecture

__all__ = ["prune"]


def prune(config: PruneConfig, source: ModelSource | None = None) -> Pruned:
    """Cut the model to the architecture and write it, in `config.out`, as a Hugging Face checkpoint.

    With a run's best.json, the run's calibration and unit order are used: what was scored is what is pruned.
    Before the directory appears, the checkpoint is reloaded and its calibration loss compared with the score's.

    Args:
        source: the model, where it is open.

    Raises:
        UserError: for wrong input; RuntimeError if the checkpoint does not reproduce the scored loss.
    """
    if config.compensate in ("auto", "none") and (config.ridge or config.compensate_samples):
        raise UserError("ridge and compensate-samples need --compensate best, ridge or sequential (auto: as scored)")
    if (config.arch is None) == (config.method is None):
        raise UserError(
            "give --arch (an architecture) or --method (a one-shot method with --params or --budget), one of the two"
        )
    if config.arch is None:
        config = resolve_method(config)
    elif others := [name for name in ("params", "budget", "allocation", "gamma") if getattr(config, name)]:
        raise UserError(f"{others[0]} goes with --method; the architecture decides it here")
    source = source or open_source(config.model)
    if feature := decoder_only(config):
        source.require_decoder(feature)
    with reconstruction_work(config):
        return _prune(config, source)


def _prune(config: PruneConfig, source: ModelSource) -> Pruned:
    if config.arch is not None:
        return _prune_architecture(config.arch, as_refittable(config, source), source)
    config = as_refittable(config, source)
    target = resolve_budgets(source, config)
    check_free(config.out, what="checkpoint directory")
    with phase(START):
        from tracenas.commands.prune.stage import prune_by_method

    return prune_by_method(target, config)


def _prune_architecture(path: Path, config: PruneConfig, source: ModelSource) -> Pruned:
    record, data = read_json(path), config.data
    run = run_of(path, record)
    if run is not None:
        if config.compensate == "best" and data is None and not (run / HELD_OUT).is_file():
            raise UserError(
                f"{run} has no {HELD_OUT}, which --compensate best compares refits on: give --data with text, or "
                f"--compensate auto (as it was scored)"
            )
        config, data = as_searched(config, run)
    target = resolve_target(source, config)
    arch = target.space.validate(Architecture.from_json(record, where=str(path)), where=str(path))
    check_free(config.out, what="checkpoint directory")
    scored = recorded_realisation(record if run is not None else None)
    expected = recorded_loss(record, path) if run is not None else None
    with phase(START):
        from tracenas.commands.prune.stage import prune_to

    return prune_to(target, arch, config, data=data, run=run, scored=scored, expected=expected)
