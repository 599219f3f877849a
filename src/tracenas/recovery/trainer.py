"""transformers' Trainer with exact resume from safetensors and JSON, atomic checkpoints and a stop at NaN."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback

from tracenas.errors import UserError
from tracenas.recovery import checkpoints, state
from tracenas.recovery.arguments import training_arguments
from tracenas.recovery.datasets import Example, Examples
from tracenas.recovery.settings import TrainSettings, learning_rate_factor
from tracenas.recovery.validation import held_out_nll
from tracenas.recovery.zeros import Zeros
from tracenas.rundir import sweep

__all__ = ["RecoveryTrainer", "Saver"]

Saver = Callable[[Path, Mapping[str, Tensor] | None, bool], None]
"""(directory, whole state dict of a sharded model, whether to write): writes weights, config, tokenizer."""

_STATE = "trainer_state.json"


class _Switches(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Every checkpoint has its loss in the log and its held-out perplexity; the last step is a checkpoint."""

    def __init__(self, trainer: "RecoveryTrainer") -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.begin()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.zeros is not None:
            self._trainer.zeros.restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        every = self._trainer.settings.eval_every
        control.should_save |= state.global_step >= state.max_steps
        control.should_evaluate = control.should_save or bool(every and state.global_step % every == 0)
        control.should_log |= control.should_save or control.should_evaluate


