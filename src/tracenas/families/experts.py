"""Mixtures of experts: an MLP's units are the channels of its experts, each expert keeping as many of its own.

Units are numbered expert after expert, so a layer's `channels` are those of all its experts together. The router
stays as it is and no trace is taken of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracenas.families.counted import counted
from tracenas.families.decoder import LlamaLike
from tracenas.families.description import Attribute, Options, Projection, Segment, SubBlock
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["MixtureOfExperts"]


@dataclass(frozen=True)
class MixtureOfExperts(LlamaLike):
    """Blocks in the Llama manner whose MLPs are transformers' fused experts and a router, `mlp.gate`.

    Args:
        width: key of the width of an expert in config.json.
    """

    width: str = "intermediate_size"

    def experts(self, config: Mapping[str, Any], index: int) -> int:
        """How many experts block `index` has; 0 for an ordinary MLP."""
        return int(config.get("num_local_experts") or config.get("num_experts") or 0)

    def width_overrides(self, local: Mapping[str, Any], index: int, channels: int) -> dict[str, Any]:
        """The width of every expert."""
        experts = self.experts(local, index)
        if not experts:
            return super().width_overrides(local, index, channels)
        return {self.width: channels // experts or int(local[self.width])}

    def _mlp(self, config: Mapping[str, Any], index: int, options: Options) -> SubBlock:
        experts = self.experts(config, index)
        if not experts:
            return super()._mlp(config, index, options)
        hidden, width, active = int(config["hidden_size"]), int(config[self.width]), int(config["num_experts_per_tok"])
        fused, channel = (Segment(1), Segment(1, width)), (Segment(1),)
        at = "mlp.experts."
        projections = (
            Projection(at + "gate_up_proj", 2 * width, hidden, fused, source="mlp_in", stack=experts, active=active),
            Projection(at + "down_proj", hidden, width, (), channel, source="mlp_out", stack=experts, active=active),
        )
        spec = SubBlockSpec("mlp", "channels", experts * width, quantum=experts * options.channel_quantum)
        sub = SubBlock(
            spec,
            projections,
            "mlp",
            norms=self.mlp_norms,
            post_norm=self.mlp_post_norm,
            groups=experts,
            attributes=(Attribute(at + "intermediate_dim", experts),),
        )
        norms, present = hidden * len(self.mlp_norms), "mlp" not in config.get("skip", ())
        return counted(sub, norms, router_weights=experts * hidden, present=present)
