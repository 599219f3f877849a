"""`tracenas demo --model smollm2`: the whole way on a published model, within a time that is told beforehand.

OUT/demo.json holds the plan, its estimate and what it came to; OUT/run is an ordinary run directory. Recovery is
distillation from the base: it brings back what pruning took, and adds nothing of the text's own.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.commands.report import report
from tracenas.commands.run.command import run
from tracenas.commands.run.result import RunOutcome
from tracenas.config import DemoConfig, ReportConfig, RunConfig
from tracenas.config.local_paths import absolute_path
from tracenas.demo import calibration_path, heldout_path
from tracenas.errors import UserError
from tracenas.formats import duration
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.resume import CONFIG, KIND, check_same, write_settings
from tracenas.pipeline.run_directory import SUMMARY, in_use
from tracenas.reporting.data.stages import PUBLISHED_MODEL
from tracenas.reporting.progress import phase
from tracenas.reporting.terminal import Table, print_table, to_plain
from tracenas.rundir import REPORT, read_json, require_free, sweep, write_json

__all__ = ["LlmDemo", "demo_llm"]

_log = logging.getLogger("tracenas")

PLAN, RUN, ANSWERS = "demo.json", "run", "answers.json"
_SEQ_LEN, _BATCH, _RANDOM = 512, 1, 1
_PARTS = 2
_SLACK = 0.85
"""Share of the time that is planned with: what was measured once varies."""


@dataclass(frozen=True)
class LlmDemo:
    """What the demo came to.

    Args:
        perplexity: rows of name, params, and perplexity compensated and recovered (base: as it is).
        answers: per prompt, the text of the base, of the pruned model and of the recovered one.
        plan: demo.json: measured pieces, amounts, estimated and actual seconds.
    """

    run: RunOutcome
    perplexity: list[dict[str, Any]]
    answers: list[dict[str, str]]
    plan: dict[str, Any]
    report: Path

    def to_json(self) -> Any:
        """For `--json`."""
        return to_plain({**self.run.to_json(), **{key: value for key, value in vars(self).items() if key != "run"}})

    def show(self) -> None:
        """Everything, on stdout."""
        self.run.show()
        columns = ("model", "parameters", "compensated, not trained", "recovered")
        rows = [
            (r["name"], f"{r['params']:,}", *("–" if r[k] is None else f"{r[k]:.3f}" for k in ("before", "after")))
            for r in self.perplexity
        ]
        tokens = self.plan["amounts"]["steps"] * _BATCH * self.plan["seq_len"]
        title = f"held-out perplexity; all recovered on the same {tokens:,} tokens"
        print_table(Table(title, columns, rows))
        for answer in self.answers:
            print(f"\n> {answer['prompt']}")
            for name, text in answer.items():
                if name != "prompt":
                    print(f"[{name}] {text.strip() or '(nothing)'}")
        print(f"\ntime        {_duration(self.plan)}")
        print(f"report      {self.report}")


def demo_llm(config: DemoConfig, model: Path) -> LlmDemo:
    """Plan by measuring, then search, prune, compensate, recover, time and ask; `--resume` goes on anywhere.

    Args:
        model: the model, a GGUF file or a directory.

    Raises:
        UserError: for wrong input, before any work is done.
    """
    out = absolute_path(config.out or Path("tracenas-demo-smollm2"))
    with in_use(out):
        return _demo(config, model, out)


def _demo(config: DemoConfig, model: Path, out: Path) -> LlmDemo:
    plan = _planned(config, model, out)
    settings = _settings(config, model, out, plan)
    session = _Session(out, plan)
    outcome = session.part("run", lambda: run(settings))
    answers = session.part("answers", lambda: _answers(settings, out / ANSWERS))
    rows = _rows(outcome.comparison)
    write_json(out / RUN / PUBLISHED_MODEL, to_plain({"answers": answers, "perplexity": rows, "plan": plan}))
    write_json(out / RUN / SUMMARY, {**read_json(out / RUN / SUMMARY), "demo": plan})
    page = report(ReportConfig(run=out / RUN, out=out / REPORT)).path
    return LlmDemo(outcome, rows, answers, plan, page)


def _answers(settings: RunConfig, path: Path) -> list[dict[str, str]]:
    """The models' answers, asked for where `path` does not hold them."""
    if path.is_file():
        stored: list[dict[str, str]] = read_json(path)
        return stored
    from tracenas.commands.demo.answers import answers

    return answers(settings, path)


