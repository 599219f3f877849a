"""What enters the output projection of every expert, where a layer's experts are one 3-D parameter and no modules.

Shapes: S tokens, K experts per token, E experts, C channels of an expert.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tracenas.families import Block, SubBlock
from tracenas.models.surgery.ordering import weight_holder
from tracenas.models.surgery.stepping import watch

__all__ = ["watch_experts", "watch_inputs"]

See = Callable[[int, Tensor], None]
"""Called with an expert and its inner activations, [tokens that it got, C]."""


def watch_inputs(model: nn.Module, block: Block, sub: SubBlock, see: See) -> RemovableHandle:
    """Call `see` with what enters a sub-block's output projection, [tokens, columns]; expert is 0 if there is none."""
    if sub.stacked:
        return watch_experts(model, block, sub, see)
    return watch(model.get_submodule(f"{block.path}.{sub.output}"), lambda x, _: see(0, x))


def watch_experts(model: nn.Module, block: Block, sub: SubBlock, see: See) -> RemovableHandle:
    """Call `see` for every expert that gets tokens, on every forward pass; returns the hook's handle.

    The activations are computed a second time, from what transformers calls the experts with: hidden states [S, D],
    the chosen experts [S, K] and their weights [S, K] (an expert's output is weighted, its inner activations are not).
    """
    output = sub.output_projection
    into = next(p for p in sub.projections if p.stack and p.path != output.path)
    module, _ = weight_holder(model, block, output)
    names = ("hidden_states", "top_k_index", "top_k_weights")

    def hook(experts: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        hidden, chosen = call["hidden_states"].detach(), call["top_k_index"]
        weight = getattr(experts, into.parameter[1])
        for expert in range(into.stack):
            tokens = (chosen == expert).any(dim=-1).nonzero()[:, 0]
            if len(tokens):
                with torch.no_grad():
                    see(expert, experts._apply_gate(nn.functional.linear(hidden[tokens], weight[expert])))

    return module.register_forward_pre_hook(hook, with_kwargs=True)
