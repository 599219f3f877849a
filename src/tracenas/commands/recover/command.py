"""`tracenas recover`: continued pretraining, LoRA instruction tuning or distillation, resumable."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from tracenas.commands.recover.checks import SETTINGS, check_finished, check_input
from tracenas.commands.recover.result import RESULT, Recovered
from tracenas.config import RecoverConfig
from tracenas.config.local_paths import with_absolute_paths
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.run_directory import in_use
from tracenas.reporting.progress import START, phase
from tracenas.rundir import read_json
from tracenas.world import World, without_leftovers

__all__ = ["SETTINGS", "Recovered", "recover"]


def recover(config: RecoverConfig, *, on_step: Callable[[int, int], None] | None = None) -> Recovered:
    """Train the checkpoint `config.model` and write the result into `config.out`.

    Under torchrun or `accelerate launch` every process calls it.

    Args:
        on_step: told the number of every optimizer step that is done, and how many there will be.

    Raises:
        UserError: for wrong input, before any work is done; for a loss that is not finite; for a full disk.
    """
    config, world = with_absolute_paths(config), World.from_environment()
    source = open_source(config.model, decoder_only="recover")
    check_input(config, source, world)
    with without_leftovers(), in_use(config.out) if world.is_main else nullcontext():
        if config.resume and (config.out / RESULT).is_file():
            check_finished(config)
            return _stored(config.out / RESULT)
        with phase(START):
            from tracenas.commands.recover.running import run  # torch and transformers take seconds to import

        return run(config, source, world, on_step)


def _stored(path: Path) -> Recovered:
    """The result of a run that has ended already."""
    stored = read_json(path)
    try:
        return Recovered(**{**stored, "path": path.parent})
    except (TypeError, KeyError) as error:
        raise UserError(f"{path}: another version's ({error}); choose another output") from error
