"""Minitron (Muralidharan et al., arXiv:2407.14679): width by the size of activations.

§2.2: on a little text, channels of the residual stream are ranked by what the layer norms give, summed over all norms,
and neurons of an MLP by what enters its output projection; both as the mean of absolute values over a sequence and the
Euclidean norm over sequences (the paper's best aggregation). One width of the stream for the whole model, one of all
MLPs, attention's heads whole (§4: width, heads last). Nothing is refitted; the paper trains afterwards. Its depth by
block influence is ShortGPT's.
"""

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rivals.plain_decoders import stream_norms, with_weight
from tracenas.errors import UserError
from tracenas.models.functionals.loss import hidden_states

__all__ = ["Activations", "Widths", "activations", "cut", "widths_within"]


class Activations(NamedTuple):
    """Scores of what may go.

    Args:
        stream: float64 [D].
        neurons: float64 [n] of every block.
    """

    stream: Tensor
    neurons: tuple[Tensor, ...]


class Widths(NamedTuple):
    """Of the residual stream, and of all MLPs."""

    stream: int
    neurons: int


class _Aggregate:
    """√ Σ_b (mean_t |x_bti|)², float64 [features]."""

    def __init__(self) -> None:
        self.squares: Tensor | float = 0.0

    def add(self, value: Tensor) -> None:
        """Add a micro-batch, [B, T, features]."""
        self.squares = self.squares + value.detach().double().abs().mean(1).square().sum(0)

    def score(self) -> Tensor:
        """Of every feature."""
        assert isinstance(self.squares, Tensor)
        return self.squares.sqrt()


def activations(model: Any, tokens: Tensor, micro_batch: int) -> Activations:
    """Scores on tokens [N, L]."""
    norms = stream_norms(model)
    of_norms, of_neurons = [_Aggregate() for _ in norms], [_Aggregate() for _ in model.model.layers]
    with ExitStack() as undo, torch.no_grad():
        for norm, total in zip(norms, of_norms, strict=True):
            undo.callback(norm.register_forward_hook(lambda *seen, total=total: total.add(seen[2])).remove)
        for layer, total in zip(model.model.layers, of_neurons, strict=True):
            hook = layer.mlp.down_proj.register_forward_pre_hook(lambda *seen, total=total: total.add(seen[1][0]))
            undo.callback(hook.remove)
        for ids in tokens.split(micro_batch):
            hidden_states(model, ids)
    stream = torch.stack([total.score() for total in of_norms]).sum(0)
    return Activations(stream, tuple(total.score() for total in of_neurons))


def widths_within(model: Any, budget: int, step: int = 8) -> Widths:
    """The widths, multiples of `step`, whose ratios are nearest to each other, the MLPs as wide as the budget allows.

    Raises:
        UserError: if there are none.
    """
    layers = model.model.layers
    stream, neurons = model.config.hidden_size, layers[0].mlp.down_proj.in_features
    total = sum(p.numel() for p in model.parameters())
    per_neuron = 3 * len(layers)
    each = total / stream - per_neuron * neurons  # parameters of a channel of the stream, but for its part of MLPs
    found = []
    for width in range(step, stream + 1, step):
        wide = min(int((budget / width - each) / per_neuron) // step * step, neurons)
        if wide >= step:
            found.append((abs(width / stream - wide / neurons), Widths(width, wide)))
    if not found:
        raise UserError(f"rival minitron: no widths of stream and MLPs meet {budget:,} parameters")
    return min(found)[1]


def cut(model: Any, scores: Activations, widths: Widths) -> Any:
    """A model of its own with the best channels and neurons, in their order."""
    narrow = copy.deepcopy(model)
    stream = best(scores.stream, widths.stream)
    embeddings = narrow.get_input_embeddings()
    head, tied = narrow.get_output_embeddings(), narrow.get_output_embeddings().weight is embeddings.weight
    embeddings.weight = nn.Parameter(embeddings.weight[:, stream].contiguous(), requires_grad=False)
    embeddings.embedding_dim = len(stream)
    with_weight(head, head.weight[:, stream] if not tied else embeddings.weight)
    if tied:
        head.weight = embeddings.weight
    for norm in stream_norms(narrow):
        norm.weight = nn.Parameter(norm.weight[stream].contiguous(), requires_grad=False)
    for layer, neurons in zip(narrow.model.layers, scores.neurons, strict=True):
        attention, mlp, kept = layer.self_attn, layer.mlp, best(neurons, widths.neurons)
        for reading in (attention.q_proj, attention.k_proj, attention.v_proj):
            with_weight(reading, reading.weight[:, stream])
        for reading in (mlp.gate_proj, mlp.up_proj):
            with_weight(reading, reading.weight[kept][:, stream])
        with_weight(attention.o_proj, attention.o_proj.weight[stream])
        with_weight(mlp.down_proj, mlp.down_proj.weight[stream][:, kept])
    narrow.config.hidden_size, narrow.config.intermediate_size = widths
    return narrow


def best(scores: Tensor | Sequence[float], count: int) -> Tensor:
    """Where the highest scores are, ascending, int64 [count]."""
    return torch.as_tensor(scores).topk(count).indices.sort().values
