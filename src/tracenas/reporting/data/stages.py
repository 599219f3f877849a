"""What the stages after a search left in a run directory: compensation, recoveries, evaluations, benchmarks, answers.

Files by name: RUN/pruned.json or the summary's `checkpoint` (prune --json), RUN/recovered*/, RUN/rivals/*/recovered*/
and RUN/checkpoints/*/recovered*/ (recover --out), RUN/evaluation*.json (eval --out), RUN/bench*.json (bench --out),
RUN/published-model.json (demo); the summary's `checkpoints` are those of a front.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.reporting.data.reading import Fields, mapping, read_object
from tracenas.reporting.labels import model_kind
from tracenas.settings import read_settings

__all__ = ["PUBLISHED_MODEL", "Checkpoint", "Measured", "Recovery", "Stages"]

Object = Mapping[str, Any]

PUBLISHED_MODEL = "published-model.json"
"""In the run directory of a demo on a published model: answers, perplexity, plan."""

_PUBLISHED = {
    "answers": {"prompt", "base", "pruned", "recovered"},
    "perplexity": {"name", "params", "before", "after"},
}


@dataclass(frozen=True)
class Recovery:
    """A finished or running recovery.

    Args:
        name: `found`, the rival's name or a front's size; with the directory's, where there are several of one.
        result: recovery.json; empty while it is running.
        records: log.jsonl.
        settings: recover.yaml.
    """

    name: str
    result: Object
    records: tuple[Object, ...]
    settings: Object

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of the log's records that have a finite value under `key`."""
        return [(int(r["step"]), float(r[key])) for r in self.records if _is_number(r.get(key)) and "step" in r]


@dataclass(frozen=True)
class Measured:
    """Results of eval or bench: a row per model, and what they have in common.

    Args:
        names: short names of the models, in the rows' order.
    """

    file: str
    names: tuple[str, ...]
    rows: tuple[Object, ...]
    setting: Object


@dataclass(frozen=True)
class Checkpoint:
    """A row of a front's checkpoints, or of the base beside them.

    Args:
        size: as it was asked for, or `base`.
        cost: of the front's first cost.
        place: in the run's directory of checkpoints, `SIZE/pruned` or `SIZE/recovered`; empty of the base.
        row: what is known of it beside that.
    """

    size: str
    cost: float | None
    place: str
    row: Fields

    @property
    def perplexity(self) -> float | None:
        """As it was written."""
        return self.row.number("perplexity")

    @property
    def recovered(self) -> float | None:
        """Perplexity after recovery."""
        return self.row.fields("recovered").number("perplexity")

    @property
    def decoding(self) -> float | None:
        """Milliseconds per token, the median at the first batch size."""
        return self._timed.fields("tpot_ms").number("median")

    @property
    def speedup(self) -> float | None:
        """Of decoding over the base, likewise."""
        return self._timed.fields("decode_speedup").number("median")

    @property
    def _timed(self) -> Fields:
        where = self.row.place("bench")
        return Fields(mapping(next(iter(self.row.items("bench")), None), where), where)


@dataclass(frozen=True)
class Stages:
    """Everything that the stages after the search left.

    Args:
        choice: which realisation was written (`written`), and the held-out `losses` of those that were compared.
        scored: how the found candidate was realised when it was scored, `realisation` and `ridge` among others.
        published: what a demo on a published model wrote, `answers`, `perplexity` and `plan`; or nothing.
        checkpoints: of a front, the base first; `cost` is the name of what sizes are of.
    """

    compensation: Object
    choice: Object = field(default_factory=dict)
    scored: Object = field(default_factory=dict)
    recoveries: tuple[Recovery, ...] = ()
    evaluations: tuple[Measured, ...] = ()
    benches: tuple[Measured, ...] = ()
    published: Object = field(default_factory=dict)
    checkpoints: tuple[Checkpoint, ...] = ()
    cost: str = ""

    @classmethod
    def read(cls, run: Path) -> "Stages":
        """Read what is there.

        Raises:
            UserError: for a corrupt file, by name.
        """
        summary = read_object(run / "summary.json")
        checkpoint = _optional(read_object(run / "pruned.json") or summary.get("checkpoint"))
        best = run / "best.json"
        base = str(summary.get("model") or "")
        cost, checkpoints = _checkpoints(Fields(summary, str(run / "summary.json")))
        sizes = {one.place.partition("/")[0]: one.size for one in checkpoints if one.place}
        return cls(
            compensation=_optional(checkpoint.get("compensation")),
            choice=_optional(checkpoint.get("choice")),
            scored=mapping(read_object(best).get("provenance"), f"{best}: provenance"),
            recoveries=_recoveries(run, sizes),
            evaluations=_all_measured(run, "evaluation*.json", "results", "settings", base, sizes),
            benches=_all_measured(run, "bench*.json", "models", "setting", base, sizes),
            published=_published(run / PUBLISHED_MODEL),
            checkpoints=checkpoints,
            cost=cost,
        )


