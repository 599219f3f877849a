"""The recovery of a run: the found architecture, and rivals with exactly the same settings."""

import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from tracenas.commands.prune.command import prune
from tracenas.commands.prune.result import Pruned
from tracenas.commands.recover.command import recover
from tracenas.commands.recover.result import RESULT as RECOVERY
from tracenas.commands.recover.result import Recovered
from tracenas.commands.recover.setup import as_started, resolved
from tracenas.commands.run.sections import (
    CHECKPOINT,
    PRUNED,
    RECOVERED,
    RECOVERED_CHECKPOINT,
    begin,
    eval_config,
    prune_config,
    recover_config,
    recovery_processes,
    rival_directory,
)
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
_REPEATED = ("uniform", "random 1")


def prune_once(config: RunConfig, source: ModelSource, arch: Path, home: Path) -> Pruned:
    """The checkpoint of an architecture in HOME/pruned, recorded in HOME/pruned.json; written if it is not there."""
    record, target, claim = home / PRUNED, home / CHECKPOINT, home / _PRUNING
    if record.is_file() and target.is_dir():
        stored = read_json(record)
        return Pruned(**{**stored, "path": target})
    if claim.is_file() and target.is_dir():  # written whole, but not recorded: it only has to be written again
        shutil.rmtree(target)
    require_free(target, what="checkpoint directory")
    write_json(claim, {"checkpoint": CHECKPOINT})
    result = prune(prune_config(config, arch, target), source)
    write_json(record, result.to_json())
    claim.unlink()
    return result


def recover_all(
    config: RunConfig, source: ModelSource, comparison: list[dict[str, Any]], best: Path
) -> list[dict[str, Any]]:
    """Recover what the run asks for; a row per architecture, with its perplexity before and after."""
    if not begin(config, "recover"):
        stored: list[dict[str, Any]] = read_json(config.out / RECOVERED)
        return stored
    rows = [_recovered(config, "found")]
    for row in comparison if config.recover_rivals else []:
        if row["name"] in _REPEATED:
            arch = _arch_file(config.out, row, best)
            prune_once(config, source, arch, rival_directory(config.out, row["name"]))
            rows.append(_recovered(config, row["name"]))
    write_json(config.out / RECOVERED, to_plain(rows))
    return rows


def _arch_file(out: Path, row: dict[str, Any], best: Path) -> Path:
    """A rival in the form of best.json, beside it: pruned like the found architecture, and checked likewise."""
    path = out / f"{row['name'].replace(' ', '-')}.json"
    record = {"architecture": row["arch"], "score": row["score"], "loss": row["loss"]}
    write_json(path, {**record, "provenance": read_json(best)["provenance"]})
    return path


def _recovered(config: RunConfig, name: str) -> dict[str, Any]:
    from tracenas.commands.evaluate import evaluate

    home = rival_directory(config.out, name)
    pruned, target = home / CHECKPOINT, home / RECOVERED_CHECKPOINT
    settings, processes = recover_config(config, pruned, target), recovery_processes(config)
    if (target / RECOVERY).is_file():
        _check_settings(settings, processes)
    result = _recover(settings, processes, home)
    written = Pruned(**read_json(home / PRUNED)).written
    before, after = evaluate(eval_config(config, (str(pruned), str(target)), section={})).to_json()
    return {
        "name": name,
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
