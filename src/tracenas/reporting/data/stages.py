"""What the stages after a search left in a run directory: compensation, recoveries, evaluations, benchmarks, answers.

Files by name: RUN/pruned.json or the summary's `checkpoint` (prune --json), RUN/recovered*/ and
RUN/rivals/*/recovered*/ (recover --out), RUN/evaluation*.json (eval --out), RUN/bench*.json (bench --out),
RUN/published-model.json (demo).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.reporting.data.reading import mapping, read_object
from tracenas.reporting.labels import model_kind
from tracenas.settings import read_settings

__all__ = ["PUBLISHED_MODEL", "Measured", "Recovery", "Stages"]

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
        name: `found`, or the rival's name; with the directory's, where there are several of one architecture.
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
class Stages:
    """Everything that the stages after the search left.

    Args:
        choice: which realisation was written (`written`), and the held-out `losses` of those that were compared.
        scored: how the found candidate was realised when it was scored, `realisation` and `ridge` among others.
        published: what a demo on a published model wrote, `answers`, `perplexity` and `plan`; or nothing.
    """

    compensation: Object
    choice: Object = field(default_factory=dict)
    scored: Object = field(default_factory=dict)
    recoveries: tuple[Recovery, ...] = ()
    evaluations: tuple[Measured, ...] = ()
    benches: tuple[Measured, ...] = ()
    published: Object = field(default_factory=dict)

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
        return cls(
            compensation=_optional(checkpoint.get("compensation")),
            choice=_optional(checkpoint.get("choice")),
            scored=mapping(read_object(best).get("provenance"), f"{best}: provenance"),
            recoveries=_recoveries(run),
            evaluations=_all_measured(run, "evaluation*.json", "results", "settings", base),
            benches=_all_measured(run, "bench*.json", "models", "setting", base),
            published=_published(run / PUBLISHED_MODEL),
        )


def _optional(value: object) -> Object:
    """An object; an empty one where there is something else, such as what an older version wrote."""
    return value if isinstance(value, Mapping) else {}


def _recoveries(run: Path) -> tuple[Recovery, ...]:
    homes = [("found", run), *((p.name.replace("-", " "), p) for p in sorted((run / "rivals").glob("*")))]
    recoveries = []
    for architecture, home in homes:
        directories = sorted(d for d in home.glob("recovered*") if (d / "log.jsonl").is_file())
        for directory in directories:
            name = architecture if len(directories) == 1 else f"{architecture} ({directory.name})"
            records = tuple(Journal(directory / "log.jsonl").read())
            settings = read_settings(directory / "recover.yaml", required=False)
            recoveries.append(Recovery(name, read_object(directory / "recovery.json"), records, settings))
    return tuple(sorted(recoveries, key=lambda r: (model_kind(r.name) != "found", model_kind(r.name) != "uniform")))


def _all_measured(run: Path, files: str, key: str, common: str, base: str) -> tuple[Measured, ...]:
    return tuple(_measured(path, key, common, run, base) for path in sorted(run.glob(files)))


def _measured(path: Path, key: str, common: str, run: Path, base: str) -> Measured:
    data = read_object(path)
    rows = data.get(key)
    if not isinstance(rows, list) or not rows or not all(isinstance(r, Mapping) and "model" in r for r in rows):
        raise UserError(f"{path}: no results of models under '{key}'")
    names = _short_names([str(row["model"]) for row in rows], run, base)
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


def _short_names(models: Sequence[str], run: Path, base: str) -> tuple[str, ...]:
    """`base`, `pruned`, `recovered`, `uniform recovered`; other models by the last part of their path."""
    names = []
    for model in models:
        parts = Path(model).parts
        if model == base:
            names.append("base")
        elif run.name in parts[:-1]:
            inside = parts[len(parts) - 1 - parts[::-1].index(run.name) + 1 :]
            names.append(" ".join(p.replace("-", " ") for p in inside if p != "rivals"))
        else:
            names.append(Path(model).name or model)
    return tuple(names) if len(set(names)) == len(names) else tuple(models)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
