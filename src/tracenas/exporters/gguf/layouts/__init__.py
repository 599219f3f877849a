"""How a model can be laid out in a GGUF file: one file per layout, tried in this order.

A layout says which models it holds, and turns one into metadata and tensors. The names on the right of the table are
those of `--layout`.
"""

from tracenas.errors import UserError
from tracenas.exporters.gguf.layouts.layout import FileDraft, Layout, Tensor
from tracenas.exporters.gguf.model import Decoder
from tracenas.registry import Registry

__all__ = ["LAYOUTS", "FileDraft", "Layout", "Tensor", "choose"]

_MODULES = {
    "stock": "tracenas.exporters.gguf.layouts.stock:STOCK",
    "deci": "tracenas.exporters.gguf.layouts.deci:DECI",
    "openelm": "tracenas.exporters.gguf.layouts.openelm:OPENELM",
    "padded": "tracenas.exporters.gguf.layouts.padded:PADDED",
}
LAYOUTS: Registry[Layout] = Registry("layout", _MODULES)


def choose(model: Decoder, name: str = "auto") -> Layout:
    """The first layout that holds the model, or the one called `name`.

    Raises:
        UserError: if there is none, or it does not hold the model: with the reason of every one that was tried.
    """
    reasons = {}
    for layout in map(LAYOUTS.get, _MODULES if name == "auto" else (name,)):
        reasons[layout.name] = layout.objection(model)
        if not reasons[layout.name]:
            return layout
    if name != "auto":
        raise UserError(f"layout {name} cannot hold this model: {reasons[name]}")
    objections = "; ".join(f"{n}: {reason}" for n, reason in reasons.items())
    raise UserError(f"no GGUF layout can hold this model ({objections})")
