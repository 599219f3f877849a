"""The training of a recovery and the plain checkpoint that it ends with."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import distributed

from tracenas.commands.recover.checks import keeps_zeros, split_name
from tracenas.commands.recover.data import RecoveryData
from tracenas.commands.recover.progress import shown_records
from tracenas.commands.recover.result import LOG, RESULT, Recovered
from tracenas.config import RecoverConfig
from tracenas.journal import Journal
from tracenas.models.checkpoints.base_files import BaseFiles
from tracenas.models.checkpoints.directory import SPARSITY
from tracenas.models.checkpoints.loading import LoadedModel, dtypes_to_save, load
from tracenas.models.checkpoints.published import published, published_facts
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.calibration import warn_of_tokenizer
from tracenas.pipeline.serving import recovered_card
from tracenas.recovery.callbacks import RunLog, cut_log
from tracenas.recovery.card import recovery_section
from tracenas.recovery.checkpoints import checkpoint_path, last_checkpoint, remove_all, steps, writing
from tracenas.recovery.datasets import collate_padded, collate_windows
from tracenas.recovery.distill import Distillation, DistillTrainer
from tracenas.recovery.lora import adapter_file, add_adapters, merged
from tracenas.recovery.pretrain import saver, write_final
from tracenas.recovery.settings import TrainSettings
from tracenas.recovery.state import load_weights
from tracenas.recovery.trainer import RecoveryTrainer
from tracenas.reporting.progress import phase
from tracenas.reporting.terminal import to_plain
from tracenas.reporting.tracking.destinations import destinations
from tracenas.rundir import provenance, read_json, write_json
from tracenas.world import World

__all__ = ["finish", "train"]

CHECKPOINTS = "checkpoints"


def train(
    config: RecoverConfig,
    settings: TrainSettings,
    loaded: LoadedModel,
    data: RecoveryData,
    teacher: LoadedModel | None,
    on_step: Callable[[int, int], None] | None = None,
) -> None:
    """Train to the last step, from the newest checkpoint if there is one."""
    directory, is_lora = config.out / CHECKPOINTS, config.method == "lora"
    model = _adapted(config, loaded) if is_lora else loaded.model.requires_grad_(True)
    done = max(steps(directory), default=0)
    if World.from_environment().is_main:
        cut_log(config.out / LOG, done)
    options: dict[str, Any] = {"windows": data.windows}
    if teacher is not None:
        options["distillation"] = Distillation(teacher.model, config.temperature, config.top_k, config.ce_weight)
    with phase(f"recover ({config.method})", config.max_steps, done=done) as shown, destinations(config.out):

        def report(done: int, steps: int) -> None:
            shown.report(done, steps)
            if on_step is not None:
                on_step(done, steps)

        log = RunLog(config.out / LOG, report=report, on_record=shown_records(shown))
        trainer = (RecoveryTrainer if teacher is None else DistillTrainer)(
            model,
            settings,
            directory,
            data.examples,
            collate_padded(loaded.eos) if is_lora else collate_windows,
            saver(model, loaded.files, config.shard_size),
            data.validation,
            callbacks=[log],
            **options,
        )
        trainer.run()


def _adapted(config: RecoverConfig, loaded: LoadedModel) -> Any:
    return add_adapters(
        loaded.model,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        seed=config.seed,
        keep_zeros=keeps_zeros(config, loaded.source),
    )


def finish(config: RecoverConfig, source: ModelSource, world: World, data: RecoveryData) -> Recovered:
    """Write the plain checkpoint from the best training checkpoint, and say what came of it."""
    directory = config.out / CHECKPOINTS
    last = last_checkpoint(directory)
    assert last is not None
    result = _recovered(config, read_json(last / "trainer_state.json"), data)
    best = checkpoint_path(directory, result.step)
    _wait_for_all(world)  # every process has read what the main one removes in the end
    if world.is_main:
        with writing(config.out, best), phase("write the checkpoint"):
            _write(config, source, best, result)
        write_json(config.out / RESULT, result.to_json())
        if not config.keep_checkpoints:
            remove_all(directory)
    _wait_for_all(world)
    return result


def _recovered(config: RecoverConfig, state: Mapping[str, Any], data: RecoveryData) -> Recovered:
    """The result of a run that has ended, from its log and the state of its trainer."""
    assert config.max_steps is not None
    step = int(state["best_global_step"])
    records = Journal(config.out / LOG).read()
    losses = [record["loss"] for record in records if "loss" in record]
    measured = {record["step"]: record for record in records if "validation_nll" in record}
    return Recovered(
        path=config.out,
        method=config.method,
        step=step,
        steps=config.max_steps,
        tokens=int(state["num_input_tokens_seen"]),
        loss=losses[-1] if losses else math.nan,
        selected_on=data.selected_on,
        selection_nll=measured[step]["validation_nll"],
        selection_nll_before=measured[0]["validation_nll"],
        reported_on=None if config.text is None else split_name(config.text, "held_out"),
        perplexity=measured[step].get("perplexity"),
        perplexity_before=measured[0].get("perplexity"),
        teacher=config.teacher if config.method == "distill" else None,
        bos=data.bos,
    )


def _wait_for_all(world: World) -> None:
    if world.size > 1:
        distributed.barrier()


def _write(config: RecoverConfig, source: ModelSource, checkpoint: Path, result: Recovered) -> None:
    if config.method == "lora":
        loaded = load(source, device="cpu", dtype="fp32", trust_remote_code=config.trust_remote_code)
        weights = load_weights(adapter_file(checkpoint))
        model = merged(_adapted(config, loaded), weights, keeps_zeros(config, source))
    else:
        loaded = load(str(checkpoint), device="cpu", dtype="fp32", trust_remote_code=config.trust_remote_code)
        model = loaded.model
    numbers = {
        "steps": f"{result.steps:,}",
        "tokens": f"{result.tokens:,}",
        "weights of step": f"{result.step:,}",
        "chosen on": result.selected_on,
        "loss there, before (nats/token)": f"{result.selection_nll_before:.6f}",
        "loss there, after (nats/token)": f"{result.selection_nll:.6f}",
        "training loss at the end (nats/token)": f"{result.loss:.6f}",
    }
    if result.perplexity is not None and result.perplexity_before is not None:
        numbers |= {
            f"perplexity before, {result.reported_on} (chose nothing)": f"{result.perplexity_before:.4f}",
            f"perplexity after, {result.reported_on}": f"{result.perplexity:.4f}",
        }
    for text in filter(None, (config.data, config.validation, config.text)):
        numbers = {key.replace(text, published(text)): v.replace(text, published(text)) for key, v in numbers.items()}
    settings = config.model_dump(exclude={"resume", "out"})
    section = recovery_section(
        source=published(config.model),
        method=config.method,
        data=published(config.data),
        numbers=numbers,
        settings={k: v for k, v in published_facts(to_plain(settings)).items() if v is not None},
        provenance=json.loads(json.dumps(provenance(seed=config.seed, bos=result.bos))),
    )
    warn_of_tokenizer(loaded)
    write_final(
        model,
        BaseFiles(source.path, loaded.files.tokenizer_class),
        config.out,
        dtypes=dtypes_to_save(config.save_dtype, source, model),
        config=source.config,
        family=source.family,
        readme=recovered_card(source, config.out.name, section),
        copied=_carried(source),
        max_shard_size=config.shard_size,
    )


def _carried(source: ModelSource) -> dict[str, Path]:
    """Files of the checkpoint that training leaves as they are."""
    path = source.path / SPARSITY
    return {SPARSITY: path} if path.is_file() else {}
