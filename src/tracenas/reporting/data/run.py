"""A run directory as typed values. Everything optional may be missing; what is there must be right."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.families import Key
from tracenas.journal import Journal
from tracenas.reporting.data.reading import Fields, mapping, read_object
from tracenas.saliency.sensitivity.table import SensitivityTable, WidthCosts
from tracenas.settings import read_settings
from tracenas.space.architecture import UNITS, Architecture

__all__ = ["Compared", "JournalCandidate", "RunData"]

Ratios = tuple[float | None, ...]


@dataclass(frozen=True)
class JournalCandidate:
    """One line of the journal. `score` is None where the candidate failed or could not be repaired."""

    id: str
    generation: int
    architecture: Architecture
    params: int | None
    score: float | None
    loss: float | None = None
    seconds: float | None = None
    reason: str | None = None
    rho: Mapping[str, Ratios] = field(default_factory=dict)


@dataclass(frozen=True)
class Compared:
    """One model of the comparison: base, uniform, `random 1`, …, found; perplexity is that of `text`.

    `later` holds the perplexities that the architecture came to after it was scored, by stage.
    """

    name: str
    params: int | None = None
    perplexity: float | None = None
    nll: float | None = None
    loss: float | None = None
    score: float | None = None
    architecture: Architecture | None = None
    text: str | None = None
    tokens: int | None = None
    later: tuple[tuple[str, float | None], ...] = ()


@dataclass(frozen=True)
class RunData:
    """What a run directory says about its search and its result.

    `base_units` maps a unit (`heads`, `channels`, …) to the base model's count per layer, 0 where a layer has
    none; where the summary does not say, the largest count that any candidate kept stands in
    (`base_units_recorded` is then False). `costs` are those of the sensitivity table, empty without one; `starts`
    the architectures that the search scored first (start.json), by name, where the journal has them.
    """

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    candidates: tuple[JournalCandidate, ...]
    best: JournalCandidate | None
    provenance: Mapping[str, Any]
    base_params: int | None
    base_units: Mapping[str, tuple[int, ...]]
    base_units_recorded: bool
    comparison: tuple[Compared, ...]
    kept: Mapping[str, tuple[tuple[int, ...] | None, ...]]
    costs: Mapping[Key, WidthCosts]
    starts: Mapping[str, JournalCandidate]

    @classmethod
    def read(cls, run_dir: Path | str) -> "RunData":
        """Read RUN/config.yaml, journal.jsonl, {best,start,summary}.json and the sensitivity table, whichever exist.

        Raises:
            UserError: if the directory holds no run, or a file in it is corrupt; the file and line are named.
        """
        run_dir = Path(run_dir)
        if not run_dir.is_dir():
            raise UserError(f"{run_dir}: no such run directory")
        names = ("journal.jsonl", "best.json", "summary.json", "config.yaml")
        if not any((run_dir / name).is_file() for name in names):
            raise UserError(f"{run_dir}: not a run directory (no {', '.join(names[:-1])} or {names[-1]} in it)")
        journal = run_dir / "journal.jsonl"
        records = enumerate(Journal(journal).read(), start=1)
        candidates = tuple(_candidate(Fields(record, f"{journal}: line {number}")) for number, record in records)
        best, provenance = _best(run_dir / "best.json", candidates)
        architectures = [c.architecture for c in (*candidates, *([best] if best else []))]
        summary = Fields(read_object(run_dir / "summary.json"), str(run_dir / "summary.json"))
        base, kept = summary.fields("base"), summary.fields("kept")
        table = run_dir / "sensitivity.safetensors"
        units, recorded = _base_units(base.fields("units"), architectures)
        return cls(
            path=run_dir,
            config=read_settings(run_dir / "config.yaml", required=False),
            summary=summary.values,
            candidates=candidates,
            best=best,
            provenance=provenance or summary.fields("provenance").values,
            base_params=base.integer("params"),
            base_units=units,
            base_units_recorded=recorded,
            comparison=tuple(_compared(summary, number) for number in range(len(summary.items("comparison")))),
            kept={key: _kept(kept, key) for key in kept.values},
            costs=SensitivityTable.read(table).costs if table.is_file() else {},
            starts=_starts(run_dir / "start.json", candidates),
        )

    @property
    def _summary(self) -> Fields:
        return Fields(self.summary, str(self.path / "summary.json"))

    @property
    def model(self) -> str:
        """The base model's name as the user gave it, or the directory's name."""
        return str(self.summary.get("model") or self.config.get("model") or self.path.resolve().name)

    @property
    def finished(self) -> bool:
        """Whether the search wrote its summary, as its last step."""
        return bool(self.summary)

    @property
    def proxy(self) -> str:
        """The proxy that scored the candidates."""
        return str(self.setting("proxy") or "phi")

    @property
    def scored(self) -> tuple[JournalCandidate, ...]:
        """The candidates that have a score, in the order of their evaluation."""
        return tuple(c for c in self.candidates if c.score is not None)

    @property
    def budget(self) -> tuple[int | None, int | None]:
        """Lower and upper end of the parameter window C."""
        budget = self._summary.fields("budget")
        return budget.integer("lower"), budget.integer("limit")

    @property
    def other_budgets(self) -> list[tuple[str, float | None, float | None]]:
        """Budgets of anything but parameters: name, what the best candidate costs, and the limit."""
        budgets = self._summary.fields("budgets")
        named = {name: budgets.fields(name) for name in budgets.values if name != "params"}
        return [(name, one.number("cost"), one.number("limit")) for name, one in named.items()]

    @property
    def base_loss(self) -> float | None:
        """The base model's loss on the calibration text, where the search measured it."""
        return self._summary.fields("base").number("loss")

    @property
    def elites(self) -> int:
        """How many candidates survive a generation; 10, as in TraceNAS Table 5, where nothing says it."""
        value = self.setting("elites")
        return value if isinstance(value, int) and value > 0 else 10

    @property
    def seconds(self) -> float | None:
        """The search's time: the summary's, else the sum over its candidates."""
        seconds = self.number("seconds")
        times = [c.seconds for c in self.candidates if c.seconds is not None]
        return seconds if seconds is not None else (math.fsum(times) if times else None)

    @property
    def best_params(self) -> int | None:
        """Parameters of the found model: the comparison's, else the journal's."""
        row = self.compared("found")
        return row.params if row and row.params else self.best.params if self.best else None

    @property
    def evaluations(self) -> int:
        """Candidates evaluated: the summary's number, else the journal's."""
        evaluations = self.number("evaluations")
        return len(self.candidates) if evaluations is None else round(evaluations)

    @property
    def failed(self) -> int:
        """How many candidates failed."""
        return len(self.candidates) - len(self.scored)

    @property
    def settled(self) -> str | None:
        """Why the search ended before its size was reached, if it did."""
        return self._summary.fields("settled").text("said")

    @property
    def taken(self) -> str | None:
        """What held-out text said of the best candidates, if it was asked."""
        return self._summary.fields("selection").text("said")

    @property
    def failures(self) -> list[tuple[str, int]]:
        """Reasons of failed candidates and how often each occurred, the most frequent first."""
        return Counter(c.reason or "no reason recorded" for c in self.candidates if c.score is None).most_common()

    def setting(self, key: str) -> Any:
        """A value of the summary, or of the resolved settings."""
        value = self.summary.get(key)
        return self.config.get(key) if value is None else value

    def number(self, key: str) -> float | None:
        """A number of the summary; None where it is missing or not finite."""
        return self._summary.number(key)

    def compared(self, name: str) -> Compared | None:
        """The comparison's row of that name."""
        return next((row for row in self.comparison if row.name == name), None)


