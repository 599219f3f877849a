"""Who won: the found architecture against uniform, random and one-shot ones of the same budget, whoever it is."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracenas.formats import decimal, percent, plural, signed_percent
from tracenas.reporting.data.run import Compared, RunData
from tracenas.reporting.labels import model_kind, proxy_label, start_label

__all__ = ["Spread", "Verdict", "random_label", "random_rows", "run_verdict", "spread"]

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
        magnitude = math.floor(math.log10(self.deviation / abs(self.mean))) if self.deviation > 0 and self.mean else 0
        return f"{decimal(self.mean)} ± {decimal(self.deviation, max(1, 4 + magnitude))}"


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
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def random_rows(rows: Sequence[Compared]) -> list[Compared]:
    """The random architectures of a comparison."""
    return [row for row in rows if model_kind(row.name) == "random"]


def random_label(rows: Sequence[Compared]) -> str:
    """Name of the random rows' mean; n counts those with a perplexity, if any has one."""
    measured = spread(rows, lambda r: r.perplexity)
    return f"random, mean ± sd (n = {measured.n if measured else len(rows)})"


def run_verdict(run: RunData) -> Verdict:
    """Compare found with uniform and random by perplexity, with the starts by the calibration's loss; say who is best.

    Perplexities, all measured in the same way, decide where found has one; else the loss on the calibration does.
    """
    best = run.compared("found")
    uniform = run.compared("uniform")
    rivals = [r for r in ([uniform] if uniform else []) + random_rows(run.comparison) if r.perplexity is not None]
    begun = _start_verdict(run)
    if best is None or best.perplexity is None:
        return begun or Verdict("unknown", "No perplexity was measured for the found architecture.")
    if not rivals:
        nothing = Verdict("unknown", "Nothing to compare with: neither uniform nor random architectures were measured.")
        return begun or nothing
    rival = min(rivals, key=lambda r: r.perplexity or math.inf)
    reached, bar = best.perplexity, rival.perplexity or math.inf
    remarks = [*_later_remarks(run, best), _base_remark(run, best), _score_remark(run, best, rivals)]
    remarks = [remark for remark in (*remarks, _size_remark(best, rivals)) if remark]
    change = reached / bar - 1
    further = f" {begun.sentence}" if begun else ""
    if abs(change) < TIE:
        sentence = f"The found architecture is as good as {_named(rival)}: perplexity {decimal(reached)} for both."
        return Verdict("tied", sentence + further, tuple(remarks), best if change <= 0 else rival)
    if change < 0:
        lowest = f"The found architecture has the lowest perplexity of the {len(rivals) + 1} pruned models"
        measure = uniform if uniform in rivals and uniform is not None else rival
        bar = measure.perplexity or math.inf
        against = f"{decimal(bar)} for {measure.name} ({signed_percent(reached / bar - 1)})"
        return Verdict("won", f"{lowest}: {decimal(reached)}, against {against}.{further}", tuple(remarks), best)
    sentence = (
        f"{_named(rival, 'The')} beats the found architecture: perplexity {decimal(bar)} against "
        f"{decimal(reached)} (found is {percent(change)} worse)."
    )
    better = sum((r.perplexity or math.inf) < reached for r in rivals)
    if better > 1:
        remarks.insert(0, f"{better} of the {plural(len(rivals), 'rival')} of the same budget are better than it.")
    return Verdict("lost", sentence + further, tuple(remarks), rival)


def _named(row: Compared, article: str = "the") -> str:
    return f"{article} uniform architecture" if row.name == "uniform" else f"{article} architecture “{row.name}”"


def _start_verdict(run: RunData) -> Verdict | None:
    """Found against the one-shot architectures that the search began with; None where one has no loss.

    All have the loss of the calibration text, on which the search chose.
    """
    starts = {name: c.loss for name, c in run.starts.items() if c.loss is not None}
    if run.best is None or run.best.loss is None or not starts:
        return None
    found, best = run.best.loss, min(starts, key=starts.__getitem__)
    if run.best is run.starts[best]:
        sentence = f"The search found nothing better than {start_label(best)}, its best one-shot start"
        return Verdict("tied", f"{sentence}: calibration loss {decimal(found)}.")
    names = [best] + ["uniform"] * ("uniform" in starts and best != "uniform")
    parts = [f"{decimal(starts[n])} for {start_label(n)} ({_difference(found - starts[n])})" for n in names]
    parts[0] = parts[0].replace(" (", ", the best one-shot start (")
    sentence = f"Found has a calibration loss of {decimal(found)}, against {' and '.join(parts)}."
    equal = math.isclose(math.exp(found - starts[best]), 1, abs_tol=TIE)
    return Verdict("tied" if equal else "won" if found < starts[best] else "lost", sentence)


def _difference(nats: float) -> str:
    return f"{'+' if nats > 0 else ''}{decimal(nats, 2)} nats"


def _base_remark(run: RunData, best: Compared) -> str:
    base = run.compared("base")
    if base is None or base.perplexity is None or best.perplexity is None:
        return ""
    size = f" with {percent(best.params / base.params)} of its parameters" if base.params and best.params else ""
    times = decimal(best.perplexity / base.perplexity, 3)
    return f"Found has {times}× the base model's perplexity of {decimal(base.perplexity)}{size}."


def _later_remarks(run: RunData, best: Compared) -> list[str]:
    """The best architecture against its rivals after every further stage that they went through alike."""
    remarks = []
    for stage, reached in best.later:
        rivals = [(r.name, dict(r.later).get(stage)) for r in run.comparison if r is not best and r.name != "base"]
        parts = [f"{decimal(v)} for {name} ({signed_percent(reached / v - 1)})" for name, v in rivals if v and reached]
        if parts:
            alike = "recovered with the same settings" if stage == "recovered" else f"{stage} likewise"
            remarks.append(f"All {alike}: found {decimal(reached)}, against {' and '.join(parts)}.")
    return remarks


def _score_remark(run: RunData, best: Compared, rivals: Sequence[Compared]) -> str:
    """Says so where the search missed a score that a rival has."""
    score, name = max(((r.score, r.name) for r in rivals if r.score is not None), default=(-math.inf, ""))
    if best.score is None or score <= best.score:
        return ""
    label = proxy_label(run.proxy)
    return f"“{name}” has a higher {label} than found ({decimal(score)}): a longer search would find more."


def _size_remark(best: Compared, rivals: Sequence[Compared]) -> str:
    """A warning where a rival's size differs by more than 1 %: then the comparison is not quite fair."""
    unequal = [(r.params / best.params - 1, r.name) for r in rivals if r.params and best.params]
    difference, name = max(unequal, key=lambda pair: abs(pair[0]), default=(0.0, ""))
    if abs(difference) <= 0.01:
        return ""
    return f"Sizes are not quite equal: “{name}” has {signed_percent(difference)} parameters relative to found."
