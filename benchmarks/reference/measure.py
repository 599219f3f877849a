"""Cells of the table of rivals that are not measured yet, one at a time.

    python benchmarks/reference/measure.py MODEL --data TEXT --text NAME=TEXT [--text …] --journal FILE.jsonl
        --work DIR [--rows NAME …] [--budgets 75%] [--seeds 0] [--windows 32] [--length 2048] [--limit N]
        [--dtype bf16] [--threads 1]

A cell is (method, model, budget, seed, form, text): the mean loss of every window of the text, the perplexity, the
parameters that are left, CPU seconds, machine. Every cell is a line of the journal as soon as it is measured: start
the command again and it goes on, also on another machine. What methods have selected waits under `--work`; what is
not there is selected again. `benchmarks/reference/compare.py` writes the table.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from candidates import Candidate
from cells import Cells, model_name
from contestants import CONTESTANTS
from machine import facts
from setting import AIM, SAMPLES, SEQ_LEN, STATISTICS, Clock, Setting

from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source

DENSE = "dense"
FIELDS = ("model", "budget", "seed", "method", "form", "text")


class Measurement:
    """The cells that were asked for; one setting and one candidate are in memory at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.name = args, model_name(args.model)
        self.texts = dict(pair.split("=", 1) for pair in args.text)
        self.protocol = {
            "data": Path(args.data).name,
            "texts": {name: Path(path).name for name, path in self.texts.items()},
            **{key: getattr(args, key) for key in ("windows", "length", "dtype")},
            "calibration": f"{SAMPLES} and {STATISTICS} × {SEQ_LEN} tokens",
            "refit": f"sequential, ridge {AIM.ridge:g} of every channel, drift {AIM.drift:g}",
        }
        self._check_rows()
        self.cells = Cells(args.journal, FIELDS)
        for record in self.cells.where(model=self.name):
            if record["protocol"] != self.protocol:
                raise UserError(f"{args.journal}: measured as {record['protocol']}, not as {self.protocol}")
        self._setting: Setting | None = None
        self._candidate: Candidate | None = None
        self._of: tuple[Any, ...] = ()

    def _check_rows(self) -> None:
        accepted = (DENSE, *CONTESTANTS)
        if unknown := [name for name in self.args.rows if name not in accepted]:
            raise UserError(f"--rows '{unknown[0]}': no such row; accepted: {', '.join(accepted)}")
        source = open_source(self.args.model)
        for name in self.args.rows:
            if name != DENSE:
                source.require_decoder(f"rival {name}")
                CONTESTANTS[name].check(source)

    def wanted(self) -> Iterator[dict[str, Any]]:
        """The cells that were asked for: refitted ones of all rows, then plain ones, row by row."""
        for text in self.texts if DENSE in self.args.rows else ():
            yield self._cell("100%", self.args.seeds[0], DENSE, "own", text)
        rows = [name for name in self.args.rows if name != DENSE]
        for seed, budget, forms in itertools.product(
            self.args.seeds, self.args.budgets, (("refitted", "own"), ("plain",))
        ):
            for method in rows:
                for form, text in itertools.product(CONTESTANTS[method].forms, self.texts):
                    if form in forms:
                        yield self._cell(budget, seed, method, form, text)

    def _cell(self, budget: str, seed: int, method: str, form: str, text: str) -> dict[str, Any]:
        return {"model": self.name, **dict(zip(FIELDS[1:], (budget, seed, method, form, text), strict=True))}

    def measure(self, cell: dict[str, Any]) -> dict[str, Any]:
        """What a cell holds."""
        setting, form = self._set(cell["seed"]), cell["form"]
        if cell["method"] == DENSE:
            self._let_go()
            clock = Clock()
            losses, cost = setting.losses(setting.loaded.model, cell["text"]), {}
            parameters = self._dense_parameters(setting)
        else:
            candidate = self._made(setting, cell)
            with candidate.realised(form) as model:
                clock = Clock()
                losses = setting.losses(model, cell["text"])
            parameters, cost = candidate.parameters, candidate.seconds(form)
        mean = sum(losses) / len(losses)
        return {
            "losses": losses,
            "nll": mean,
            "perplexity": math.exp(mean) if mean < 700 else None,
            "parameters": parameters,
            "cpu_seconds": {**cost, "evaluate": clock.seconds},
            "load": Clock.load(),
            "protocol": self.protocol,
            **facts(),
        }

    def _dense_parameters(self, setting: Setting) -> int:
        space = setting.target("uniform", "75%").space
        return space.parameters(space.base)

    def _set(self, seed: int) -> Setting:
        if self._setting is None or self._setting.seed != seed:
            self._let_go()
            args, work = self.args, self.args.work / f"{self.name}-{seed}"
            work.mkdir(parents=True, exist_ok=True)
            self._setting = Setting(
                args.model, args.data, self.texts, seed, args.windows, args.length, args.dtype, args.threads, work
            )
        return self._setting

    def _made(self, setting: Setting, cell: dict[str, Any]) -> Candidate:
        """The candidate of a cell's row; that of the row before is let go."""
        of = (setting.seed, cell["budget"], cell["method"])
        if self._of != of or self._candidate is None:
            self._let_go()
            name = f"{cell['method'].replace(', ', '-').replace(' ', '-')}-{cell['budget'].rstrip('%')}.safetensors"
            self._candidate = CONTESTANTS[cell["method"]].make(setting, cell["budget"], setting.work / name)
            self._of = of
        return self._candidate

    def _let_go(self) -> None:
        if self._candidate is not None:
            self._candidate.close()
        self._candidate = None


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="calibration text")
    parser.add_argument("--text", action="append", required=True, metavar="NAME=TEXT", help="held-out text")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="directory for what methods select")
    parser.add_argument("--rows", nargs="+", metavar="NAME", default=[DENSE, *CONTESTANTS])
    parser.add_argument("--budgets", nargs="+", default=["75%"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a window")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="stop after so many new cells")
    args = parser.parse_args()
    if wrong := [pair for pair in args.text if "=" not in pair]:
        parser.error(f"--text '{wrong[0]}': expected NAME=TEXT")
    return args


def main() -> None:
    """Measure what is missing."""
    args = arguments()
    try:
        measurement = Measurement(args)
        measurement.cells.fill(measurement.wanted(), measurement.measure, args.limit)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
