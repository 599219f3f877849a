"""The table of rivals from the cells that are measured: perplexities, and paired differences.

    python benchmarks/reference/compare.py JOURNAL.jsonl [--against ours] [--into DOC.md …]

A difference is the row's loss minus that of the row `--against` on the same windows, nats per token, mean over windows
and over the seeds that both have, ± the standard error over windows of the mean over seeds: above 0, that one is
ahead. A row as the method itself leaves it is compared with that one refitted. `--into` puts the tables between the
markers of documents.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from candidates import FORMS
from contestants import OURS
from family_table import with_table

from tracenas.errors import UserError
from tracenas.formats import fixed
from tracenas.journal import Journal
from tracenas.tables import Table

BEGIN, END = "<!-- rivals: made by benchmarks/reference/compare.py -->", "<!-- end of rivals -->"
TABLES = {"Refitted, or as the method itself leaves it": ("refitted", "own"), "Cut, not refitted": ("plain",)}

Records = Sequence[dict[str, Any]]


def tables(records: Records, against: str) -> list[str]:
    """Two tables for every model and budget, and where their cells were measured."""
    parts = []
    for model in dict.fromkeys(r["model"] for r in records):
        of_model = [r for r in records if r["model"] == model]
        texts = list(dict.fromkeys(r["text"] for r in of_model))
        dense = [r for r in of_model if r["budget"] == "100%"]
        for budget in dict.fromkeys(r["budget"] for r in of_model if r["budget"] != "100%"):
            rows = [r for r in of_model if r["budget"] == budget]
            for title, forms in TABLES.items():
                if lines := _lines(rows, forms, texts, against):
                    first = _lines(dense, ("own",), texts, against) if "own" in forms else []
                    head = ("row", "form", "parameters", "CPU s", *(c for t in texts for c in (t, f"minus {against}")))
                    parts += [f"{model}, {budget} of the parameters. {title}:"]
                    parts += [Table("", head, tuple([*first, *lines])).markdown()]
        parts.append(_notes(of_model))
    return parts


def _lines(records: Records, forms: Sequence[str], texts: Sequence[str], against: str) -> list[tuple[str, ...]]:
    """A line per method and form, best mean loss over texts first, those with missing texts last."""
    found: dict[tuple[str, str], Records] = {}
    for record in records:
        if record["form"] in forms:
            found.setdefault((record["method"], record["form"]), []).append(record)

    def mean(of: Records) -> tuple[int, float]:
        by_text = {r["text"] for r in of}
        return -len(by_text), statistics.mean(r["nll"] for r in of)

    compared = "refitted" if "own" in forms else "plain"
    others = [r for r in records if r["method"] == against and r["form"] == compared]
    lines = []
    for (method, form), of in sorted(found.items(), key=lambda item: mean(item[1])):
        sizes = sorted({r["parameters"] for r in of})
        line = [method, form, " / ".join(f"{size:,}" for size in sizes), _seconds(of)]
        for text in texts:
            cells = [r for r in of if r["text"] == text]
            line.append(", ".join(_perplexity(r["perplexity"]) for r in cells) or fixed(None))
            same = [r for r in others if r["text"] == text and method != against]
            line.append(difference(cells, same))
        lines.append(tuple(line))
    return lines


def difference(row: Records, other: Records) -> str:
    """The paired difference in words, over the seeds that both have; a dash where there is none."""
    losses = {r["seed"]: r["losses"] for r in other}
    pairs = [(r["losses"], losses[r["seed"]]) for r in row if r["seed"] in losses]
    if not pairs:
        return fixed(None)
    by_window = [statistics.mean(a - b for a, b in zip(*column, strict=True)) for column in _columns(pairs)]
    error = statistics.stdev(by_window) / math.sqrt(len(by_window)) if len(by_window) > 1 else math.nan
    return f"{statistics.mean(by_window):+.3f} ± {error:.3f}"


def _columns(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[tuple[list[float], list[float]]]:
    """Per window: the losses of the row and of the other one by seed."""
    rows, others = zip(*pairs, strict=True)
    return [(list(a), list(b)) for a, b in zip(zip(*rows, strict=True), zip(*others, strict=True), strict=True)]


def _seconds(records: Records) -> str:
    """CPU seconds from the loaded model to this form, mean over seeds; a dash where none was measured."""
    by_seed: dict[int, dict[str, float]] = {}
    for record in records:
        steps = {name: s for name, s in record["cpu_seconds"].items() if name != "evaluate"}
        by_seed.setdefault(record["seed"], {}).update(steps)
    whole = [steps for steps in by_seed.values() if steps]
    return fixed(None) if not whole else f"{statistics.mean(sum(s.values()) for s in whole):,.0f}"


def _perplexity(value: float | None) -> str:
    if value is None:
        return "overflow"
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def _notes(records: Records) -> str:
    """Protocol and machines."""
    p = records[0]["protocol"]
    where = dict.fromkeys(f"{r['cpu']}, threads {r['threads']}, torch {r['torch']}, {r['date']}" for r in records)
    loads = [r["load"] for r in records]
    return (
        f"{records[0]['model']}, {p['dtype']}; {p['windows']} windows of {p['length']} tokens of "
        f"{' and '.join(p['texts'].values())}; calibration {p['calibration']} of {p['data']}; refit: {p['refit']}. "
        f"Forms: {'; '.join(f'{name}: {words}' for name, words in FORMS.items())}. Seeds "
        f"{', '.join(map(str, sorted({r['seed'] for r in records})))}. {'; '.join(where)}. Load of the machine "
        f"{min(loads):g} to {max(loads):g}: CPU seconds are not to be compared where it is above the number of cores "
        f"({records[0]['cores']})."
    )


def put(document: Path, text: str) -> None:
    """Write the tables between the markers of a document."""
    written = document.read_text(encoding="utf-8")
    if BEGIN not in written:
        raise UserError(f"--into {document}: expected a line {BEGIN}")
    document.write_text(with_table(written, text, BEGIN, END), encoding="utf-8")


def main() -> None:
    """Print the tables, and put them into documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("journal", type=Path)
    parser.add_argument("--against", default=OURS, metavar="ROW", help="the row that the others are compared with")
    parser.add_argument("--into", type=Path, nargs="+", default=[], metavar="DOC.md")
    args = parser.parse_args()
    try:
        records = Journal(args.journal).read()
        if not records:
            raise UserError(f"{args.journal}: no cells in it")
        if args.against not in (known := {r["method"] for r in records}):
            raise UserError(f"--against '{args.against}': not measured yet; accepted: {', '.join(sorted(known))}")
        text = "\n\n".join(tables(records, args.against))
        for document in args.into:
            put(document, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(text)


if __name__ == "__main__":
    main()
