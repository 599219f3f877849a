"""Next-token loss in chunks of tokens: the logits of a whole batch never exist at once.

Shapes: B sequences, T tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tracenas.models.functionals.chunk_sizes import logit_tokens
from tracenas.models.functionals.tiles import TILED, tiled_nll

__all__ = [
    "LogitsWatch",
    "chunk_tokens",
    "decoder_module",
    "entering_head",
    "gradient_scale",
    "halves",
    "hidden_states",
    "next_token_nll",
    "predicted_tokens",
    "predicting",
    "predicting_states",
    "token_nll",
    "tokens_of_stack",
]


def chunk_tokens(head: Tensor) -> int:
    """Tokens whose logits exist at a time, of a head [V, D]."""
    return logit_tokens(head.shape[0], head.device.type)


class LogitsWatch(Protocol):
    """Sees the logits of every chunk of tokens on their way to the loss, so that no second product is made."""

    def logits(self, part: slice, logits: Tensor, scale: float) -> None:
        """`scale` · `logits` are those of the tokens `part`, float32 [C, V]; they are overwritten afterwards."""
        ...

    def normaliser(self, part: slice, lse: Tensor) -> None:
        """log Σ exp of these logits, float32 [C]."""
        ...


class _TokenNLL(torch.autograd.Function):
    """-log softmax(softcap(h Wᵀ))[label] per token; the gradient in h is made in the same pass over the logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        softcap: float | None,
        watch: LogitsWatch | None,
    ) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        nll_T = torch.empty(hidden_TD.shape[0], dtype=torch.float32, device=hidden_TD.device)
        gradient_TD = torch.empty_like(hidden_TD) if needs_gradient else None
        chunk = chunk_tokens(weight_VD)
        for start in range(0, hidden_TD.shape[0], chunk):
            part = slice(start, start + chunk)
            labels_C1 = labels_T[part, None]
            logits_CV = (hidden_TD[part] @ weight_VD.T).float()
            if softcap is not None:
                logits_CV.div_(softcap).tanh_()
            scale = 1.0 if softcap is None else softcap
            slope_CV = None if softcap is None or not needs_gradient else 1 - logits_CV.square()
            if watch is not None:
                watch.logits(part, logits_CV, scale)
            top_C1 = logits_CV.amax(dim=1, keepdim=True)
            target_C1 = (logits_CV.gather(1, labels_C1) - top_C1) * scale
            logits_CV.sub_(top_C1)
            if softcap is not None:  # a pass over all logits that a scale of 1 does not need
                logits_CV.mul_(scale)
            logits_CV.exp_()
            total_C1 = logits_CV.sum(dim=1, keepdim=True)
            nll_T[part] = (total_C1.log() - target_C1)[:, 0]
            if watch is not None:
                watch.normaliser(part, (total_C1.log() + top_C1 * scale)[:, 0])
            if gradient_TD is not None:
                logits_CV.div_(total_C1)
                logits_CV.scatter_add_(1, labels_C1, torch.full_like(total_C1, -1.0))
                if slope_CV is not None:
                    logits_CV.mul_(slope_CV)
                torch.mm(logits_CV.to(weight_VD.dtype), weight_VD, out=gradient_TD[part])
        if gradient_TD is not None:
            ctx.save_for_backward(gradient_TD)
        return nll_T

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient_TD,) = ctx.saved_tensors
        return gradient_TD * grad_outputs[0].to(gradient_TD.dtype)[:, None], None, None, None, None


def token_nll(
    hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None = None, watch: LogitsWatch | None = None
) -> Tensor:
    """Negative log-likelihood of every label, in nats, float32.

    On a CPU, where nothing is differentiated or watched, no row of logits is made (`tiles`).

    Args:
        hidden: final (normed) hidden states, [tokens, D], fp32 or bf16; differentiable.
        weight: the head's matrix, [V, D]; gets no gradient.
        labels: int64 [tokens].
        softcap: c where logits pass c·tanh(x/c) (Gemma 2).
        watch: is shown the logits, chunk by chunk.
    """
    differentiated = hidden.requires_grad and torch.is_grad_enabled()
    if hidden.device.type in TILED and watch is None and not differentiated:
        return tiled_nll(hidden, weight, labels, softcap)
    result: Tensor = _TokenNLL.apply(hidden, weight, labels, softcap, watch)  # type: ignore[no-untyped-call]
    return result


