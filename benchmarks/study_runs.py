"""The proxy studies behind docs/study.md: which proxies order architectures as their recovered quality does.

    python benchmarks/study_runs.py --work DIR --model babyllama PATH TEXT HELD_OUT --model demo PATH TEXT HELD_OUT …
        [--across babyllama] [--long babyllama demo] [--ablation babyllama] [--set KEY=VALUE …] [--only WORDS …]
        [--limit RUNS] [--out FILE.json] [--markdown FILE.md]

Every run is a directory WORK/MODEL-…, resumable at any architecture: start the same command again and it goes on.
The runs come in an order that makes the tables useful early: first every model at 60 %, then the other budgets, then
across sizes, then ten times longer recovery with three orders of the training data, then ablations. `--limit 0` only
collects what is finished. `--only 60 babyllama` restricts the runs to those whose names hold all these words.
"""

import argparse
import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cells import pairs
from machine import facts

import tracenas
from tracenas.rundir import read_json, write_json
from tracenas.study.tables import StudyTable, interval, markdown, number

BUDGETS = ("60%", "50%", "75%", "40%")


class Runs:
    """The list of runs and what has become of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.models = {given[0]: given[1:] for given in args.model}
        for name, rest in self.models.items():
            if len(rest) != 3:
                raise SystemExit(f"--model {name}: expected NAME PATH TEXT HELD_OUT")
        for name in (*args.across, *args.long, *args.ablation):
            if name not in self.models:
                raise SystemExit(f"'{name}' is no --model; there are: {', '.join(self.models)}")
        self.settings = {"architectures": args.architectures, "steps": args.steps, **pairs(args.set, numbers=False)}

    def wanted(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Directory name, model, and the run's own settings; those of an ablation hold `study`."""
        for params in BUDGETS:
            for name in self.models:
                yield f"{name}-{params.rstrip('%')}", name, {"params": params}
        for name in self.args.across:
            yield f"{name}-across", name, {"across_sizes": True, "architectures": self.args.across_architectures}
        for name in self.args.long:
            more = {"params": "60%", "long_steps": 10 * self.args.steps, "seeds": 3}
            yield f"{name}-60-long", name, more
        for name in self.args.ablation:
            for proxy in self.args.ablation_proxies:
                own = {"study": self.args.work / f"{name}-60", "proxy": proxy}
                yield f"{name}-60-ablation-{proxy}", name, own

    def run(self) -> None:
        """What is missing, `--limit` runs at most."""
        left = math.inf if self.args.limit is None else self.args.limit
        for place, name, own in self.wanted():
            out = self.args.work / place
            if left <= 0 or not all(word in place.split("-") for word in self.args.only):
                continue
            if (out / ("ablation.json" if "study" in own else "study.json")).is_file():
                continue
            path, data, held_out = self.models[name]
            if "study" in own:
                kept = {k: v for k, v in self.settings.items() if k in ("samples", "seq_len", "seed", "threads")}
                tracenas.ablation(path, data=data, out=out, resume=True, **{**kept, **own})
            else:
                tracenas.study(path, data=data, eval_text=held_out, out=out, resume=True, **{**self.settings, **own})
            left -= 1
            print(json.dumps({"done": place}), flush=True)

    def finished(self) -> dict[str, dict[str, Any]]:
        """Results of the finished studies by directory name, ablations apart."""
        found = {}
        for place, _, own in self.wanted():
            path = self.args.work / place / "study.json"
            if "study" not in own and path.is_file():
                found[place] = read_json(path)
        return found

    def ablations(self) -> dict[str, str]:
        """Tables of the finished ablations, as Markdown."""
        found = {}
        for place, _, own in self.wanted():
            path = self.args.work / place / "ablation.md"
            if "study" in own and path.is_file():
                found[place] = path.read_text(encoding="utf-8")
        return found