def _candidate(record: Fields) -> JournalCandidate:
    for key in ("generation", "arch"):
        if key not in record.values:
            raise UserError(f"{record.where}: no '{key}' in it")
    architecture = Architecture.from_json(record.values["arch"], where=record.where)
    generation = record.integer("generation")
    if generation is None:
        raise UserError(f"{record.where}: 'generation' must be a whole number")
    rho = record.fields("rho")
    return JournalCandidate(
        id=record.text("id") or architecture.id,
        generation=generation,
        architecture=architecture,
        params=record.integer("params"),
        score=record.number("score"),
        loss=record.number("loss"),
        seconds=record.number("seconds"),
        reason=record.text("reason"),
        rho={key: rho.numbers(key) for key in rho.values},
    )


def _best(path: Path, candidates: Sequence[JournalCandidate]) -> tuple[JournalCandidate | None, Mapping[str, Any]]:
    """The best architecture: best.json's, with what the journal holds of it; else the journal's best."""
    data = Fields(read_object(path), str(path))
    if not data.values:
        scored = [c for c in candidates if c.score is not None]
        return max(scored, key=lambda c: c.score or 0.0, default=None), {}
    architecture = Architecture.from_json(data.values, where=str(path))
    provenance = data.fields("provenance").values
    for candidate in candidates:
        if candidate.architecture == architecture and candidate.score is not None:
            return candidate, provenance
    return JournalCandidate(architecture.id, 0, architecture, data.integer("params"), data.number("score")), provenance


