"""What a study reports to its trackers: a point per architecture, and in the end how well each proxy orders them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tracenas.commands.study.results import STUDY, StudyOutcome
from tracenas.reporting.tracking.trackers import Point, Trackers
from tracenas.studies.tables import ranked

__all__ = ["architecture_points", "report_study"]

Records = Sequence[Mapping[str, Any]]


def architecture_points(records: Records) -> Iterator[Point]:
    """Architectures that are done, with scores, targets and time of each."""
    for done, record in enumerate(records, start=1):
        yield (
            done,
            {
                "study/architectures": done,
                "study/params": record["params"],
                "study/seconds": sum(record["seconds"].values()),
                **{f"score/{name}": value for name, value in record["scores"].items()},
                **{f"target/{name}": target["value"] for name, target in record["targets"].items()},
            },
        )


def report_study(trackers: Trackers, outcome: StudyOutcome, records: Records) -> None:
    """Report the architectures that were not, and Spearman's ρ of every proxy with the main target."""
    if not trackers:
        return
    trackers.report(architecture_points(records))
    results, main = outcome.results, outcome.results["main_target"]
    rho = {f"rho/{row['name']}": row["targets"][main]["rho"]["value"] for row in results["proxies"]}
    order = json.dumps([row["name"] for row in ranked(results)])
    trackers.conclude(rho, {"result/target": main, "result/order": order}, outcome.path / STUDY)
