"""SliceGPT (Ashkboos et al., arXiv:2401.15024): the residual stream rotated onto principal components, and sliced.

An RMS norm without weights commutes with a rotation Q of the stream (Theorem 1). So the norms' weights are fused into
the matrices that read the stream, and in front of every sub-block the stream is expressed in the principal components
of what its norm gives there,

    C = Σ_t x_t x_tᵀ,   C = Q Λ Qᵀ,   x_t = h_t / rms(h_t)                                                     (§3.3)

of which the first k stay: matrices that read become W Q, those that write Qᵀ W, and the stream goes from one basis to
the next by Q₁ᵀ Q₂ [k, k], two of which every block gets. Norms go on dividing by the root of the old width. Sub-block
after sub-block, on the stream as it is sliced so far. Tied embeddings are tied no more: they stand in other bases.
"""

import copy
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from rivals.plain_decoders import with_weight
from tracenas.errors import UserError
from tracenas.families import Block
from tracenas.models.surgery.stepping import BlockRunner, Stop

__all__ = ["principal", "sliced", "width_within"]


class UnitNorm(nn.Module):
    """x √D / √(Σ x² + D ε), D the width before slicing."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.width, self.epsilon = norm.weight.shape[0], float(norm.variance_epsilon)

    def forward(self, hidden: Tensor) -> Tensor:
        """In the dtype of the input."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        mean = wide.square().sum(-1, keepdim=True) / self.width
        return (wide * torch.rsqrt(mean + self.epsilon)).to(hidden.dtype)


