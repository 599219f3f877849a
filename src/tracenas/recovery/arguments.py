"""The settings of a training run in the words of transformers' Trainer."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from tracenas.recovery.settings import TrainSettings
from tracenas.world import World

__all__ = ["training_arguments"]


def training_arguments(settings: TrainSettings, directory: Path) -> Any:
    """What transformers' Trainer is to do."""
    extra: dict[str, Any] = {}
    if settings.activation_checkpointing and not settings.fsdp:
        names = {field.name for field in fields(TrainingArguments)}
        name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
        extra = {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    if settings.fsdp:
        sharding = {"version": 2, "activation_checkpointing": settings.activation_checkpointing}
        extra |= {"fsdp": True, "fsdp_config": sharding}
    if settings.cpu and World.from_environment().size > 1:
        extra["ddp_backend"] = "gloo"
    if settings.project is not None:
        extra["project"] = settings.project
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        max_grad_norm=settings.clip,
        optim="adamw_torch" if settings.cpu else "adamw_torch_fused",
        seed=settings.seed,
        bf16=settings.bf16,
        use_cpu=settings.cpu,
        logging_strategy="steps",
        logging_steps=settings.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_every,
        eval_strategy="no",
        ignore_data_skip=True,  # the data enter where they stopped by themselves
        dataloader_num_workers=1 if settings.prefetch else 0,
        dataloader_pin_memory=not settings.cpu,
        accelerator_config={"dispatch_batches": False},
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        report_to=list(settings.report_to) or "none",
        run_name=settings.run_name,
        disable_tqdm=True,
        log_level="error",
        **extra,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several devices are several processes: never nn.DataParallel
    return arguments
