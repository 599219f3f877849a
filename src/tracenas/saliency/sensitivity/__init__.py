"""The cost of every width of every sub-block, in closed form: statistics, elimination and the table."""

from collections.abc import Sequence

from tracenas.families import Block, present

__all__ = ["PROBES", "SHARES", "fisher_tokens", "trial_operations"]

_FISHER_TOKENS = 1024, 4096
"""Tokens that the gradients are taken on at least, and at most: more change next to nothing."""
_FISHER_SHARE = 6
"""Of the text they are taken on a sixth, but on no less than twice as many tokens as their matrices have rows."""
SHARES = (0.9, 0.75, 0.5, 0.25)
"""Of the units: about these widths are fitted on one half of the text and tried on the other."""
PROBES = 32
"""Random directions of the outputs in which that is compared, at most."""


def trial_operations(columns: int) -> float:
    """What `held_out` takes for one output projection (a multiply-add counts two): three factors, and products."""
    products = 3 * (len(SHARES) + 1)  # with the change at every share and with the weights: of G and of both halves
    return 2.0 * (SHARES[0] * columns) ** 3 + 2.0 * PROBES * products * columns**2


def fisher_tokens(tokens: int, blocks: Sequence[Block]) -> int:
    """Tokens that the gradients are taken on, by default.

    Args:
        tokens: of the second moments.
        blocks: whose output projections the matrices are of.
    """
    least, most = _FISHER_TOKENS
    hidden = max(sub.output_projection.rows for _, sub in present(blocks))
    return min(most, max(least, 2 * hidden, -(-tokens // _FISHER_SHARE)))