class SlicedBlock(nn.Module):
    """A block whose stream changes its basis behind attention and behind the MLP.

    Args:
        layer: the original one, norms fused into the matrices that read the stream.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.self_attn, self.mlp, self.norm = layer.self_attn, layer.mlp, UnitNorm(layer.input_layernorm)
        self.attention_type = getattr(layer, "attention_type", "full_attention")
        width = layer.input_layernorm.weight.shape[0]
        like = layer.self_attn.o_proj.weight
        identity = torch.eye(width, dtype=like.dtype, device=like.device)
        self.behind_attention = nn.Parameter(identity, requires_grad=False)
        self.behind_mlp = nn.Parameter(identity.clone(), requires_grad=False)

    def forward(self, hidden_states: Tensor, **call: Any) -> Tensor:
        """The stream behind the block."""
        attended = self.self_attn(hidden_states=self.norm(hidden_states), **call)[0]
        hidden = hidden_states @ self.behind_attention + attended
        moved: Tensor = hidden @ self.behind_mlp + self.mlp(self.norm(hidden))
        return moved


def width_within(model: Any, budget: int, step: int = 8) -> int:
    """The widest slice, a multiple of `step`, that a budget of parameters allows.

    Raises:
        UserError: if there is none.
    """
    layers, stream = model.model.layers, model.config.hidden_size
    inside = sum(p.numel() for layer in layers for p in _matrices(layer))
    others = sum(p.numel() for layer in layers for p in layer.parameters()) - inside - 2 * stream * len(layers)
    ends = model.get_input_embeddings().weight.numel() + model.get_output_embeddings().weight.numel()
    for width in range(stream // step * step, 0, -step):
        if (inside + ends) * width // stream + others + 2 * len(layers) * width**2 <= budget:
            return width
    raise UserError(f"rival slicegpt: no width of the stream meets {budget:,} parameters")


def sliced(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int, width: int) -> Any:
    """A model of its own with `width` principal components of the stream.

    Args:
        blocks: where the model's are.
        tokens: int64 [N, L] that components are found on.
    """
    narrow = copy.deepcopy(model)
    _fuse(narrow)
    runner = BlockRunner(narrow, blocks)
    whole = runner.embed(tokens, micro_batch)
    basis = principal([narrow.model.norm(states) for states in whole], width)
    embeddings = narrow.get_input_embeddings()
    embeddings.weight = nn.Parameter(_turned(embeddings.weight, basis), requires_grad=False)
    embeddings.embedding_dim = width
    stream = [_turned(states, basis) for states in whole]
    with torch.no_grad():
        for index in range(len(blocks)):
            stream, basis = _slice_block(runner, index, stream, basis, width)
    head = narrow.get_output_embeddings()
    with_weight(head, _turned(head.weight, basis))
    narrow.config.hidden_size, narrow.config.tie_word_embeddings = width, False
    return narrow


def principal(states: Sequence[Tensor], width: int) -> Tensor:
    """The first principal components, not centred, of vectors [..., D]: float64 [D, width]."""
    size = states[0].shape[-1]
    total = torch.zeros(size, size, dtype=torch.float64, device=states[0].device)
    for part in states:
        rows = part.flatten(0, -2).to(torch.promote_types(part.dtype, torch.float32))
        total += rows.T @ rows
    return torch.linalg.eigh(total).eigenvectors.flip(1)[:, :width]


def _slice_block(
    runner: BlockRunner, index: int, stream: list[Tensor], basis: Tensor, width: int
) -> tuple[list[Tensor], Tensor]:
    """Slice one block in place; the stream behind it, and its basis there."""
    block = runner.model.model.layers[index]
    attention, mlp = block.self_attn, block.mlp
    for reading in (attention.q_proj, attention.k_proj, attention.v_proj):
        with_weight(reading, _turned(reading.weight, basis))
    added = _attended(runner, index, stream)
    stream, basis, block.behind_attention = _next_basis(block, stream, added, basis, width)
    with_weight(attention.o_proj, _turned(attention.o_proj.weight.T, basis).T)
    for reading in (mlp.gate_proj, mlp.up_proj):
        with_weight(reading, _turned(reading.weight, basis))
    added = [mlp(block.norm(h)) for h in stream]
    stream, basis, block.behind_mlp = _next_basis(block, stream, added, basis, width)
    with_weight(mlp.down_proj, _turned(mlp.down_proj.weight.T, basis).T)
    return stream, basis


def _attended(runner: BlockRunner, index: int, stream: Sequence[Tensor]) -> list[Tensor]:
    """What attention adds to the stream; the rest of the block is not run."""
    found: list[Tensor] = []

    def see(_: nn.Module, given: Any, output: Any) -> None:
        found.append(output[0])
        raise Stop

    hook = runner.model.model.layers[index].self_attn.register_forward_hook(see)
    for hidden in stream:
        with suppress(Stop):
            runner(index, hidden)
    hook.remove()
    return found


def _next_basis(
    block: SlicedBlock, stream: Sequence[Tensor], added: Sequence[Tensor], basis: Tensor, width: int
) -> tuple[list[Tensor], Tensor, nn.Parameter]:
    """The stream once something of full width is added to it, in its own components; these; what leads there."""
    whole = [_turned(h, basis.T) + a for h, a in zip(stream, added, strict=True)]
    following = principal([block.norm(states) for states in whole], width)
    change = (basis.T @ following).to(stream[0].dtype)
    turned = [h @ change + _turned(a, following) for h, a in zip(stream, added, strict=True)]
    return turned, following, nn.Parameter(change, requires_grad=False)


def _turned(tensor: Tensor, basis: Tensor) -> Tensor:
    """Vectors [..., D] in a basis [D, k], in their own dtype."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return (tensor.detach().to(wide) @ basis.to(wide)).to(tensor.dtype)


def _matrices(layer: Any) -> list[nn.Parameter]:
    """Those that read or write the stream."""
    return [m.weight for m in (*_reading(layer)[0], *_reading(layer)[1], layer.self_attn.o_proj, layer.mlp.down_proj)]


def _reading(layer: Any) -> tuple[tuple[nn.Linear, ...], tuple[nn.Linear, ...]]:
    """What reads the stream behind the first norm, and behind the second."""
    attention, mlp = layer.self_attn, layer.mlp
    return (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)


def _fuse(model: Any) -> None:
    """Put the norms' weights into what reads the stream, and blocks that can be sliced in the blocks' place."""
    head = model.get_output_embeddings()
    with_weight(head, head.weight * model.model.norm.weight)
    model.model.norm = UnitNorm(model.model.norm)
    for index, layer in enumerate(model.model.layers):
        norms = (layer.input_layernorm, layer.post_attention_layernorm)
        for norm, readers in zip(norms, _reading(layer), strict=True):
            for linear in readers:
                with_weight(linear, linear.weight * norm.weight)
        model.model.layers[index] = SlicedBlock(layer)
