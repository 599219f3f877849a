"""What a study found: study.json, the tables on the terminal and in study.md, and the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.commands.study.combinations import with_combination
from tracenas.commands.study.plan import StudyPlan
from tracenas.config import StudyConfig
from tracenas.proxies.combination import Choice
from tracenas.reporting.pages.study import write_study_report
from tracenas.reporting.terminal import Outcome, Table, to_plain
from tracenas.rundir import REPORT, atomic_path, write_json
from tracenas.space.search_space import SearchSpace
from tracenas.studies.tables import all_tables, analyse, markdown, undefined

__all__ = ["MARKDOWN", "STUDY", "StudyOutcome", "summarise", "write_results"]

STUDY, MARKDOWN = "study.json", "study.md"
_PROTOCOL_KEYS = (
    "seed",
    "data",
    "samples",
    "seq_len",
    "compensate_samples",
    "ridge",
    "rank",
    "saliency",
    "text",
    "windows",
    "starts",
    "steps",
    "long_steps",
    "seeds",
    "recover_batch",
    "recover_seq_len",
    "learning_rate",
    "tolerance",
    "dtype",
    "threads",
)


@dataclass(frozen=True)
class StudyOutcome(Outcome):
    """Where a finished study is and what it found.

    Args:
        path: its directory.
        results: what study.json says.
    """

    path: Path
    results: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"study": str(self.path), "report": str(self.path / REPORT), **self.results}

    def records(self) -> list[dict[str, Any]]:
        """What was found of every proxy."""
        return list(self.results["proxies"])

    def tables(self) -> list[Table]:
        """Every one of the study."""
        return list(all_tables(self.results))

    def show(self) -> None:
        """The tables on stdout."""
        print(f"{self.results['title']}. {self.results['protocol']}")
        super().show()
        for note in (*undefined(self.results), *_failures(self.results)):
            print(note)
        print(f"results {self.path / STUDY}\ntables  {self.path / MARKDOWN}\nreport  {self.path / REPORT}")


def _failures(results: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['name']} failed on {f['count']} of {results['architectures']}: {f['reason']}"
        for row in results["proxies"]
        for f in row["failures"]
    ]


def summarise(
    config: StudyConfig,
    space: SearchSpace,
    plan: StudyPlan,
    costs: Mapping[str, float],
    records: Sequence[Mapping[str, Any]],
    *,
    setup_seconds: float,
    settings: Mapping[str, Any],
    combinations: Sequence[Choice] = (),
) -> dict[str, Any]:
    """Everything that study.json says, provenance apart.

    Args:
        costs: proxy → seconds on one architecture.
        settings: as config.yaml has them.
        combinations: judged beside the proxies, their ranks taken in the pool.
    """
    for choice in combinations:
        records, costs = with_combination(records, costs, choice)
    base = space.parameters(space.base)
    sizes = [int(r["params"]) for r in records]
    kinds = [r["kind"] for r in records]
    within = not config.across_sizes
    shares = f"{100 * min(sizes) / base:.1f} to {100 * max(sizes) / base:.1f} %"
    where = f"within {config.params}" if within else f"across sizes, {shares}"
    drawn = ", ".join(f"{kinds.count(k)} {k}" for k in ("uniform", "random", "mutation") if k in kinds)
    recovery = f"recovery of {' and '.join(map(str, plan.marks))} steps" if plan.marks else "no recovery"
    batch = f" of {plan.batch} sequences, learning rate {config.learning_rate:g}" if plan.marks else ""
    orders = f", mean of {plan.seeds} orders of the training data" if plan.seeds > 1 else ""
    name = Path(config.model).name if Path(config.model).is_dir() else config.model
    return {
        "title": f"{name} {where}",
        "protocol": f"{len(records)} architectures ({drawn}), {shares} of {base:,} parameters; held-out loss on "
        f"{Path(config.text).name} in nats per token; {recovery}{batch}{orders}. Intervals: 95 %, bootstrap over "
        f"architectures, {config.resamples} resamples.",
        "model": config.model,
        "within_budget": within,
        "params": config.params,
        "base_params": base,
        "architectures": len(records),
        "settings": {k: settings[k] for k in _PROTOCOL_KEYS if k in settings},
        "main_target": config.target or plan.main,
        **analyse(records, costs, plan.targets(), seed=config.seed, resamples=config.resamples, within_budget=within),
        "combined": {c.text: {r["id"]: r["scores"][c.text] for r in records} for c in combinations},
        "seconds": _seconds(records, setup_seconds),
    }


def _seconds(records: Sequence[Mapping[str, Any]], setup: float) -> dict[str, Any]:
    targets: dict[str, float] = {}
    for record in records:
        for name, measured in record["targets"].items():
            targets[name] = targets.get(name, 0.0) + measured["seconds"]
    return {
        "setup": setup,
        "scores": sum(r["seconds"]["scores"] for r in records),
        "targets": sum(r["seconds"]["targets"] for r in records),
        "by_target": targets,
    }


def write_results(out: Path, results: dict[str, Any]) -> None:
    """study.json, study.md and report.html."""
    write_json(out / STUDY, to_plain(results))
    with atomic_path(out / MARKDOWN) as temporary:
        temporary.write_text(markdown(results), encoding="utf-8")
    write_study_report(out)