def _starts(path: Path, candidates: Sequence[JournalCandidate]) -> dict[str, JournalCandidate]:
    measured = {candidate.architecture: candidate for candidate in candidates if candidate.score is not None}
    starts = {name: Architecture.from_json(arch, where=f"{path}: {name}") for name, arch in read_object(path).items()}
    return {name: measured[architecture] for name, architecture in starts.items() if architecture in measured}


def _compared(summary: Fields, number: int) -> Compared:
    place = summary.place(f"comparison[{number}]")
    row = Fields(mapping(summary.items("comparison")[number], place), place)
    name, arch = row.values.get("name"), row.values.get("arch")
    if not isinstance(name, str):
        raise UserError(f"{place}: 'name' must be a string")
    return Compared(
        name=name,
        params=row.integer("params"),
        perplexity=row.number("perplexity"),
        nll=row.number("nll"),
        loss=row.number("loss"),
        score=row.number("score"),
        architecture=None if arch is None else Architecture.from_json(arch, where=place),
        text=row.text("text"),
        tokens=row.integer("tokens"),
        later=tuple(_later(row)),
    )


def _later(row: Fields) -> Iterator[tuple[str, float | None]]:
    """What a row says of the run's checkpoint, and of the recovered one."""
    for key, name in (("checkpoint", "compensated"), ("recovered", "recovered")):
        if key in row.values:
            stage = row.fields(key)
            plain = stage.values.get("realisation") == "plain"
            yield "not compensated" if plain else name, stage.number("perplexity")


def _base_units(recorded: Fields, architectures: Sequence[Architecture]) -> tuple[dict[str, tuple[int, ...]], bool]:
    """The base's counts of every unit per layer, and whether all are recorded: else the largest kept stand in."""
    if len({len(architecture.layers) for architecture in architectures}) > 1:
        raise UserError(f"{recorded.where.split(':')[0]}: architectures of different depth in one run")
    units: dict[str, tuple[int, ...]] = {}
    complete = bool(recorded.values and architectures)
    for key in UNITS:
        kept = [[dict(layer.kept).get(key) for layer in architecture.layers] for architecture in architectures]
        layers = list(zip(*kept, strict=True))
        has = [any(count is not None for count in counts) for counts in layers]
        if any(has):
            counts = _recorded_counts(recorded, key, [layer.stack for layer in architectures[0].layers], has)
            complete = complete and counts is not None
            units[key] = tuple(counts or [max(count or 0 for count in counts) for counts in layers])
    return units, complete


def _recorded_counts(recorded: Fields, key: str, stacks: Sequence[str], has: Sequence[bool]) -> list[int] | None:
    """The base's counts of one unit per layer, from a list per unit or, in stacks, from a list in each."""
    values: list[Any] = []
    if key in recorded.values:
        values = list(recorded.items(key))
    elif any(stack in recorded.values for stack in stacks if stack):
        for stack in dict.fromkeys(stacks):
            values += recorded.fields(stack).items(key) or [0] * stacks.count(stack)
    if not values:
        return None
    if len(values) == sum(has) != len(has):  # only the layers that have this unit are listed
        rest = iter(values)
        values = [next(rest) if h else 0 for h in has]
    if len(values) != len(has):
        raise UserError(f"{recorded.place(key)}: {len(values)} entries, but the model has {len(has)} layers")
    if any(isinstance(v, bool) or not isinstance(v, int | None) for v in values):
        raise UserError(f"{recorded.place(key)}: entries must be whole numbers")
    return [v or 0 for v in values]


def _kept(kept: Fields, key: str) -> tuple[tuple[int, ...] | None, ...]:
    """Ids of the units that every layer keeps; None where it keeps none."""
    layers = [Fields({key: ids}, kept.where).items(key) if ids is not None else None for ids in kept.items(key)]
    if any(type(i) is not int for ids in layers for i in ids or ()):
        raise UserError(f"{kept.place(key)}: entries must be lists of whole numbers")
    return tuple(None if ids is None else tuple(ids) for ids in layers)