class _Session:
    """Seconds of every part, kept in demo.json; those of interrupted attempts are lost, and the plan says so."""

    def __init__(self, out: Path, plan: dict[str, Any]) -> None:
        self.out, self.plan = out, plan
        self.plan.setdefault("actual_seconds", {})
        if len(self.plan["actual_seconds"]) < _PARTS:  # asked for again when all is done: nothing is measured
            self.plan["sessions"] = int(self.plan.get("sessions", 0)) + 1
        write_json(self.out / PLAN, self.plan)

    def part(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        self.plan["actual_seconds"].setdefault(name, round(time.perf_counter() - started, 1))
        write_json(self.out / PLAN, self.plan)
        return result


def _planned(config: DemoConfig, model: Path, out: Path) -> dict[str, Any]:
    """The plan of OUT, or a new one: what this machine can do in the time."""
    params = config.params or "75%"
    identity = {"model": str(model), "params": params, "seed": config.seed}
    if (out / PLAN).is_file():
        if not config.resume:
            raise UserError(f"run directory {out} holds a demo; go on with --resume, or choose another")
        sweep(out)
        stored: dict[str, Any] = read_json(out / PLAN)
        for key, value in identity.items():
            check_same(key, stored.get(key), value, "the demo")
        return stored
    source = open_source(str(model))
    require_free(out, what="run directory")
    from tracenas.commands.demo.estimate import amounts_within, measure, to_json

    _log.info("measuring what this machine does in a few seconds when it is left alone")
    with phase("measure this machine"):
        length = min(_SEQ_LEN, source.positions)
        pieces, threads = measure(source, params, length, _BATCH, config.threads)
    write_settings(out / CONFIG, {KIND: "demo", **config.model_dump(), "out": out})
    amounts, parts = amounts_within(pieces, _SLACK * 60 * config.minutes, _RANDOM)
    plan = {**identity, "seq_len": length, "minutes": config.minutes, **to_json(pieces, amounts, parts, threads)}
    write_json(out / PLAN, plan)
    _tell(plan, config.minutes)
    return plan


def _tell(plan: dict[str, Any], minutes: float) -> None:
    """The plan, before any of it is done."""
    a, parts = plan["amounts"], plan["estimate_seconds"]
    total = sum(parts.values())
    lines = [
        f"plan: {a['evaluations']} candidates on {a['samples']} × {plan['seq_len']} tokens, compensation on "
        f"{a['compensate_samples']} × {plan['seq_len']}, {a['steps']} recovery steps for each of 3 models; "
        f"about {duration(total)} on {plan['threads']} threads",
        *(f"  {duration(seconds):>8}  {name}" for name, seconds in parts.items()),
    ]
    if total > 60 * minutes:
        lines.append(f"  this machine is too slow or too busy for {minutes:g} minutes; this is the least")
    _log.info("%s", "\n".join(lines))


def _duration(plan: dict[str, Any]) -> str:
    estimated, actual = sum(plan["estimate_seconds"].values()), sum(plan["actual_seconds"].values())
    if plan["sessions"] > 1:
        return f"{duration(estimated)} estimated; not compared: it took {plan['sessions']} sessions"
    return f"{duration(actual)}, estimated {duration(estimated)} ({100 * (actual / estimated - 1):+.0f} %)"


def _settings(config: DemoConfig, model: Path, out: Path, plan: dict[str, Any]) -> RunConfig:
    """The run that the demo is made of."""
    amounts: dict[str, int] = plan["amounts"]
    steps, length = amounts["steps"], plan["seq_len"]
    return RunConfig(
        model=str(model),
        data=str(calibration_path()),
        text=str(heldout_path()),
        params=config.params or "75%",
        out=out / RUN,
        proxy="loss_compensated",
        samples=amounts["samples"],
        seq_len=length,
        population=amounts["population"],
        elites=amounts["elites"],
        iterations=amounts["iterations"],
        compensate_samples=amounts["compensate_samples"],
        compensate="auto",
        windows=amounts["windows"],
        random_architectures=_RANDOM,
        recover={
            "method": "distill",
            "max_steps": steps,
            "global_batch": _BATCH,
            "batch": 1,
            "seq_len": length,
            "learning_rate": 1e-4,
            "log_every": max(1, steps // 10),
            "save_every": max(1, -(-steps // 2)),
            "text": None,
            "windows": 4,
        },
        recover_rivals=True,
        bench={
            "prompt": min(256, length // 2),
            "new_tokens": min(32, length // 4),
            "trials": 3,
            "warmup": 1,
            "no_memory": True,
        },
        seed=config.seed,
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
        resume=(out / RUN).is_dir(),
    )


def _rows(comparison: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Perplexity before and after recovery, by model; the base has none."""
    return [
        {
            "name": row["name"],
            "params": row["params"],
            "before": row["perplexity"],
            "after": row["recovered"]["perplexity"] if "recovered" in row else None,
        }
        for row in comparison
    ]
