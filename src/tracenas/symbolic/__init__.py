"""Symbolic pruning metrics (Pruner-Zero): expressions, their canonical form, and genetic programming over them."""

from tracenas.symbolic.parser import Located, locate, parse
from tracenas.symbolic.tree import VARIABLES, Expression

__all__ = ["KNOWN", "VARIABLES", "Expression", "Located", "locate", "parse"]

KNOWN = {
    "magnitude": "abs(W)",
    "wanda": "abs(W) * X",
    "weight_gradient": "abs(W) * G",
    "gblm_like": "abs(W) * (X + 100 * G)",
    "pruner_zero": "abs(W * W) * mms(G)",
}
"""Published metrics as expressions. W is |weight|, X the input's root mean square, G the mean absolute gradient."""
