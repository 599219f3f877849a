"""A run directory as typed values. Everything optional may be missing; what is there must be right."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.reporting.data.reading import mapping, read_object, read_settings
from tracenas.rundir import Journal
from tracenas.space.architecture import UNITS, Architecture

__all__ = ["Candidate", "Compared", "RunData"]

Ratios = tuple[float | None, ...]


@dataclass(frozen=True)
class Candidate:
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
    (`base_units_known` is then False).
    """

    path: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    candidates: tuple[Candidate, ...]
    best: Candidate | None
    provenance: Mapping[str, Any]
    base_params: int | None
    base_units: Mapping[str, tuple[int, ...]]
    base_units_known: bool
    comparison: tuple[Compared, ...]
    kept: Mapping[str, tuple[tuple[int, ...] | None, ...]]

    @classmethod
    def read(cls, run_dir: Path | str) -> "RunData":
        """Read RUN/config.yaml, journal.jsonl, best.json and summary.json, whichever exist.

        Raises:
            UserError: if the directory holds no run, or a file in it is corrupt; the file and line are named.
        """
        run_dir = Path(run_dir)
        if not run_dir.is_dir():
            raise UserError(f"{run_dir}: no such run directory")
        names = ("journal.jsonl", "best.json", "summary.json", "config.yaml")
        if not any((run_dir / name).is_file() for name in names):
            raise UserError(f"{run_dir}: not a run directory (no {', '.join(names[:-1])} or {names[-1]} in it)")
        summary = read_object(run_dir / "summary.json")
        journal = run_dir / "journal.jsonl"
        candidates = tuple(
            _candidate(record, f"{journal}: line {number}")
            for number, record in enumerate(Journal(journal).read(), start=1)
        )
        best, provenance = _best(run_dir / "best.json", candidates)
        where = str(run_dir / "summary.json")
        comparison = _comparison(summary.get("comparison"), where)
        architectures = [c.architecture for c in (*candidates, *([best] if best else []))]
        base = mapping(summary.get("base"), f"{where}: base")
        units, known = _base_units(base.get("units"), architectures, f"{where}: base.units")
        return cls(
            path=run_dir,
            config=read_settings(run_dir / "config.yaml"),
            summary=summary,
            candidates=candidates,
            best=best,
            provenance=provenance or mapping(summary.get("provenance"), f"{where}: provenance"),
            base_params=_whole(base, "params", f"{where}: base"),
            base_units=units,
            base_units_known=known,
            comparison=comparison,
            kept=_kept(summary.get("kept"), f"{where}: kept"),
        )

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
    def scored(self) -> tuple[Candidate, ...]:
        """The candidates that have a score, in the order of their evaluation."""
        return tuple(c for c in self.candidates if c.score is not None)

    @property
    def budget(self) -> tuple[int | None, int | None]:
        """Lower and upper end of the parameter window C."""
        where = f"{self.path / 'summary.json'}: budget"
        budget = mapping(self.summary.get("budget"), where)
        return _whole(budget, "lower", where), _whole(budget, "limit", where)

    @property
    def elites(self) -> int:
        """How many candidates survive a generation; 10, as in TraceNAS Table 5, where nothing says it."""
        value = self.setting("elites")
        return value if isinstance(value, int) and value > 0 else 10

    @property
    def seconds(self) -> float | None:
        """The search's time: the summary's, else the sum over its candidates."""
        told = self.number("seconds")
        times = [c.seconds for c in self.candidates if c.seconds is not None]
        return told if told is not None else (math.fsum(times) if times else None)

    @property
    def found_params(self) -> int | None:
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
    def failures(self) -> list[tuple[str, int]]:
        """Reasons of failed candidates and how often each occurred, the most frequent first."""
        return Counter(c.reason or "no reason recorded" for c in self.candidates if c.score is None).most_common()

    def setting(self, key: str) -> Any:
        """A value of the summary, or of the resolved settings."""
        value = self.summary.get(key)
        return self.config.get(key) if value is None else value

    def number(self, key: str) -> float | None:
        """A number of the summary; None where it is missing or not finite."""
        return _real(self.summary, key, str(self.path / "summary.json"))

    def compared(self, name: str) -> Compared | None:
        """The comparison's row of that name."""
        return next((row for row in self.comparison if row.name == name), None)


def _candidate(record: Mapping[str, Any], where: str) -> Candidate:
    for key in ("generation", "arch"):
        if key not in record:
            raise UserError(f"{where}: no '{key}' in it")
    architecture = Architecture.from_json(record["arch"], where=where)
    generation = _whole(record, "generation", where)
    if generation is None:
        raise UserError(f"{where}: 'generation' must be a whole number")
    rho = mapping(record.get("rho"), f"{where}: rho")
    reason = record.get("reason")
    return Candidate(
        id=str(record.get("id") or architecture.id),
        generation=generation,
        architecture=architecture,
        params=_whole(record, "params", where),
        score=_real(record, "score", where),
        loss=_real(record, "loss", where),
        seconds=_real(record, "seconds", where),
        reason=None if reason is None else str(reason),
        rho={key: _ratios(values, f"{where}: rho.{key}") for key, values in rho.items()},
    )


