"""Who won: the found architecture against uniform and random ones of the same budget, whoever it is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracenas.formats import decimal, percent, plural, signed_percent
from tracenas.reporting.data.run import Compared, RunData
from tracenas.reporting.labels import model_kind, proxy_label

__all__ = ["Spread", "Verdict", "judge", "random_label", "random_rows", "spread"]

TIE = 0.001  # perplexities that differ by less (relative) count as equal


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for one value) of n values."""

    mean: float
    deviation: float | None
    n: int

    def __str__(self) -> str:
        if self.deviation is None:
            return decimal(self.mean)
        digits = max(
            1, 4 + (math.floor(math.log10(self.deviation / abs(self.mean))) if self.deviation > 0 and self.mean else 0)
        )
        return f"{decimal(self.mean)} ± {decimal(self.deviation, digits)}"


@dataclass(frozen=True)
class Verdict:
    """`outcome` is won, tied, lost or unknown (nothing to compare); `winner` the best pruned row."""

    outcome: str
    sentence: str
    remarks: tuple[str, ...] = ()
    winner: Compared | None = None


def spread(rows: Sequence[Compared], value: Callable[[Compared], float | None]) -> Spread | None:
    """Mean and spread of one figure over rows; None if no row has it."""
    values = [v for v in map(value, rows) if v is not None]
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Spread(mean, None, 1)
    return Spread(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)), len(values))


def random_rows(rows: Sequence[Compared]) -> list[Compared]:
    """The random architectures of a comparison."""
    return [row for row in rows if model_kind(row.name) == "random"]


def random_label(rows: Sequence[Compared]) -> str:
    """Name of the random rows' mean; n counts those with a perplexity, if any has one."""
    measured = spread(rows, lambda r: r.perplexity)
    return f"random, mean ± sd (n = {measured.n if measured else len(rows)})"


def judge(run: RunData) -> Verdict:
    """Compare perplexities (all measured the same way) of found, uniform and random; say who is best."""
    found = run.compared("found")
    uniform = run.compared("uniform")
    rivals = [r for r in ([uniform] if uniform else []) + random_rows(run.comparison) if r.perplexity is not None]
    if found is None or found.perplexity is None:
        return Verdict("unknown", "No perplexity was measured for the found architecture.")
    if not rivals:
        return Verdict("unknown", "Nothing to compare with: neither uniform nor random architectures were measured.")
    ours = found.perplexity
    best = min(rivals, key=lambda r: r.perplexity or math.inf)
    theirs = best.perplexity or math.inf
    remarks = tuple(
        filter(
            None,
            [
                *_later_remarks(run, found),
                _base_remark(run, found),
                _score_remark(run, found, rivals),
                _size_remark(found, rivals),
            ],
        )
    )
    change = ours / theirs - 1
    if abs(change) < TIE:
        sentence = f"The found architecture is as good as {_named(best)}: perplexity {decimal(ours)} for both."
        return Verdict("tied", sentence, remarks, found if change <= 0 else best)
    if change < 0:
        lowest = f"The found architecture has the lowest perplexity of the {len(rivals) + 1} pruned models"
        return Verdict("won", f"{lowest}: {decimal(ours)}, against {_field(ours, uniform, rivals)}.", remarks, found)
    better = [r for r in rivals if (r.perplexity or math.inf) < ours]
    sentence = (
        f"{_named(best, 'The')} beats the found architecture: perplexity {decimal(theirs)} against "
        f"{decimal(ours)} (found is {percent(change)} worse)."
    )
    more = f"{len(better)} of the {plural(len(rivals), 'rival')} of the same budget are better than it."
    return Verdict("lost", sentence, (more, *remarks) if len(better) > 1 else remarks, best)


def _named(row: Compared, article: str = "the") -> str:
    return f"{article} uniform architecture" if row.name == "uniform" else f"{article} architecture “{row.name}”"


def _field(ours: float, uniform: Compared | None, rivals: Sequence[Compared]) -> str:
    """What the rivals reach, and how much lower ours is."""
    parts = []
    if uniform is not None and uniform.perplexity is not None:
        parts.append(f"{decimal(uniform.perplexity)} for uniform ({signed_percent(ours / uniform.perplexity - 1)})")
    chance = spread(random_rows(rivals), lambda r: r.perplexity)
    if chance is not None:
        drop = signed_percent(ours / chance.mean - 1)
        noun = "one random architecture" if chance.n == 1 else f"{chance.n} random ones"
        parts.append(f"{chance} for {noun} ({drop})")
    return " and ".join(parts)


def _base_remark(run: RunData, found: Compared) -> str:
    base = run.compared("base")
    if base is None or base.perplexity is None or found.perplexity is None:
        return ""
    size = f" with {percent(found.params / base.params)} of its parameters" if base.params and found.params else ""
    times = decimal(found.perplexity / base.perplexity, 3)
    return f"Found has {times}× the base model's perplexity of {decimal(base.perplexity)}{size}."


def _later_remarks(run: RunData, found: Compared) -> list[str]:
    """Found against its rivals after every further stage that they went through alike."""
    remarks = []
    for stage, ours in found.later:
        theirs = [(r.name, dict(r.later).get(stage)) for r in run.comparison if r is not found and r.name != "base"]
        if not ours:
            continue
        parts = [f"{decimal(v)} for {name} ({signed_percent(ours / v - 1)})" for name, v in theirs if v]
        if parts:
            alike = "recovered with the same settings" if stage == "recovered" else f"{stage} likewise"
            remarks.append(f"All {alike}: found {decimal(ours)}, against {' and '.join(parts)}.")
    return remarks


def _score_remark(run: RunData, found: Compared, rivals: Sequence[Compared]) -> str:
    """Says so where the search missed a score that a rival has."""
    scored = [(r.score, r.name) for r in rivals if r.score is not None]
    if found.score is None or not scored or max(scored)[0] <= found.score:
        return ""
    score, name = max(scored)
    label = proxy_label(run.proxy)
    return f"“{name}” has a higher {label} than found ({decimal(score)}): a longer search would find more."


def _size_remark(found: Compared, rivals: Sequence[Compared]) -> str:
    """A warning where a rival's size differs by more than 1 %: then the comparison is not quite fair."""
    if not found.params:
        return ""
    unequal = [(r.name, r.params / found.params - 1) for r in rivals if r.params]
    worst = max(unequal, key=lambda pair: abs(pair[1]), default=("", 0.0))
    if abs(worst[1]) <= 0.01:
        return ""
    name, difference = worst
    return f"Sizes are not quite equal: “{name}” has {signed_percent(difference)} parameters relative to found."