def _optional(value: object) -> Object:
    """An object; an empty one where there is something else, such as what an older version wrote."""
    return value if isinstance(value, Mapping) else {}


def _checkpoints(summary: Fields) -> tuple[str, tuple[Checkpoint, ...]]:
    """The name of a front's first cost, and what the run has written of it."""
    rows = [Fields(mapping(row, summary.place("checkpoints")), "checkpoints") for row in summary.items("checkpoints")]
    if not rows:
        return "", ()
    cost = str(next(iter(summary.fields("front").items("costs")), ""))
    return cost, tuple(
        Checkpoint(row.text("size") or "", row.fields("costs").number(cost), _place(row), row) for row in rows
    )


def _place(row: Fields) -> str:
    """Where a checkpoint is, whether the run has been moved or not; the recovered one if there is one."""
    path = row.fields("recovered").text("path") or row.text("path")
    return "" if path is None else "/".join(Path(path).parts[-2:])


def _recoveries(run: Path, sizes: Mapping[str, str]) -> tuple[Recovery, ...]:
    """Of the found architecture and its rivals, or of the sizes of a front, in their order."""
    homes = [("found", run), *((p.name.replace("-", " "), p) for p in sorted((run / "rivals").glob("*")))]
    homes += [(size, run / "checkpoints" / folder) for folder, size in sizes.items()]
    recoveries = []
    for architecture, home in homes:
        directories = sorted(d for d in home.glob("recovered*") if (d / "log.jsonl").is_file())
        for directory in directories:
            name = architecture if len(directories) == 1 else f"{architecture} ({directory.name})"
            records = tuple(Journal(directory / "log.jsonl").read())
            settings = read_settings(directory / "recover.yaml", required=False)
            recoveries.append(Recovery(name, read_object(directory / "recovery.json"), records, settings))
    return tuple(sorted(recoveries, key=lambda r: (model_kind(r.name) != "found", model_kind(r.name) != "uniform")))


def _all_measured(
    run: Path, files: str, key: str, common: str, base: str, sizes: Mapping[str, str]
) -> tuple[Measured, ...]:
    return tuple(_measured(path, key, common, base, sizes) for path in sorted(run.glob(files)))


def _measured(path: Path, key: str, common: str, base: str, sizes: Mapping[str, str]) -> Measured:
    data = read_object(path)
    rows = data.get(key)
    if not isinstance(rows, list) or not rows or not all(isinstance(r, Mapping) and "model" in r for r in rows):
        raise UserError(f"{path}: no results of models under '{key}'")
    names = _short_names([str(row["model"]) for row in rows], path.parent, base, sizes)
    return Measured(path.name, names, tuple(rows), _optional(data.get(common)))


def _published(path: Path) -> Object:
    published = read_object(path)
    if not published:
        return {}
    for key, columns in _PUBLISHED.items():
        rows = published.get(key)
        if not isinstance(rows, list) or not all(isinstance(r, Mapping) and columns <= r.keys() for r in rows):
            raise UserError(f"{path}: '{key}' must be a list of objects with {', '.join(sorted(columns))}")
    plan = mapping(published.get("plan"), f"{path}: plan")
    for key in ("estimate_seconds", "actual_seconds"):
        if key not in plan:
            raise UserError(f"{path}: plan: no '{key}' in it")
        mapping(plan[key], f"{path}: plan.{key}")
    return published


def _short_names(models: Sequence[str], run: Path, base: str, sizes: Mapping[str, str]) -> tuple[str, ...]:
    """`base`, `pruned`, `recovered`, `uniform recovered`, `60% recovered`; other models by the last part of their path.

    Args:
        sizes: of a front's checkpoints, by their directories.
    """
    names = []
    for model in models:
        parts = Path(model).parts
        if model == base:
            names.append("base")
        elif len(parts) > 3 and parts[-3] == "checkpoints" and parts[-2] in sizes:
            names.append(f"{sizes[parts[-2]]} {parts[-1]}")
        elif run.name in parts[:-1]:
            inside = parts[len(parts) - 1 - parts[::-1].index(run.name) + 1 :]
            names.append(" ".join(p.replace("-", " ") for p in inside if p != "rivals"))
        else:
            names.append(Path(model).name or model)
    return tuple(names) if len(set(names)) == len(names) else tuple(models)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
