"""`tracenas recover`: continued pretraining, LoRA instruction tuning or distillation, resumable."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracenas.commands.recover.data import RecoveryData, recovery_data, split_name
from tracenas.commands.recover.progress import progress, tensorboard
from tracenas.commands.recover.setup import (
    SETTINGS,
    SPARSITY,
    as_started,
    check_input,
    check_out,
    keeps_zeros,
    resolved,
    train_settings,
    write_settings,
)
from tracenas.config import RecoverConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.calibration import warn_of_tokenizer
from tracenas.pipeline.run_directory import in_use
from tracenas.recovery.settings import TrainSettings, World, without_leftovers
from tracenas.reporting.terminal import Table, print_table, to_plain
from tracenas.rundir import provenance, read_json, write_json
from tracenas.threads import set_threads

if TYPE_CHECKING:
    from tracenas.models.checkpoints.loading import LoadedModel

__all__ = ["CHECKPOINTS", "LOG", "RESULT", "SETTINGS", "Recovered", "recover"]

LOG, RESULT, CHECKPOINTS = "log.jsonl", "recovery.json", "checkpoints"


@dataclass(frozen=True)
class Recovered:
    """A recovered checkpoint.

    Args:
        path: its directory.
        step: of the weights that were kept: those of lowest loss on what `selected_on` says.
        steps, tokens: trained in all.
        loss: the last of the log, nats per token (distill: of the distillation loss).
        selected_on: the split that chose the step.
        selection_nll, selection_nll_before: on it, nats per token.
        reported_on: the text that nothing was chosen by, None without `eval_text`.
        perplexity, perplexity_before: on it.
        teacher: of distillation.
        bos: whether documents begin with BOS; None: token ids that do not say, or chats of a template.
    """

    path: Path
    method: str
    step: int
    steps: int
    tokens: int
    loss: float
    selected_on: str
    selection_nll: float
    selection_nll_before: float
    reported_on: str | None = None
    perplexity: float | None = None
    perplexity_before: float | None = None
    teacher: str | None = None
    bos: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        plain: dict[str, Any] = to_plain(vars(self))
        return plain

    def show(self) -> None:
        """A summary on stdout."""
        rows = [("checkpoint", str(self.path)), ("steps", f"{self.steps:,}"), ("tokens", f"{self.tokens:,}")]
        rows.append(("training loss at the end", f"{self.loss:.4f}"))
        rows.append((f"step {self.step:,} chosen on", self.selected_on))
        rows.append(("its loss there, before and after", f"{self.selection_nll_before:.4f}, {self.selection_nll:.4f}"))
        if self.perplexity is not None and self.perplexity_before is not None:
            rows.append((f"perplexity of {self.reported_on}, before", f"{self.perplexity_before:.4f}"))
            rows.append((f"perplexity of {self.reported_on}, step {self.step:,}", f"{self.perplexity:.4f}"))
        print_table(Table(f"recovered by {self.method}", ("", "value"), rows))


def recover(config: RecoverConfig) -> Recovered:
    """Train the checkpoint `config.model` and write the result into `config.out`.

    Under torchrun or `accelerate launch` every process calls it.

    Raises:
        UserError: for wrong input, before any work is done; for a loss that is not finite; for a full disk.
    """
    world = World.from_environment()
    source = open_source(config.model, decoder_only="recover")
    check_input(config, source, world)
    with without_leftovers(), in_use(config.out) if world.is_main else nullcontext():
        return _recover(config, source, world)


def _recover(config: RecoverConfig, source: ModelSource, world: World) -> Recovered:
    if config.resume and (config.out / RESULT).is_file():
        stored = read_json(config.out / RESULT)
        try:
            return Recovered(**{**stored, "path": Path(stored["path"])})
        except (TypeError, KeyError) as error:
            raise UserError(f"{config.out / RESULT}: another version's ({error}); choose another output") from error
    known = check_out(config) if world.is_main else (config.out / SETTINGS).is_file()
    config = resolved(config, source, world)
    set_threads(config.threads)
    if known:
        config = as_started(config)
    from tracenas.models.checkpoints.loading import load

    trained_dtype = config.dtype if config.method == "lora" else "fp32"
    loaded = load(source, device="cpu", dtype=trained_dtype, trust_remote_code=config.trust_remote_code)
    data = recovery_data(config, loaded)
    teacher = _load_teacher(config, source)
    if world.is_main:
        config.out.mkdir(parents=True, exist_ok=True)
        if not known:
            write_settings(config)
    settings = train_settings(config, world, loaded, teacher)
    source = loaded.source  # of a GGUF file: the whole configuration, which its header does not have
    _train(config, settings, loaded, data, teacher)
    return _finish(config, source, world, data)


# --- parts ----------------------------------------------------------------------------------------


def _load_teacher(config: RecoverConfig, source: ModelSource) -> "LoadedModel | None":
    if config.method != "distill":
        return None
    from tracenas.models.checkpoints.loading import load

    assert config.teacher is not None
    teacher = open_source(config.teacher, decoder_only="recover (its teacher)")
    own, other = int(source.config["vocab_size"]), int(teacher.config["vocab_size"])
    if own != other:
        raise UserError(f"teacher {config.teacher}: its vocabulary has {other} tokens, the model's {own}")
    if config.top_k >= own:
        raise UserError(f"top-k {config.top_k}: the vocabulary has {own} tokens")
    if (config.seq_len or 0) > teacher.positions:
        raise UserError(f"seq-len {config.seq_len}: the teacher has {teacher.positions} positions")
    return load(teacher, device="cpu", dtype=config.dtype, trust_remote_code=config.trust_remote_code)


def _adapted(config: RecoverConfig, loaded: "LoadedModel") -> Any:
    from tracenas.recovery.lora import add_adapters

    return add_adapters(
        loaded.model,
        rank=config.lora_rank,
        alpha=config.lora_alpha,
        dropout=config.lora_dropout,
        seed=config.seed,
        keep_zeros=keeps_zeros(config, loaded.source),
    )


# --- training -------------------------------------------------------------------------------------


def _train(
    config: RecoverConfig,
    settings: TrainSettings,
    loaded: "LoadedModel",
    data: RecoveryData,
    teacher: "LoadedModel | None",
) -> None:
    from tracenas.recovery.callbacks import RunLog, cut_log
    from tracenas.recovery.checkpoints import steps
    from tracenas.recovery.datasets import collate_padded, collate_windows
    from tracenas.recovery.distill import Distillation, DistillTrainer
    from tracenas.recovery.pretrain import saver, trainable
    from tracenas.recovery.trainer import RecoveryTrainer

    directory, is_lora = config.out / CHECKPOINTS, config.method == "lora"
    model = _adapted(config, loaded) if is_lora else trainable(loaded.model)
    done = max(steps(directory), default=0)
    main = World.from_environment().is_main
    if main:
        cut_log(config.out / LOG, done)
    parts: dict[str, Any] = {"windows": data.windows}
    kind: Callable[..., Any] = RecoveryTrainer
    if teacher is not None:
        told = Distillation(teacher.model, config.temperature, config.top_k, config.ce_weight)
        kind, parts = DistillTrainer, {**parts, "distillation": told}
    with progress(config, done, quiet=not main) as (on_step, on_record), tensorboard(config.out):
        log = RunLog(config.out / LOG, on_step=on_step, on_record=on_record)
        trainer = kind(
            model,
            settings,
            directory,
            data.examples,
            collate_padded(loaded.eos) if is_lora else collate_windows,
            saver(model, loaded.files, config.shard_size),
            data.validation,
            callbacks=[log],
            **parts,
        )
        trainer.run()


# --- the result -----------------------------------------------------------------------------------


def _finish(config: RecoverConfig, source: ModelSource, world: World, data: RecoveryData) -> Recovered:
    """Write the plain checkpoint from the best training checkpoint, and say what came of it."""
    from tracenas.recovery.checkpoints import checkpoint_path, last_checkpoint, remove_all, writing

    directory = config.out / CHECKPOINTS
    last = last_checkpoint(directory)
    assert last is not None
    ended = read_json(last / "trainer_state.json")
    result = _result(config, ended, data)
    step = result.step
    _wait_for_all(world)  # every process has read what the main one removes in the end
    if not world.is_main:
        _wait_for_all(world)
        return result
    with writing(config.out, checkpoint_path(directory, step)):
        _write(config, source, checkpoint_path(directory, step), result)
    write_json(config.out / RESULT, result.to_json())
    if not config.keep_checkpoints:
        remove_all(directory)
    _wait_for_all(world)
    return result


def _wait_for_all(world: World) -> None:
    if world.size > 1:
        from torch import distributed

        distributed.barrier()


def _result(config: RecoverConfig, ended: Mapping[str, Any], data: RecoveryData) -> Recovered:
    from tracenas.rundir import Journal

    step = int(ended["best_global_step"])
    records = Journal(config.out / LOG).read()
    losses = [record["loss"] for record in records if "loss" in record]
    measured = {record["step"]: record for record in records if "validation_nll" in record}
    return Recovered(
        path=config.out,
        method=config.method,
        step=step,
        steps=config.max_steps,
        tokens=int(ended["num_input_tokens_seen"]),
        loss=losses[-1] if losses else math.nan,
        selected_on=data.selected_on,
        selection_nll=measured[step]["validation_nll"],
        selection_nll_before=measured[0]["validation_nll"],
        reported_on=None if config.eval_text is None else split_name(config.eval_text, "held_out"),
        perplexity=measured[step].get("perplexity"),
        perplexity_before=measured[0].get("perplexity"),
        teacher=config.teacher if config.method == "distill" else None,
        bos=data.bos,
    )


def _write(config: RecoverConfig, source: ModelSource, checkpoint: Path, result: Recovered) -> None:
    from tracenas.models.checkpoints.base_files import BaseFiles, base_directory
    from tracenas.models.checkpoints.loading import dtypes_to_save, load
    from tracenas.models.checkpoints.published import published, published_facts
    from tracenas.pipeline.serving import recovered_card
    from tracenas.recovery.card import recovery_section
    from tracenas.recovery.lora import adapter_file, merged
    from tracenas.recovery.pretrain import write_final
    from tracenas.recovery.state import load_weights

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
    for text in filter(None, (config.data, config.validation, config.eval_text)):
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
        BaseFiles(base_directory(source), loaded.files.tokenizer_class),
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
    path = None if source.path is None else source.path / SPARSITY
    return {SPARSITY: path} if path is not None and path.is_file() else {}
