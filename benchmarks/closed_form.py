"""Architectures in closed form against strong one-shot baselines, refitted alike, on several choices of text.

    python benchmarks/closed_form.py MODEL --data TEXT --eval NAME=TEXT [--eval ...] [--params 75% 60% 50%]
        [--seeds 0 1 2] [--seq-len 512] [--dtype bf16] [--drift 0.75] [--windows 16] [--threads 1] --out FILE

For every seed a sensitivity table and a refit (`sequential`, λ = 0.1 of every channel, one share of the drift for all)
on the same windows of the text; for every budget
- `fisher`: the table, solved;
- `mlp`: attention untouched, one width for all MLPs, the largest multiple of 8 within the budget;
- `uniform`: equal ratios;
- `flap`: FLAP's widths (its saliency on the same windows, AL-AM),
all with units in the table's order. Perplexity on the first windows of every text, not overlapping, without special
tokens; paired differences of the mean loss per window, over windows, of the mean over seeds. What is measured is kept
and not measured again when started anew.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from machine import facts, memory, publish

from tracenas.config import PruneConfig
from tracenas.models.checkpoints.source import open_source
from tracenas.models.functionals.loss import next_token_nll
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.method import resolve_method
from tracenas.pipeline.one_shot import allocate_budget, rank_units
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.refit.text import compensation_text
from tracenas.pipeline.rises import ranked_units
from tracenas.pipeline.session import Session
from tracenas.pipeline.target import resolve_target
from tracenas.refits.aim import Aim
from tracenas.refits.penalty import PENALTIES
from tracenas.refits.ridge import FittedRealisation
from tracenas.refits.sequential import SequentialFit
from tracenas.saliency.allocation.solver import predicted_rise
from tracenas.space.architecture import Architecture

METHODS = {"fisher": "solver", "mlp": "mlp", "uniform": "uniform", "flap": "global_units"}
"""Baselines by the allocation that makes them."""
RIDGE = 0.1

Windows = dict[str, torch.Tensor]


def evaluation(session: Session, texts: list[str], windows: int, length: int) -> Windows:
    """The first windows of every text, [windows, length]."""
    found = {}
    for text in texts:
        name, _, path = text.partition("=")
        prose = Path(path).read_text()[: windows * length * 16]
        ids = session.loaded.tokenizer(prose, add_special_tokens=False)["input_ids"]
        found[name] = torch.tensor(ids[: windows * length]).view(windows, length)
    return found


def losses(model: Any, texts: Windows) -> dict[str, list[float]]:
    """Mean loss of every window, nats per token."""
    with torch.no_grad():
        return {
            name: [float(next_token_nll(model, row[None]).mean()) for row in windows] for name, windows in texts.items()
        }


def measure(args: argparse.Namespace, seed: int, lines: list[dict[str, Any]], out: Path) -> None:
    """All budgets and methods on one choice of text."""
    source = open_source(args.model)
    config = resolve_method(
        PruneConfig(
            model=args.model,
            data=args.data,
            out=Path("unused"),
            method="fisher",
            params=args.params[0],
            samples=8,
            seq_len=args.seq_len,
            dtype=args.dtype,
            seed=seed,
            threads=args.threads,
            bos="off",
        )
    )
    started = time.process_time()
    session = open_session(resolve_target(source, config, params=config.params), config, data=config.data)
    seconds = time.process_time() - started
    tokens, batch = compensation_text(session).tokens, session.micro_batch
    flap = rank_units(session.target, session.loaded, "flap", tokens, batch)
    fine = config.model_copy(update={"channel_quantum": 8})
    every_width = resolve_target(source, fine, params=config.params).blocks
    net = session.net = Supernet(session.loaded.model, every_width, session.ordering)
    texts = evaluation(session, args.eval, args.windows, args.seq_len)

    def note(params: str, method: str, **result: Any) -> None:
        lines.append({"seed": seed, "params": params, "method": method, **result})
        out.write_text("".join(json.dumps(line) + "\n" for line in lines))
        print({**lines[-1], "losses": {k: sum(v) / len(v) for k, v in lines[-1]["losses"].items()}}, flush=True)

    done = {(line["seed"], line["params"], line["method"]) for line in lines}
    if (seed, "100%", "dense") not in done:
        note("100%", "dense", losses=losses(session.loaded.model, texts), table_seconds=round(seconds))
    for params in args.params:
        for method, allocation in METHODS.items():
            if (seed, params, method) in done:
                continue
            units = fine if method == "mlp" else config
            target = resolve_target(source, units, params=params, tolerance=config.tolerance)
            ordering, importance = flap if method == "flap" else (session.ordering, session.importance)
            arch = allocate_budget(target, ordering, importance, allocation, None).architecture
            begun = time.process_time()
            outputs = refitted(session, arch, tokens, Aim(RIDGE, args.drift))
            cost = time.process_time() - begun
            with net.realise(arch, outputs) as model:
                measured = losses(model, texts)
            share = target.space.parameters(arch) / target.space.parameters(target.space.base)
            table = ranked_units(target, session.ordering.saliency, session.importance)
            note(
                params,
                method,
                losses=measured,
                share=round(share, 4),
                predicted_rise=predicted_rise(table, arch),
                refit_seconds=round(cost),
            )


def refitted(session: Session, arch: Architecture, tokens: torch.Tensor, aim: Aim) -> FittedRealisation:
    """The sequential refit of an architecture, in the weights' dtype."""
    net = session.supernet()
    penalty = PENALTIES["channel"]
    fit = SequentialFit(net, arch, tokens, session.micro_batch, [aim], penalty=penalty)
    return FittedRealisation(fit.advance()[aim])


def compared(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Perplexities per seed, and the paired lead of `fisher` in nats per token with its standard error over windows."""
    table: dict[str, Any] = {}
    for params in dict.fromkeys(line["params"] for line in lines):
        rows = [line for line in lines if line["params"] == params]
        for name in rows[0]["losses"]:
            loss = {m: torch.tensor([r["losses"][name] for r in rows if r["method"] == m]) for m in (*METHODS, "dense")}
            entry = {m: [round(float(x.exp()), 2) for x in v.mean(1)] for m, v in loss.items() if len(v)}
            leads = {}
            for other in METHODS:
                if other != "fisher" and len(loss[other]) and len(loss[other]) == len(loss["fisher"]):
                    paired = (loss["fisher"] - loss[other]).mean(0)
                    error = float(paired.std() / len(paired) ** 0.5)
                    leads[other] = [round(float(paired.mean()), 4), round(error, 4)]
            table.setdefault(params, {})[name] = {"perplexity by seed": entry, "lead, standard error": leads}
    return table


def main() -> None:
    """Measure what is not measured yet, then compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval", action="append", required=True)
    parser.add_argument("--params", nargs="+", default=["75%", "60%", "50%"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--drift", type=float, default=0.75)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", required=True, help="measurements, .jsonl; the comparison is written beside it, .json")
    args = parser.parse_args()
    out = Path(args.out)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
    for seed in args.seeds:
        measure(args, seed, lines, out)
    settings = {k: v for k, v in vars(args).items() if k not in ("model", "data", "eval", "out")}
    record = {"benchmark": "closed_form", "model": Path(args.model).name, "machine": facts(), "settings": settings}
    peak = round(memory("VmHWM") / 2**20)
    publish({**record, "peak, MiB": peak, "compared": compared(lines)}, str(out.with_suffix(".json")))


if __name__ == "__main__":
    main()
