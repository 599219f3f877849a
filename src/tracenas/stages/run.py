"""`tracenas run`: search → prune → perplexity → report, each stage skipped where its result is there already."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tracenas.config import PruneConfig, ReportConfig, RunConfig, SearchConfig
from tracenas.models.source import open_source
from tracenas.rundir import read_json, write_json
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.stages.prune import Pruned, prune
from tracenas.stages.report import report
from tracenas.stages.results import Table, print_table, to_plain
from tracenas.stages.search import SUMMARY, SearchOutcome, search
from tracenas.stages.session import open_session, space_of

__all__ = ["RunOutcome", "run"]

COMPARISON, CHECKPOINT, PRUNED = "comparison.json", "pruned", "pruned.json"
_RUN_ONLY = ("eval_text", "eval_windows", "random_architectures")


@dataclass(frozen=True)
class RunOutcome:
    """Everything a run produced."""

    search: SearchOutcome
    pruned: Pruned
    comparison: list[dict[str, Any]]
    report: Path

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "search": self.search.to_json(),
            "pruned": self.pruned.to_json(),
            "comparison": self.comparison,
            "report": str(self.report),
        }

    def show(self) -> None:
        """The comparison and where everything is, on stdout."""
        self.search.show()
        rows = [
            (
                row["name"],
                f"{row['params']:,}",
                "–" if row["score"] is None else f"{row['score']:.4f}",
                f"{row['loss']:.4f}",
                "overflow" if row["perplexity"] is None else f"{row['perplexity']:,.2f}",
            )
            for row in self.comparison
        ]
        proxy = self.search.summary["proxy"]
        title = "right after pruning, no recovery"
        print_table(Table(title, ("architecture", "parameters", proxy, "calibration loss", "perplexity"), rows))
        print(verdict(self.comparison))
        losses = f"reloaded: loss {self.pruned.loss:.6f}, as scored {self.pruned.scored_loss:.6f}"
        print(f"checkpoint  {self.pruned.path} ({losses})")
        print(f"report      {self.report}")


def verdict(comparison: list[dict[str, Any]]) -> str:
    """Who has the lowest perplexity among the architectures of the budget, in one sentence."""
    rivals = [r for r in comparison if r["name"] != "base"]
    best = min(rivals, key=lambda r: r["nll"])
    found = next(r for r in rivals if r["name"] == "found")
    if best is found:
        others = [r["nll"] for r in rivals if r is not found]
        gain = f" by {min(others) - found['nll']:.3f} nats per token" if others else ""
        return f"The found architecture has the lowest perplexity of its budget{gain}."
    gap = f"{best['nll']:.3f} against {found['nll']:.3f} nats"
    return f"'{best['name']}' has a lower perplexity than the found architecture ({gap})."


def run(config: RunConfig) -> RunOutcome:
    """Search, prune, compare and report in `config.out`; `--resume` goes on where an interrupted run stopped."""
    settings = {k: v for k, v in config.model_dump().items() if k not in _RUN_ONLY}
    found = search(SearchConfig(**settings))
    pruned = _pruned(config, found)
    comparison = _comparison(config, found, pruned)
    summary = {**read_json(config.out / SUMMARY), "comparison": comparison, "checkpoint": pruned.to_json()}
    write_json(config.out / SUMMARY, summary)
    return RunOutcome(found, pruned, comparison, report(ReportConfig(run=config.out)).path)


def _pruned(config: RunConfig, found: SearchOutcome) -> Pruned:
    record, target = config.out / PRUNED, config.out / CHECKPOINT
    if record.is_file() and target.is_dir():
        stored = read_json(record)
        return Pruned(**{**stored, "path": Path(stored["path"])})
    if target.is_dir():  # written, but not recorded: the directory appears whole, so it only has to be written again
        _remove(target)
    result = prune(
        PruneConfig(
            model=config.model,
            arch=found.best,
            out=target,
            device=config.device,
            dtype=config.dtype,
            threads=config.threads,
            micro_batch=config.micro_batch,
            trust_remote_code=config.trust_remote_code,
        )
    )
    write_json(record, result.to_json())
    return result


def _remove(directory: Path) -> None:
    import shutil

    shutil.rmtree(directory)


def rivals(space: SearchSpace, count: int, seed: int) -> dict[str, Architecture]:
    """The uniform architecture and `count` random ones, all of the same budget."""
    out: dict[str, Architecture] = {}
    uniform = space.uniform()
    if uniform is not None:
        out["uniform"] = uniform
    rng = np.random.default_rng([seed, 0x52414E44])
    for _ in range(20 * count):
        sampled = space.sample(rng)
        if sampled is not None and sampled not in out.values() and len([k for k in out if k != "uniform"]) < count:
            out[f"random {len(out) - ('uniform' in out) + 1}"] = sampled
    return out


def _comparison(config: RunConfig, found: SearchOutcome, pruned: Pruned) -> list[dict[str, Any]]:
    """Score, loss and perplexity of base, uniform, random and found architecture on the same text."""
    from tracenas.evaluation.perplexity import perplexity
    from tracenas.models.loading import load
    from tracenas.report.progress import stage_progress
    from tracenas.stages.evaluate import held_out

    path = config.out / COMPARISON
    if path.is_file():
        stored: list[dict[str, Any]] = read_json(path)
        return stored
    source = open_source(config.model)
    space = space_of(source, config, params=config.params, tolerance=config.tolerance)
    session = open_session(source, space, config, data=config.data, run=config.out)
    length = min(session.tokens.shape[1], source.positions)
    windows = held_out(session.loaded, config.eval_text, length, config.eval_windows, config.text_field)
    net = session.supernet()
    evaluator = session.evaluator(config.proxy, config.rank, net)
    named = {
        "base": space.base,
        **rivals(space, config.random_architectures, config.seed),
        "found": found.architecture,
    }
    rows = []
    with stage_progress("perplexity", len(named)) as advance:
        for name, arch in named.items():
            scored = evaluator.score(arch)
            if name == "found":
                again = load(str(pruned.path), device=str(session.loaded.device), dtype=_dtype(session.loaded.dtype))
                measured = perplexity(again.model, windows, session.micro_batch)
            else:
                with net.realise(arch, evaluator.realisation) as model:
                    measured = perplexity(model, windows, session.micro_batch)
            finite = math.isfinite(measured.perplexity)
            rows.append(
                {
                    "name": name,
                    "params": space.parameters(arch),
                    "perplexity": measured.perplexity if finite else None,
                    "nll": measured.nll,
                    "loss": scored.loss,
                    "score": scored.score if scored.ok else None,
                    "arch": arch.to_json(),
                    "tokens": measured.tokens,
                    "text": config.eval_text,
                }
            )
            advance(1)
    write_json(path, to_plain(rows))
    return rows


def _dtype(dtype: Any) -> str:
    return "bf16" if str(dtype) == "torch.bfloat16" else "fp32"
