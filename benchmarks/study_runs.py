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
from tracenas.formats import fixed
from tracenas.rundir import read_json, write_json
from tracenas.studies.tables import interval, markdown
from tracenas.tables import Table

BUDGETS = ("60%", "50%", "75%", "40%")
REFERENCE = "phi"
_REFITTED = ("loss_compensated", "kl_compensated", "phi_compensated", "few_steps_compensated")
SHOWN = (*_REFITTED, "fisher", "loss", "pruner_zero", "phi")
"""Proxies of the tables study by study; the others are in the figure."""


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
        return dict(sorted(found.items()))

    def ablations(self) -> dict[str, Path]:
        """Directories of the finished ablations."""
        places = [self.args.work / place for place, _, own in self.wanted() if "study" in own]
        return {place.name: place for place in places if (place / "ablation.json").is_file()}


def summary(studies: dict[str, dict[str, Any]]) -> Table:
    """Every proxy over the studies within a budget: mean and lowest ρ with the main target, and what it loses.

    *Apart*: in how many studies its 95 % interval of ρ lies above that of Φ as published, and below it. *First choice*:
    its loss after recovery minus uniform's and minus the pool's best, nats per token, means.
    """
    within = [found for found in studies.values() if found["within_budget"]]
    names = list(dict.fromkeys(row["name"] for found in within for row in found["proxies"]))
    rows = []
    for name in names:
        cells = [(c, _cell(found, REFERENCE)) for found in within if (c := _cell(found, name)) is not None]
        known = [c["rho"]["value"] for c, _ in cells if c["rho"]["value"] is not None]
        mean, least = (statistics.mean(known), min(known)) if known else (None, None)
        both = [(c["rho"], r["rho"]) for c, r in cells if r is not None]
        both = [(c, r) for c, r in both if c["low"] is not None and r["low"] is not None]
        apart = f"{sum(c['low'] > r['high'] for c, r in both)} / {sum(c['high'] < r['low'] for c, r in both)}"
        regrets = [c["regret"] for c, _ in cells if c["regret"] is not None]
        losses = [[r[k] for r in regrets if r[k] is not None] for k in ("to_uniform", "to_best")]
        means = [fixed(statistics.mean(v) if v else None, 3) for v in losses]
        worse = sum(v > 0 for v in losses[0])
        row = (name, fixed(mean), fixed(least), apart, *means, f"{worse} of {len(losses[0])}")
        rows.append((-math.inf if mean is None else mean, row))
    rows.sort(key=lambda row: row[0], reverse=True)
    columns = ("proxy", "ρ, mean", "lowest", "above / below Φ", "− uniform", "− best", "worse than uniform")
    return Table(f"{len(within)} studies within a budget", columns, tuple(row for _, row in rows))


def by_study(studies: dict[str, dict[str, Any]]) -> Table:
    """ρ [95 %] of the proxies that matter, study by study."""
    rows = []
    for place, found in studies.items():
        cells = [_cell(found, name) for name in SHOWN]
        rows.append((place, *(fixed(None) if c is None else interval(c["rho"]) for c in cells)))
    return Table("Spearman ρ with the recovered loss", ("study", *SHOWN), tuple(rows))


def first_choices(studies: dict[str, dict[str, Any]]) -> Table:
    """The recovered loss of uniform, and how much is added to it by each proxy's first choice and the pool's best."""
    rows = []
    for place, found in studies.items():
        target = next(t for t in found["targets"] if t["name"] == found["main_target"])
        if not found["within_budget"] or target["uniform"] is None:
            continue
        cells = [_cell(found, name) for name in SHOWN]
        over = [None if c is None or c["regret"] is None else c["regret"]["to_uniform"] for c in cells]
        figures = (target["best"] - target["uniform"], *over)
        rows.append((place, fixed(target["uniform"], 3), *(fixed(v, 3) for v in figures)))
    title = "Recovered loss of uniform, and what the first choice adds to it, nats per token"
    return Table(title, ("study", "uniform", "best of the pool", *SHOWN), tuple(rows))


def _cell(found: dict[str, Any], proxy: str) -> dict[str, Any] | None:
    row = next((r for r in found["proxies"] if r["name"] == proxy), None)
    return None if row is None else row["targets"][found["main_target"]]


def _rounded(value: Any) -> Any:
    """Five significant digits, and names instead of a machine's paths: people and tools compare the file."""
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items() if k != "provenance"}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, str) and value.startswith(("/", "..")):
        return Path(value).name
    return float(f"{value:.5g}") if isinstance(value, float) else value


def page(studies: dict[str, dict[str, Any]], ablations: dict[str, Path]) -> str:
    """All tables as Markdown: the comparison of the studies, each study, each ablation."""
    tables = (summary(studies), by_study(studies), first_choices(studies)) if studies else ()
    parts = [f"**{t.title}**\n\n{t.markdown()}" for t in tables]
    parts += [markdown({**found, "title": place}, "###") for place, found in studies.items()]
    texts = {name: (place / "ablation.md").read_text(encoding="utf-8") for name, place in ablations.items()}
    parts += [f"### {name}\n\n{text}" for name, text in texts.items()]
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
    result = {"benchmark": "study_runs", "machine": facts(), "settings": runs.settings, "studies": _rounded(studies)}
    result["ablations"] = {name: _rounded(read_json(place / "ablation.json")) for name, place in ablations.items()}
    if args.out is not None:
        write_json(args.out, result)
    if args.markdown is not None:
        args.markdown.write_text(page(studies, ablations), encoding="utf-8")
    print(page(studies, ablations))


if __name__ == "__main__":
    main()
