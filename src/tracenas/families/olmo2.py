"""OLMo 2 (`model_type: olmo2`): norms after the sub-blocks only, and q and k normed over their whole width.

A cut q norm runs over the kept heads, as the cut model's own module does: the mean of squares is then an estimate of
the whole width's, where a mask would let the removed heads count as zeros.
"""

from tracenas.families.decoder import Heads, LlamaLike
from tracenas.families.description import Projection

__all__ = ["FAMILY"]


class Olmo2(LlamaLike):
    """The norms of q and k have a weight for every coordinate of every head."""

    def width_norms(self, heads: Heads) -> tuple[Projection, ...]:
        """q's and k's."""
        return (
            Projection("self_attn.q_norm", heads.count * heads.dim, 1, heads.q()),
            Projection("self_attn.k_norm", heads.kv * heads.dim, 1, heads.k()),
        )


FAMILY = Olmo2(
    "olmo2",
    attention_norms=("post_attention_layernorm",),
    mlp_norms=("post_feedforward_layernorm",),
    attention_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