def summary(studies: dict[str, dict[str, Any]]) -> StudyTable:
    """ρ of every proxy with every study's main target; the lowest and the mean over the studies within a budget."""
    names = list(dict.fromkeys(row["name"] for found in studies.values() for row in found["proxies"]))
    within = [place for place, found in studies.items() if found["within_budget"]]
    rows = []
    for name in names:
        values = {place: _cell(found, name) for place, found in studies.items()}
        known = [v for p in within if (cell := values[p]) is not None and (v := cell["rho"]["value"]) is not None]
        cells = [interval(v["rho"]) if v is not None else number(None) for v in values.values()]
        mean, least = (statistics.mean(known), min(known)) if known else (None, None)
        rows.append((mean, (name, number(mean), number(least), *cells)))
    rows.sort(key=lambda row: -math.inf if row[0] is None else row[0], reverse=True)
    columns = ("proxy", "mean within a budget", "lowest", *studies)
    return StudyTable("Spearman ρ with the recovered loss", columns, tuple(row for _, row in rows))


def regrets(studies: dict[str, dict[str, Any]]) -> StudyTable:
    """Loss of every proxy's first choice above uniform's, nats per token."""
    within = {place: found for place, found in studies.items() if found["within_budget"]}
    names = list(dict.fromkeys(row["name"] for found in within.values() for row in found["proxies"]))
    rows = []
    for name in names:
        cells = [_cell(found, name) for found in within.values()]
        values = [c["regret"]["to_uniform"] if c is not None and c["regret"] is not None else None for c in cells]
        known = [v for v in values if v is not None]
        mean = statistics.mean(known) if known else math.inf
        rows.append((mean, (name, number(mean if known else None, 4), *(number(v, 4) for v in values))))
    rows.sort(key=lambda row: row[0])
    best = []
    for found in within.values():
        target = next(t for t in found["targets"] if t["name"] == found["main_target"])
        missing = target["best"] is None or target["uniform"] is None
        best.append(None if missing else target["best"] - target["uniform"])
    rows.append((math.inf, ("best of the pool", number(None), *(number(v, 4) for v in best))))
    title = "First choice's recovered loss minus uniform's, nats per token"
    return StudyTable(title, ("proxy", "mean", *within), tuple(row for _, row in rows))


def _cell(found: dict[str, Any], proxy: str) -> dict[str, Any] | None:
    row = next((r for r in found["proxies"] if r["name"] == proxy), None)
    return None if row is None else row["targets"][found["main_target"]]


def page(studies: dict[str, dict[str, Any]], ablations: dict[str, str]) -> str:
    """All tables as Markdown: the comparison of the studies, each study, each ablation."""
    parts = [f"**{t.title}**\n\n{t.markdown()}" for t in (summary(studies), regrets(studies))] if studies else []
    parts += [markdown({**found, "title": place}, "###") for place, found in studies.items()]
    parts += [f"### {place}\n\n{text}" for place, text in ablations.items()]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run what is missing, then collect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="directory of the studies")
    parser.add_argument("--model", nargs="+", action="append", required=True, metavar="NAME PATH TEXT HELD_OUT")
    parser.add_argument("--across", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--across-architectures", type=int, default=70)
    parser.add_argument("--long", nargs="*", default=[], metavar="NAME", help="ten times the steps, three orders")
    parser.add_argument("--ablation", nargs="*", default=[], metavar="NAME")
    parser.add_argument("--ablation-proxies", nargs="*", default=["phi", "loss_compensated"], metavar="PROXY")
    parser.add_argument("--architectures", type=int, default=24)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further settings of every study")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args()
    runs = Runs(args)
    runs.run()
    studies, ablations = runs.finished(), runs.ablations()
    result = {"benchmark": "study_runs", "machine": facts(), "settings": runs.settings, "studies": studies}
    if args.out is not None:
        write_json(args.out, result)
    if args.markdown is not None:
        args.markdown.write_text(page(studies, ablations), encoding="utf-8")
    print(page(studies, ablations))


if __name__ == "__main__":
    main()
