"""The cost of every width of every sub-block, in closed form: statistics, elimination and the table."""

__all__ = ["FISHER_TOKENS", "PROBES", "SHARES", "trial_operations"]

FISHER_TOKENS = 4096
"""Tokens that the gradients are taken on, by default; more change next to nothing."""
SHARES = (0.9, 0.75, 0.5, 0.25)
"""Of the units: about these widths are fitted on one half of the text and tried on the other."""
PROBES = 32
"""Random directions of the outputs in which that is compared, at most."""


def trial_operations(columns: int) -> float:
    """What `held_out` takes for one output projection (a multiply-add counts two): three factors, and products."""
    products = 3 * (len(SHARES) + 1)  # with the change at every share and with the weights: of G and of both halves
    return 2.0 * (SHARES[0] * columns) ** 3 + 2.0 * PROBES * products * columns**2
