"""Who has the lowest perplexity of the comparison of a run."""

from typing import Any

__all__ = ["verdict"]

_TIE = 1e-3
"""Nats per token: closer ones count as equal."""


def verdict(comparison: list[dict[str, Any]]) -> str:
    """Who has the lowest perplexity among the architectures of the budget, in a sentence per stage."""
    rows = [row for row in comparison if row["name"] != "base"]
    sentences = [_winner({row["name"]: row["nll"] for row in rows}, "")]
    for key, when in (("checkpoint", "Realised as the checkpoint: "), ("recovered", "Recovered: ")):
        later = {row["name"]: row[key]["nll"] for row in rows if key in row}
        if "found" in later and len(later) > 1:
            sentences.append(_winner(later, when))
    return "\n".join(sentences)


def _winner(nll: dict[str, float], when: str) -> str:
    found = nll["found"]
    others = {name: value for name, value in nll.items() if name != "found"}
    if not others:
        return "Nothing to compare the found architecture with."
    best = min(others, key=lambda name: others[name])
    gap = others[best] - found
    start = f"{when}{'the' if when else 'The'} found architecture"
    if abs(gap) < _TIE:
        return f"{start} is as good as '{best}'."
    if gap > 0:
        return f"{start} has the lowest perplexity of its budget by {gap:.3f} nats per token."
    nats = f"{others[best]:.3f} against {found:.3f} nats"
    return f"{when}'{best}' has a lower perplexity than the found architecture ({nats})."
