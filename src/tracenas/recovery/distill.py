"""Logit distillation: forward KL(teacher ‖ student) per token, in chunks of tokens.

Shapes: B sequences, T tokens, V vocabulary, C tokens of a chunk, K kept logits of the teacher.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tracenas.models.functionals.loss import hidden_states
from tracenas.recovery.trainer import RecoveryTrainer

__all__ = ["DistillTrainer", "Distillation", "Targets", "kl_sum", "teacher_targets"]

_CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 26}


@dataclass(frozen=True)
class Distillation:
    """What is learned from whom.

    Args:
        teacher: a causal language model of the same vocabulary, frozen.
        temperature: τ; both distributions are softened by it, the loss is scaled by τ² (Hinton et al. 2015).
        top_k: logits of the teacher that are kept, 0 for all; the rest of its probability is one more class.
        ce_weight: α in α · cross-entropy + (1 - α) · KL.
    """

    teacher: Any
    temperature: float = 1.0
    top_k: int = 0
    ce_weight: float = 0.0


@dataclass(frozen=True)
class Targets:
    """The teacher's log-probabilities at temperature τ: [tokens, V], or [tokens, K] with the tokens they are of."""

    log_probabilities: Tensor
    indices: Tensor | None = None


def teacher_targets(model: Any, inputs: dict[str, Tensor], temperature: float, top_k: int) -> Targets:
    """The teacher's distribution at every position but the last, [B (T-1), …], chunk by chunk.

    With `top_k` the teacher's logits of a whole batch never exist.
    """
    with torch.no_grad():
        decoder = {key: value for key, value in inputs.items() if key != "labels"}
        if set(decoder) == {"input_ids"}:
            hidden = hidden_states(model, decoder["input_ids"])
        else:
            hidden = model.base_model(**decoder, use_cache=False).last_hidden_state
        flat = hidden[:, :-1].flatten(0, 1)
        head, cap = model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None)
        values, places = [], []
        for part in flat.split(_chunk(flat.device, head.weight.shape[0])):
            logits = head(part).float()
            if cap is not None:
                logits = cap * torch.tanh(logits / cap)
            logits = F.log_softmax(logits / temperature, dim=-1)
            if top_k:
                top = logits.topk(top_k, dim=-1)
                values.append(top.values)
                places.append(top.indices)
            else:
                values.append(logits.to(flat.dtype))
        return Targets(torch.cat(values), torch.cat(places) if places else None)


def kl_sum(logits: Tensor, targets: Targets, temperature: float) -> Tensor:
    """Σ_t τ² KL(p_t ‖ q_t), nats; with top-k targets over K + 1 classes, the last one all other tokens.

    Args:
        logits: the student's, [tokens, V]; differentiable.
        targets: the teacher's at the same positions.
    """
    size = _chunk(logits.device, logits.shape[1])
    places: tuple[Tensor | None, ...] = (
        targets.indices.split(size) if targets.indices is not None else (None,) * len(logits.split(size))
    )
    total = logits.new_zeros((), dtype=torch.float32)
    for student, teacher, place in zip(logits.split(size), targets.log_probabilities.split(size), places, strict=True):
        # Recomputed in the backward pass: no float32 copy of the logits outlives its chunk.
        total = total + checkpoint(_chunk_kl, student, teacher, place, temperature, use_reentrant=False)
    return total * temperature**2


def _chunk_kl(student: Tensor, teacher: Tensor, place: Tensor | None, temperature: float) -> Tensor:
    log_q, log_p = F.log_softmax(student.float() / temperature, dim=-1), teacher.float()
    if place is None:
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    log_q = log_q.gather(1, place)
    listed = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    rest_p, rest_q = _rest(log_p), _rest(log_q)
    return listed + (rest_p * (rest_p.log() - rest_q.log())).sum()


def _rest(log_probabilities: Tensor) -> Tensor:
    """1 - Σ p, kept above what rounding could make of it."""
    return (1 - log_probabilities.exp().sum(dim=-1)).clamp_min(1e-7)


def _chunk(device: torch.device, vocabulary: int) -> int:
    return max(1, _CHUNK_ELEMENTS.get(device.type, 1 << 22) // vocabulary)


class DistillTrainer(RecoveryTrainer):
    """The trainer with the distillation loss."""

    def __init__(self, *args: Any, distillation: Distillation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.distillation = distillation
        distillation.teacher.to(self.args.device)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """((1 - α) Σ KL + α Σ CE) / predicted tokens of the global batch."""
        distillation = self.distillation
        plain = {key: value for key, value in inputs.items() if key != "labels"}
        outputs = model(**plain, use_cache=False)
        logits = outputs.logits[:, :-1].flatten(0, 1)
        labels = inputs["labels"][:, 1:].flatten()
        targets = teacher_targets(distillation.teacher, plain, distillation.temperature, distillation.top_k)
        labelled = labels != -100
        if not bool(labelled.all()):
            logits, labels = logits[labelled], labels[labelled]
            indices = None if targets.indices is None else targets.indices[labelled]
            targets = Targets(targets.log_probabilities[labelled], indices)
        loss = (1 - distillation.ce_weight) * kl_sum(logits, targets, distillation.temperature)
        if distillation.ce_weight:
            loss = loss + distillation.ce_weight * F.cross_entropy(logits.float(), labels, reduction="sum")
        if num_items_in_batch is None:
            loss = loss / len(labels)
        else:
            scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            loss = loss * scale / num_items_in_batch
        return (loss, outputs) if return_outputs else loss
