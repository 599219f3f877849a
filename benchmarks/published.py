"""The published procedure, as a baseline: masked weights with restore, and LoRA adapters in the model.

TraceNAS §3.3 and §3.4 as written: W' = W ⊙ mask in place, adapters on all projections (A and B trainable, as peft
attaches them), their gradients from autograd through transformers' own loss, correlation over the gradients of B,
weights restored.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracenas.families import Block, Projection
from tracenas.families.description import IntArray
from tracenas.models.surgery.ordering import Ordering
from tracenas.space.architecture import Architecture

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def masks(projection: Projection, units: int, kept: IntArray) -> tuple[Tensor, Tensor]:
    """Row mask [rows] and column mask [columns], 1.0 where kept."""
    owners = (projection.unit_ids(axis, units) for axis in (0, 1))
    rows, columns = (torch.from_numpy((owner < 0) | np.isin(owner, kept)).float() for owner in owners)
    return rows, columns


class PublishedScorer:
    """Φ by masking and adapters.

    Args:
        model: a transformers model; gets LoRA adapters of `rank` with B = 0.
        micro_batch: sequences per pass.
    """

    def __init__(
        self,
        model: Any,
        blocks: tuple[Block, ...],
        ordering: Ordering,
        tokens: Tensor,
        rank: int,
        micro_batch: int = 1,
    ) -> None:
        from peft import LoraConfig, get_peft_model

        self.blocks, self.ordering, self.tokens, self.micro_batch = blocks, ordering, tokens, micro_batch
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, lora_dropout=0.0)
        self.model = get_peft_model(model, config)
        self.base = self._gradients(None)

    def score(self, arch: Architecture) -> float:
        """Φ of one candidate."""
        kept = self.ordering.kept(self.blocks, arch)
        gradients = self._gradients(kept)
        phi = 0.0
        for (i, name), g in gradients.items():
            b = self.base[i, name]
            rho = float(np.corrcoef(g.numpy(), b.numpy())[0, 1])
            ids = kept[i, name]
            assert ids is not None
            units = next(s.spec.units for s in self.blocks[i].sub_blocks if s.spec.name == name)
            phi += len(ids) / units * (rho if math.isfinite(rho) else 0.0)
        return phi

    def _linear(self, block: Block, path: str) -> Any:
        return self.model.base_model.model.get_submodule(f"{block.path}.{path}")

    def _gradients(self, kept: dict[Any, Any] | None) -> dict[tuple[int, str], Tensor]:
        saved: list[tuple[Tensor, Tensor]] = []
        layers = self.model.base_model.model.model.layers
        skipped: dict[int, Any] = {}
        for i, block in enumerate(self.blocks):
            if kept is None:
                continue
            if all(kept[i, s.spec.name] is None for s in block.sub_blocks):
                skipped[i] = layers[i].forward
                layers[i].forward = lambda hidden_states, *_, **__: hidden_states
                continue
            for sub in block.sub_blocks:
                for p in sub.projections:
                    weight = self._linear(block, p.path).base_layer.weight
                    rows, columns = masks(p, sub.spec.units, kept[i, sub.spec.name])
                    saved.append((weight, weight.detach().clone()))
                    with torch.no_grad():
                        weight.mul_(rows[:, None] * columns)
        self.model.zero_grad(set_to_none=True)
        for batch in self.tokens.split(self.micro_batch):
            share = len(batch) / len(self.tokens)
            (self.model(input_ids=batch, labels=batch, use_cache=False).loss * share).backward()
        out = {}
        for i, block in enumerate(self.blocks):
            for sub in block.sub_blocks:
                if i in skipped or (kept is not None and kept[i, sub.spec.name] is None):
                    continue
                parts = []
                for p in sub.projections:
                    g = self._linear(block, p.path).lora_B["default"].weight.grad
                    if kept is not None:
                        g = g * masks(p, sub.spec.units, kept[i, sub.spec.name])[0][:, None]
                    parts.append(g.flatten())
                out[i, sub.spec.name] = torch.cat(parts)
        for weight, original in saved:
            with torch.no_grad():
                weight.copy_(original)
        for i, forward in skipped.items():
            layers[i].forward = forward
        return out