def gradient_scale(model: Any, count: int) -> float:
    """What a mean over `count` tokens is multiplied by before its backward pass, and its gradients divided by after it.

    A power of two near `count` where the weights are float16, below whose smallest a gradient would fall; else 1.
    """
    half = next(iter(model.parameters())).dtype == torch.float16
    return 2.0 ** int(math.log2(count)) if half else 1.0


def halves(length: int) -> tuple[int, int]:
    """How a sequence is split for an encoder–decoder model: `(tokens to read, tokens to predict)`."""
    return length // 2, length - length // 2


def tokens_of_stack(stack: str, length: int) -> int:
    """How many tokens of a sequence of `length` pass through a stack of blocks."""
    return length if not stack else halves(length)[stack == "decoder"]


def predicted_tokens(model: Any, length: int) -> int:
    """How many tokens of a sequence of `length` have a loss."""
    return halves(length)[1] if model.config.is_encoder_decoder else length - 1


def decoder_module(model: Any) -> nn.Module:
    """The module whose `last_hidden_state` enters the head."""
    decoder: nn.Module = model.get_decoder() if model.config.is_encoder_decoder else model.base_model
    return decoder


def entering_head(model: Any, final: Tensor) -> Tensor:
    """The decoder's final hidden states as the head gets them: a T5 with one matrix for both scales them."""
    scaled = model.config.is_encoder_decoder and model.config.scale_decoder_outputs
    return final * model.model_dim**-0.5 if scaled else final


def predicting(model: Any, hidden: Tensor) -> Tensor:
    """Those of the hidden states [B, T, D] that have a label, [B, predicted, D]."""
    return hidden if model.config.is_encoder_decoder else hidden[:, :-1]


def hidden_states(model: Any, input_ids: Tensor) -> Tensor:
    """Final hidden states of the model's decoder as its head gets them, without a cache: [B, T, D].

    Of an encoder–decoder model [B, T - T // 2, D]: its encoder reads the first half of every sequence, its decoder
    the second half, shifted by one behind the start token (prefix language modelling).
    """
    output: Tensor
    if not model.config.is_encoder_decoder:
        output = decoder_module(model)(input_ids=input_ids, use_cache=False).last_hidden_state
        return output
    prefix, labels = input_ids.split(halves(input_ids.shape[1]), dim=1)
    encoded = model.get_encoder()(input_ids=prefix).last_hidden_state
    output = decoder_module(model)(
        input_ids=model.prepare_decoder_input_ids_from_labels(labels), encoder_hidden_states=encoded, use_cache=False
    ).last_hidden_state
    return entering_head(model, output)


def predicting_states(
    model: Any, windows: Tensor, micro_batch: int, *, report: Callable[[int, int], None] = lambda done, total: None
) -> list[Tensor]:
    """What enters the head at every token with a loss, [tokens, D] per micro-batch, without gradients.

    Args:
        windows: int64 [N, T], on any device.
        micro_batch: windows per forward pass.
        report: told after each pass how many windows of how many are done.
    """
    device = next(iter(model.parameters())).device
    states: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(windows), micro_batch):
            part = windows[start : start + micro_batch].to(device)
            states.append(predicting(model, hidden_states(model, part)).flatten(0, 1).contiguous())
            report(start + len(part), len(windows))
    return states


def next_token_nll(model: Any, input_ids: Tensor, watch: LogitsWatch | None = None) -> Tensor:
    """Per-token loss -log p(x_{t+1} | x_{≤t}), [B, T-1], float32 nats; see `predicted_tokens`.

    Of an encoder–decoder model -log p(y_t | x, y_{<t}), [B, T - T // 2]: x and y are the halves of a sequence.
    """
    hidden = predicting(model, hidden_states(model, input_ids))
    first = input_ids.shape[1] - predicted_tokens(model, input_ids.shape[1])
    head = model.get_output_embeddings()
    batch, length, width = hidden.shape
    softcap = getattr(model.config, "final_logit_softcapping", None)
    flat = token_nll(
        hidden.reshape(-1, width),
        head.weight,
        input_ids[:, first:].reshape(-1).to(hidden.device),
        softcap,
        watch,
    )
    return flat.view(batch, length)
