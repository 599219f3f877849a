"""Qwen 3, mixture of experts (`model_type: qwen3_moe`): Qwen 3's attention, experts in all blocks or in some."""

from collections.abc import Mapping, Sequence
from typing import Any

from tracenas.families.experts import MixtureOfExperts

__all__ = ["FAMILY"]


class Qwen3Moe(MixtureOfExperts):
    """Which blocks have experts goes by their number, which pruning may change."""

    def experts(self, config: Mapping[str, Any], index: int) -> int:
        """As in transformers: by `mlp_only_layers` and `decoder_sparse_step`."""
        sparse = index not in (config.get("mlp_only_layers") or ())
        sparse = sparse and (index + 1) % int(config.get("decoder_sparse_step") or 1) == 0
        return super().experts(config, index) if sparse else 0

    def version_4(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The number of experts under a name of its own."""
        return {**super().version_4(config), "num_experts": config.get("num_local_experts", config.get("num_experts"))}

    def renumbered(self, config: Mapping[str, Any], remaining: Sequence[int]) -> dict[str, Any]:
        """Blocks without experts, by their new numbers."""
        dense = [new for new, old in enumerate(remaining) if not self.experts(config, old)]
        return {"mlp_only_layers": dense, "decoder_sparse_step": 1}


FAMILY = Qwen3Moe("qwen3_moe", qk_norm=True, width="moe_intermediate_size")