def _best(path: Path, candidates: Sequence[Candidate]) -> tuple[Candidate | None, Mapping[str, Any]]:
    """The found architecture: best.json's, with what the journal knows of it; else the journal's best."""
    data = read_object(path)
    if not data:
        scored = [c for c in candidates if c.score is not None]
        return (max(scored, key=lambda c: c.score or 0.0) if scored else None), {}
    architecture = Architecture.from_json(data, where=str(path))
    provenance = mapping(data.get("provenance"), f"{path}: provenance")
    for candidate in candidates:
        if candidate.architecture == architecture and candidate.score is not None:
            return candidate, provenance
    score, params = _real(data, "score", str(path)), _whole(data, "params", str(path))
    return Candidate(architecture.id, 0, architecture, params, score), provenance


def _comparison(raw: object, where: str) -> tuple[Compared, ...]:
    rows = []
    for number, entry in enumerate(_sequence(raw, f"{where}: comparison")):
        place = f"{where}: comparison[{number}]"
        row = mapping(entry, place)
        if not isinstance(row.get("name"), str):
            raise UserError(f"{place}: 'name' must be a string")
        arch = row.get("arch")
        rows.append(
            Compared(
                name=row["name"],
                params=_whole(row, "params", place),
                perplexity=_real(row, "perplexity", place),
                nll=_real(row, "nll", place),
                loss=_real(row, "loss", place),
                score=_real(row, "score", place),
                architecture=None if arch is None else Architecture.from_json(arch, where=place),
                text=None if row.get("text") is None else str(row["text"]),
                tokens=_whole(row, "tokens", place),
                later=tuple(_later(row, place)),
            )
        )
    return tuple(rows)


def _later(row: Mapping[str, Any], where: str) -> Iterator[tuple[str, float | None]]:
    """What a row says of the run's checkpoint, and of the recovered one."""
    for key, name in (("checkpoint", "compensated"), ("recovered", "recovered")):
        if key in row:
            figures = mapping(row[key], f"{where}.{key}")
            plain = figures.get("realisation") == "plain"
            yield "not compensated" if plain else name, _real(figures, "perplexity", f"{where}.{key}")


def _base_units(raw: object, seen: Sequence[Architecture], where: str) -> tuple[dict[str, tuple[int, ...]], bool]:
    if not seen:
        return {}, False
    layers = seen[0].layers
    if any(len(architecture.layers) != len(layers) for architecture in seen):
        raise UserError(f"{where.split(':')[0]}: architectures of different depth in one run")
    given = mapping(raw, where)
    units: dict[str, tuple[int, ...]] = {}
    known = bool(given)
    for key in UNITS:
        has = [any(key in dict(a.layers[i].kept) for a in seen) for i in range(len(layers))]
        if not any(has):
            continue
        counts = _counts_of(given, key, [layer.stack for layer in layers], has, where)
        if counts is None:
            known = False
            counts = [max(dict(a.layers[i].kept).get(key, 0) for a in seen) for i in range(len(layers))]
        units[key] = tuple(counts)
    return units, known


def _counts_of(
    given: Mapping[str, Any], key: str, stacks: Sequence[str], has: Sequence[bool], where: str
) -> list[int] | None:
    """The base's counts of one unit per layer, from a list per unit or, in stacks, from a list in each."""
    values: list[Any] = []
    if key in given:
        values = list(_sequence(given[key], f"{where}.{key}"))
    elif any(stack in given for stack in stacks if stack):
        for stack in dict.fromkeys(stacks):
            part = mapping(given.get(stack), f"{where}.{stack}").get(key)
            values += _sequence(part, f"{where}.{stack}.{key}") if part else [0] * stacks.count(stack)
    if not values:
        return None
    if len(values) == sum(has) != len(has):  # only the layers that have this unit are listed
        rest = iter(values)
        values = [next(rest) if h else 0 for h in has]
    if len(values) != len(has):
        raise UserError(f"{where}.{key}: {len(values)} entries, but the model has {len(has)} layers")
    if any(isinstance(v, bool) or not isinstance(v, int | None) for v in values):
        raise UserError(f"{where}.{key}: entries must be whole numbers")
    return [v or 0 for v in values]


def _kept(raw: object, where: str) -> dict[str, tuple[tuple[int, ...] | None, ...]]:
    return {
        key: tuple(
            None if ids is None else tuple(int(i) for i in _sequence(ids, f"{where}.{key}"))
            for ids in _sequence(lists, f"{where}.{key}")
        )
        for key, lists in mapping(raw, where).items()
    }


def _ratios(raw: object, where: str) -> Ratios:
    return tuple(_real({"value": value}, "value", where) for value in _sequence(raw, where))


def _sequence(value: object, where: str) -> Sequence[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f"{where}: expected a list, found {type(value).__name__}")
    return value


def _real(data: Mapping[str, Any], key: str, where: str) -> float | None:
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{where}: '{key}' must be a number, found {value!r}")
    return float(value) if math.isfinite(value) else None


def _whole(data: Mapping[str, Any], key: str, where: str) -> int | None:
    value = _real(data, key, where)
    return None if value is None else round(value)
