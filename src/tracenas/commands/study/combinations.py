"""Weighted sums of ranks in a study: judged from the scores that it has, without another pass."""

from collections.abc import Mapping, Sequence
from typing import Any

from tracenas.errors import UserError
from tracenas.proxies.combination import Choice, RankScale, choose, combined

__all__ = ["parse_combinations", "with_combination"]


def parse_combinations(text: str | None, proxies: Sequence[str]) -> tuple[Choice, ...]:
    """Combinations separated by semicolons.

    Raises:
        UserError: for an unknown proxy, one that the study does not score, or no weights.
    """
    choices = []
    for part in (text or "").split(";"):
        if not part.strip():
            continue
        choice = choose(part.strip())
        if choice.single:
            raise UserError(f"combination '{part.strip()}': expected weights, such as loss=0.5,phi=0.5")
        for name in choice.weights:
            if name not in proxies:
                raise UserError(f"combination '{choice.text}': '{name}' is not among the study's proxies")
        choices.append(choice)
    return tuple(choices)


def with_combination(
    records: Sequence[Mapping[str, Any]], costs: Mapping[str, float], choice: Choice
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The records with the combination's score beside the others; it costs what its parts cost by themselves."""
    scales = {}
    for name in choice.weights:
        values = [v for r in records if (v := r["scores"].get(name)) is not None]
        if values:
            scales[name] = RankScale(values)
    out = []
    for record in records:
        missing = [name for name in choice.weights if record["scores"].get(name) is None]
        value = None if missing else combined(choice, scales, record["scores"])
        reasons = {choice.text: f"{missing[0]} has no score"} if missing else {}
        scores = {**record["scores"], choice.text: value}
        out.append({**record, "scores": scores, "reasons": {**record["reasons"], **reasons}})
    return out, {**costs, choice.text: sum(costs[name] for name in choice.weights)}
