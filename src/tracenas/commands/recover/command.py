"""`tracenas recover`: continued pretraining, LoRA instruction tuning or distillation, resumable."""

from contextlib import nullcontext
from pathlib import Path

from tracenas.commands.recover.data import recovery_data
from tracenas.commands.recover.result import RESULT, Recovered
from tracenas.commands.recover.setup import (
    SETTINGS,
    as_started,
    check_input,
    check_out,
    keep_settings,
    resolved,
    train_settings,
)
from tracenas.config import RecoverConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import LoadedModel, load
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.run_directory import in_use
from tracenas.rundir import read_json
from tracenas.threads import set_threads
from tracenas.world import World, without_leftovers

__all__ = ["SETTINGS", "Recovered", "recover"]


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
    begun = check_out(config) if world.is_main else (config.out / SETTINGS).is_file()
    config = resolved(config, source, world)
    set_threads(config.threads)
    if begun:
        config = as_started(config)
    trained_dtype = config.dtype if config.method == "lora" else "fp32"
    loaded = load(source, device="cpu", dtype=trained_dtype, trust_remote_code=config.trust_remote_code)
    data = recovery_data(config, loaded)
    teacher = _load_teacher(config, source)
    if world.is_main:
        config.out.mkdir(parents=True, exist_ok=True)
        if not begun:
            keep_settings(config)
    settings = train_settings(config, world, loaded, teacher)
    source = loaded.source  # of a GGUF file: the whole configuration, which its header does not have
    from tracenas.commands.recover.training import finish, train  # transformers' Trainer takes seconds to import

    train(config, settings, loaded, data, teacher)
    return finish(config, source, world, data)


def _load_teacher(config: RecoverConfig, source: ModelSource) -> LoadedModel | None:
    if config.method != "distill":
        return None
    assert config.teacher is not None
    teacher = open_source(config.teacher, decoder_only="recover (its teacher)")
    vocabulary, other = int(source.config["vocab_size"]), int(teacher.config["vocab_size"])
    if vocabulary != other:
        raise UserError(f"teacher {config.teacher}: its vocabulary has {other} tokens, the model's {vocabulary}")
    if config.top_k >= vocabulary:
        raise UserError(f"top-k {config.top_k}: the vocabulary has {vocabulary} tokens")
    if (config.seq_len or 0) > teacher.positions:
        raise UserError(f"seq-len {config.seq_len}: the teacher has {teacher.positions} positions")
    return load(teacher, device="cpu", dtype=config.dtype, trust_remote_code=config.trust_remote_code)
