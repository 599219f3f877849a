"""The cost of every width of every sub-block, in closed form: statistics, elimination and the table."""

__all__ = ["FISHER_TOKENS"]

FISHER_TOKENS = 4096
"""Tokens that the gradients are taken on, by default; more change next to nothing."""
