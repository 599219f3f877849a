"""The checkpoints of a run: pruned once, and recovered, all with exactly the same settings."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tracenas.commands.prune.command import prune
from tracenas.commands.prune.result import Pruned
from tracenas.commands.recover.command import recover
from tracenas.commands.recover.result import RESULT as RECOVERY
from tracenas.commands.recover.result import Recovered
from tracenas.commands.recover.setup import as_started, resolved
from tracenas.commands.run.sections import eval_config, prune_config, recover_config, recovery_processes
from tracenas.commands.run.steps import RECOVERED, begin
from tracenas.commands.run.written import CHECKPOINT, PRUNED, Written
from tracenas.config import RecoverConfig, RunConfig
from tracenas.errors import UserError
from tracenas.messages import inherited
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.resume import write_settings
from tracenas.reporting.terminal import to_plain
from tracenas.rundir import read_json, require_free, write_json
from tracenas.world import World

__all__ = ["prune_once", "recover_all"]

_PRUNING = "pruning.json"
"""There while this run writes the checkpoint: one that is there without it is somebody else's."""
_PATIENCE = 30
"""Seconds that processes have to end after an interrupt."""


def prune_once(config: RunConfig, source: ModelSource, one: Written) -> Pruned:
    """The checkpoint of an architecture in HOME/pruned, recorded in HOME/pruned.json; written if it is not there."""
    record, target, claim = one.home / PRUNED, one.pruned, one.home / _PRUNING
    if record.is_file() and target.is_dir():
        stored = read_json(record)
        return Pruned(**{**stored, "path": target})
    if claim.is_file() and target.is_dir():  # written whole, but not recorded: it only has to be written again
        shutil.rmtree(target)
    require_free(target, what="checkpoint directory")
    write_json(claim, {"checkpoint": CHECKPOINT})
    result = prune(prune_config(config, one.arch, target), source)
    write_json(record, result.to_json())
    claim.unlink()
    return result


def recover_all(config: RunConfig, source: ModelSource, written: Sequence[Written]) -> list[dict[str, Any]]:
    """Recover every architecture; a row of each with its perplexity before and after. Rows that are there stay."""
    path = config.out / RECOVERED
    stored: list[dict[str, Any]] = [] if begin(config, "recover") else read_json(path)
    known = {row["name"]: row for row in stored}
    rows = [
        {**known[one.name], "path": str(one.recovered)} if one.name in known else _recovered(config, source, one)
        for one in written
    ]
    if rows != stored:
        write_json(path, to_plain(rows))
    return rows


def _recovered(config: RunConfig, source: ModelSource, one: Written) -> dict[str, Any]:
    from tracenas.commands.evaluate import evaluate

    prune_once(config, source, one)
    settings, processes = recover_config(config, one.pruned, one.recovered), recovery_processes(config)
    if (one.recovered / RECOVERY).is_file():
        _check_settings(settings, processes)
    result = _recover(settings, processes, one.home)
    written = Pruned(**read_json(one.home / PRUNED)).written
    models = str(one.pruned), str(one.recovered)
    before, after = evaluate(eval_config(config, models, section={})).to_json()
    return {
        "name": one.name,
        "params": after["params"],
        "pruned": {"perplexity": before["perplexity"], "nll": before["nll"], "written": written},
        "recovered": {"perplexity": after["perplexity"], "nll": after["nll"]},
        "text": config.text,
        **{key: value for key, value in result.to_json().items() if not key.startswith("perplexity")},
    }


def _check_settings(config: RecoverConfig, processes: int) -> None:
    """Refuse a finished recovery that was made with other settings."""
    try:
        as_started(resolved(config, open_source(config.model), World(size=processes)))
    except UserError as error:
        raise UserError(f"{error}; remove {config.out} to recover again") from error


def _recover(config: RecoverConfig, processes: int, home: Path) -> Recovered:
    """Recover in this process, or in several that torchrun starts.

    Raises:
        UserError: if one of the processes failed; what it said stands above.
    """
    if processes == 1 or (config.out / RECOVERY).is_file():
        return recover(config)
    settings = home / f"{config.out.name}.yaml"
    explicit = {key: value for key, value in config.model_dump().items() if value is not None}
    write_settings(settings, explicit)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "tracenas.cli", "recover", "--config", str(settings)]
    launcher = subprocess.Popen(command, stdout=2, env=inherited())
    try:
        status = launcher.wait()
    except BaseException:
        launcher.terminate()  # it ends its processes, which would outlive a kill
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(_PATIENCE)
        launcher.kill()
        raise
    if status != 0:
        raise UserError(
            f"the recovery in {processes} processes ended with status {status} (its message stands above); nothing "
            f"before it is lost: go on with --resume"
        )
    return recover(config)