class RecoveryTrainer(Trainer):  # type: ignore[misc, unused-ignore]
    """Trains on `examples` for a number of steps.

    Args:
        model: a causal language model or a peft model over one.
        settings: how.
        directory: of the checkpoints.
        examples: the training data; entered where a resumed run stopped.
        collate: examples → batch.
        save_model: writes what a checkpoint holds of the model.
        validation: examples that are not trained on; the checkpoint of their lowest loss is the best one.
        windows: held-out token ids [N, L] whose loss is only told; None: there are none.
    """

    def __init__(
        self,
        model: Any,
        settings: TrainSettings,
        directory: Path,
        examples: Examples,
        collate: Callable[[Sequence[Any]], dict[str, Tensor]],
        save_model: Saver,
        validation: Sequence[Example],
        *,
        windows: Tensor | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.settings = settings
        self.directory = directory
        self.examples = examples
        self.save_weights = save_model
        self.validation, self.windows = validation, windows
        self._collate = collate
        self.zeros: Zeros | None = None
        self._since, self._away = time.monotonic(), 0.0
        self._new_tokens: Any = 0
        self._random_state: Path | None = None
        super().__init__(
            model=model,
            args=training_arguments(settings, directory),
            train_dataset=examples,
            data_collator=collate,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(_Switches(self))

    # --- running ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the last step, from the newest whole checkpoint if there is one.

        Raises:
            UserError: if the loss is not finite, or a checkpoint cannot be written.
        """
        if self.is_world_process_zero():
            sweep(self.directory)
        last = checkpoints.last_checkpoint(self.directory)
        if last is not None:
            done = int(last.name.rpartition("-")[2])
            if done >= self.settings.max_steps:
                return
            self.examples.start = done * self.args.train_batch_size * self.args.world_size * self.settings.accumulation
        self.args.eval_on_start = last is None
        try:
            self.train(resume_from_checkpoint=None if last is None else str(last))
        except UserError as error:  # of a loader process, torch puts its traceback before the message
            raise UserError(str(error).strip().splitlines()[-1].rpartition("tracenas.errors.UserError: ")[2]) from error
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"out of GPU memory with --batch {self.settings.micro_batch}: take a smaller one, a shorter "
                "--seq-len, --activation-checkpointing or --fsdp"
            ) from error

    def begin(self) -> None:
        """Before the first step: the model is wrapped and its weights are in place."""
        if self.settings.keep_zeros:
            self.zeros = Zeros(self.model)
        self._since, self._away = time.monotonic(), 0.0

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warmup, stable, decay."""
        if self.lr_scheduler is None:
            factor = learning_rate_factor(self.settings)
            scheduled: Any = optimizer or self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(scheduled, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass, its tokens counted."""
        if self._random_state is not None:
            state.load_random_state(self._random_state, self.args.process_index)
            self._random_state = None
        mask = inputs.get("attention_mask")
        self._new_tokens = self._new_tokens + (inputs["input_ids"].numel() if mask is None else mask.sum())
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        self._mask_gradients()
        return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient's norm, which must be finite, as must the loss: called before every optimizer step."""
        if grad_norm is None:
            self._mask_gradients()
        norm = float(super()._get_grad_norm(model, grad_norm=grad_norm))  # type: ignore[no-untyped-call]
        loss = float(self._tr_loss)
        if not (math.isfinite(norm) and math.isfinite(loss)):
            raise self._diverged(f"the loss is {loss:.4g}, the gradient's norm {norm:.4g}", self.state.global_step + 1)
        return norm

    def _mask_gradients(self) -> None:
        if self.zeros is not None:
            self.zeros.mask_gradients()

    def _diverged(self, what: str, step: int) -> UserError:
        last = checkpoints.last_checkpoint(self.directory)
        intact = f"the last good checkpoint is {last}" if last else "no checkpoint was written yet"
        return UserError(f"training diverged at step {step}: {what}; {intact}; try a lower learning-rate")

    # --- logging and evaluation -------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds tokens, tokens per second and MFU to the record of a step."""
        if "loss" in logs:
            new = self.accelerator.gather(torch.as_tensor(self._new_tokens, device=self.args.device)).sum().item()
            seconds = time.monotonic() - self._since - self._away
            self.state.num_input_tokens_seen += int(new)
            speed = new / max(seconds, 1e-9)
            logs["tokens"] = self.state.num_input_tokens_seen
            logs["tokens_per_second"] = round(speed, 3)
            if self.settings.peak_flops:
                peak = self.settings.peak_flops * self.args.world_size
                logs["mfu"] = round(speed * self.settings.flops_per_token / peak, 5)
            self._since, self._away, self._new_tokens = time.monotonic(), 0.0, 0
        super().log(logs, start_time)
        self.state.log_history.clear()  # log.jsonl has it; checkpoints need not carry it

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        started, size = time.monotonic(), self.settings.micro_batch
        metrics: dict[str, float] = {}
        self.control.should_evaluate = False
        parts = (self.validation[at : at + size] for at in range(0, len(self.validation), size))
        texts: dict[str, Iterable[Mapping[str, Tensor]]] = {"eval_validation": map(self._collate, parts)}
        if self.windows is not None:
            texts["eval"] = ({"input_ids": rows, "labels": rows} for rows in self.windows.split(size))
        for name, batches in texts.items():
            nll = held_out_nll(self.model_wrapped, batches)
            if not math.isfinite(nll):
                raise self._diverged(f"the held-out loss is {nll}", self.state.global_step)
            metrics |= {f"{name}_nll": nll, f"{name}_perplexity": math.exp(min(nll, 700.0))}
        self._away += time.monotonic() - started
        self.log(dict(metrics))
        return metrics

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Only a model that is kept can be the best one."""
        best, nll = self.state.best_metric, metrics["eval_validation_nll"]
        if not self.control.should_save or (best is not None and nll >= best):
            return False
        self.state.best_metric, self.state.best_global_step = nll, self.state.global_step
        return True

    # --- checkpoints ------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Everything into a directory of another name, which becomes `checkpoint-N` when it is whole."""
        started, step = time.monotonic(), self.state.global_step
        path = checkpoints.checkpoint_path(self.directory, step)
        temporary = checkpoints.unfinished_path(self.directory, step)
        gathered = self.accelerator.get_state_dict(self.model) if self.is_fsdp_enabled else None
        optimizer = state.optimizer_state(self.model, self.optimizer, sharded=self.is_fsdp_enabled)
        with checkpoints.writing(path, checkpoints.last_checkpoint(self.directory), temporary):
            temporary.mkdir(parents=True, exist_ok=True)
            self.save_weights(temporary, gathered, self.args.should_save)
            state.save_random_state(temporary, self.args.process_index)
            if self.args.should_save:
                state.save_optimizer(temporary, optimizer, self.lr_scheduler)
                self.state.save_to_json(str(temporary / _STATE))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.publish(temporary, path)
                checkpoints.rotate(self.directory, self.settings.keep_last, self.state.best_global_step)
            self.accelerator.wait_for_everyone()
        self._away += time.monotonic() - started

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        weights: dict[str, Any] = {}
        for file in sorted(Path(resume_from_checkpoint).glob("*model*.safetensors")):
            weights |= state.load_weights(file)
        target: Any = self.model if model is None else model
        if self.is_fsdp_enabled:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

            set_model_state_dict(target, weights, options=StateDictOptions(full_state_dict=True, strict=False))
        elif hasattr(target, "peft_config"):
            from peft import set_peft_model_state_dict

            set_peft_model_state_dict(target, weights)
        else:
            missing, unexpected = target.load_state_dict(weights, strict=False)
            tied = getattr(target, "all_tied_weights_keys", None) or getattr(target, "_tied_weights_keys", None) or ()
            for name in (*unexpected, *sorted(set(missing) - set(tied))):
                raise UserError(f"checkpoint {resume_from_checkpoint}: tensor {name} is missing or of no use")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state.load_optimizer(
                Path(checkpoint), self.model, self.optimizer, self.lr_scheduler, sharded=self.is_fsdp_enabled
            )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Later: the data loader that is set up in between draws a random number."""
        self._random_state = None if checkpoint is None else Path(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """There is none: bf16 needs no gradient scaling."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Not by this way: it would write pickled arguments."""
        raise RuntimeError("checkpoints are written by _save_checkpoint")
