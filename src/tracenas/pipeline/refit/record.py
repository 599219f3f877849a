"""How best.json says that a candidate was realised when it was scored, and with what loss."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tracenas.errors import UserError
from tracenas.proxies.combination import choose
from tracenas.strategies.score import is_number

__all__ = ["DEFAULT_RIDGE", "ScoredRealisation", "realisation_facts", "recorded_loss", "recorded_realisation"]

DEFAULT_RIDGE = 0.01


class ScoredRealisation(NamedTuple):
    """The realisation that a candidate was scored with: `plain`, or `ridge` of this relative strength."""

    method: str = "plain"
    ridge: float = DEFAULT_RIDGE


def realisation_facts(proxy: str, ridge: float | None) -> dict[str, Any]:
    """How a proxy's candidates are realised, as best.json records it.

    Of a combination: compensated as soon as one of its proxies is, though the others see the plain candidate.
    """
    if not choose(proxy).compensated:
        return {"realisation": "plain"}
    return {"realisation": "ridge", "ridge": ridge or DEFAULT_RIDGE}


def recorded_realisation(record: object) -> ScoredRealisation:
    """The realisation that a best.json was scored with; plain where it says nothing.

    Raises:
        UserError: for a realisation that this version does not know.
    """
    provenance = record.get("provenance") if isinstance(record, dict) else None
    facts = provenance if isinstance(provenance, dict) else {}
    name, ridge = facts.get("realisation", "plain"), facts.get("ridge", DEFAULT_RIDGE)
    if name not in ("plain", "ridge") or not is_number(ridge) or not ridge > 0:
        text = f"{str(name)[:60]!r} (ridge {str(ridge)[:20]})"
        raise UserError(f"best.json: unknown realisation {text}; accepted: plain, ridge above 0")
    return ScoredRealisation(name, float(ridge))


def recorded_loss(record: Mapping[str, Any], where: object) -> float | None:
    """The calibration loss that a best.json holds, None if it holds none.

    Raises:
        UserError: if it is no number.
    """
    loss = record.get("loss")
    if loss is not None and not is_number(loss):
        raise UserError(f"{where}: 'loss' must be a number or null, found {str(loss)[:60]!r}")
    return loss
