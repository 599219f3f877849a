"""A study from its pool to its results: every architecture is scored and measured, one journal line each."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tracenas.cluster.joining import Cluster
from tracenas.commands.study.data import HELD_OUT, TrainingOrders, training_rows
from tracenas.commands.study.design import StudyDesign, make_design
from tracenas.commands.study.lora import shared_lora
from tracenas.commands.study.measuring import StudyWork, TaskAccuracy, measuring
from tracenas.commands.study.plan import StudyPlan
from tracenas.commands.study.pool import Drawn
from tracenas.commands.study.results import MARKDOWN, STUDY, StudyOutcome, summarise, write_results
from tracenas.commands.study.targets import StudyMeasurer
from tracenas.commands.study.tracking import architecture_points, report_study
from tracenas.config import StudyConfig
from tracenas.data.sources import is_tokens
from tracenas.data.tokens import default_micro_batch
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.models.checkpoints.source import ModelSource
from tracenas.models.surgery.supernet import Realisation
from tracenas.pipeline.calibration import stored_evaluation_windows
from tracenas.pipeline.distributed import actor_pool, cluster_of
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.refit.fitting import compensated_realisation
from tracenas.pipeline.refit.losses import candidate_loss
from tracenas.pipeline.refit.text import compensation_text
from tracenas.pipeline.resume import (
    CONFIG,
    as_started,
    resolve_settings,
    resolved_settings,
    same_model,
    stored_settings,
    write_settings,
)
from tracenas.pipeline.run_directory import JOURNAL, run_directory, starting
from tracenas.pipeline.scoring import make_panel
from tracenas.pipeline.sensitivity import session_table
from tracenas.pipeline.session import Session
from tracenas.pipeline.workers import answering, answers_of, local_workers, with_threads
from tracenas.proxies import PROXIES
from tracenas.recovery.short import ShortSettings
from tracenas.reporting.progress import phase
from tracenas.reporting.terminal import to_plain
from tracenas.reporting.tracking.trackers import Trackers, tracked
from tracenas.rundir import REPORT, provenance, read_json, write_json
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

__all__ = ["run"]

_ANALYSIS = ("combinations", "resamples", "target")
"""What may change when a study goes on: nothing that is measured depends on it."""
_NOT_RESULTS = ("resume", "out", "report_to", "run_name", "workers", "ray", *_ANALYSIS)
COSTS = "costs.json"
Answers = Callable[[Sequence[Any]], Iterator[dict[str, Any]]]


def run(config: StudyConfig, source: ModelSource, design: StudyDesign) -> StudyOutcome:
    """Start a study of a design, or resume one: then the design is that of the settings it was started with.

    Raises:
        UserError: for wrong input, before any work is done.
    """
    with run_directory(config.out, "study", config.resume) as begun:
        if begun:
            config = as_started(config.out, config, _NOT_RESULTS)
            design = make_design(config, source)
        else:
            config = with_threads(config)
        with tracked(config.out, config.trackers, config.run_name, begun=begun) as trackers:
            outcome = _concluded(config) if begun else None
            if outcome is None:
                outcome = _study(config, design, begun, trackers)
            else:
                trackers.begin(resolved_settings(config.out, StudyConfig))
            report_study(trackers, outcome, Journal(config.out / JOURNAL).read())
            return outcome


def _study(config: StudyConfig, design: StudyDesign, begun: bool, trackers: Trackers) -> StudyOutcome:
    """The study from where it is; what is measured is reported, the result is not."""
    with cluster_of(config) as cluster:
        return _measured(config, design, begun, trackers, cluster)


def _measured(
    config: StudyConfig, design: StudyDesign, begun: bool, trackers: Trackers, cluster: Cluster | None
) -> StudyOutcome:
    started = time.perf_counter()
    with starting(config.out, "study", config.model_dump(), begun):
        session = open_session(design.target, config, data=config.data, run=config.out, workers=local_workers(config))
        if session.loaded.streamed:
            raise UserError(
                "study: candidates are trained, with all weights on the device, where they do not fit (device-memory); "
                "use a larger GPU or --device cpu"
            )
        samples, seq_len = session.tokens.shape
        machine = {**session.machine(), "samples": samples, "seq_len": seq_len}
        if is_tokens(config.text):  # its own note says how its windows begin
            machine["bos"] = config.bos
        resolve_settings(config, config.out, machine)
        work, costs = _prepare(config, session, design.plan, design.proxies, design.pool[0])
    setup = time.perf_counter() - started
    trackers.begin(resolved_settings(config.out, StudyConfig))
    facts = {"bos": session.start.carried}
    with _answering(config, session, work, cluster) as answers:
        records = _measure(config, design.target.space, design.pool, answers, facts, trackers)
    results = summarise(
        config,
        design.target.space,
        design.plan,
        costs,
        records,
        setup_seconds=setup,
        settings=stored_settings(config.out / CONFIG, type(config)),
        combinations=design.combinations,
    )
    results["provenance"] = provenance(model=config.model, seed=config.seed, bos=session.start.carried)
    write_results(config.out, results)
    return StudyOutcome(config.out, results)


@contextmanager
def _answering(config: StudyConfig, session: Session, work: StudyWork, cluster: Cluster | None) -> Iterator[Answers]:
    """Who measures architectures: this process, others of this machine, or a cluster's actors."""
    target = f"{measuring.__module__}:{measuring.__name__}"
    if cluster is not None:
        with actor_pool(cluster, session, work, target, config) as pool:
            yield answers_of(pool)
        return
    assert config.workers != "auto"
    with answering(target, work, config.workers, session.threads) as answers:
        yield answers


def _concluded(config: StudyConfig) -> StudyOutcome | None:
    """The outcome of a finished study; None while there is something to measure, or another analysis is wanted."""
    out, stored = config.out, stored_settings(config.out / CONFIG, StudyConfig)
    analysis = to_plain(config.model_dump(include=set(_ANALYSIS)))
    if any(stored.get(key) != value for key, value in analysis.items()):
        write_settings(out / CONFIG, {**stored, **analysis})
    elif (out / STUDY).is_file() and len(Journal(out / JOURNAL).read()) == config.architectures:
        results = read_json(out / STUDY)
        if not all((out / name).is_file() for name in (MARKDOWN, REPORT)):
            write_results(out, results)
        return StudyOutcome(out, results)
    return None


def _prepare(
    config: StudyConfig, session: Session, plan: StudyPlan, proxies: tuple[str, ...], first: Drawn
) -> tuple[StudyWork, dict[str, float]]:
    """What architectures are measured with, and the seconds that each proxy costs."""
    needs = frozenset[str]().union(*(PROXIES.get(name).needs for name in proxies))
    used = [session.tokens]
    if {"compensated", "sensitivity"} & {*plan.starts, *needs}:
        used.append(compensation_text(session, required=True, keep=True).tokens)
    if "sensitivity" in needs:
        session_table(session)
    realisations: dict[str, Realisation] = {"plain": Realisation()}
    if "compensated" in {*plan.starts, *needs}:
        realisations["compensated"] = compensated_realisation(session)
    net = session.supernet()
    windows = stored_evaluation_windows(config.out / HELD_OUT, session.loaded, config, session.tokens.shape[1])
    tuned = config.lora_steps * plan.batch if plan.lora else 0
    needed = max(plan.sequences, tuned)
    with phase("read text"):
        rows = training_rows(session, config, needed, [*used, windows]) if needed else windows[:0]
    same_model(config.out, candidate_loss(session, session.space.base))
    settings = ShortSettings(learning_rate=config.learning_rate, micro_batch=default_micro_batch(rows.shape[1]))
    rows = rows.to(net.device)
    lora = None
    if plan.lora:
        batches = TrainingOrders(rows, plan.batch, config.lora_steps, config.seed)(0)
        lora = shared_lora(config, session, net, batches, settings)
    accuracy = None
    if plan.tasks:
        tokenizer = session.loaded.require_tokenizer("tasks are text")
        accuracy = TaskAccuracy(tokenizer, config.tasks, config.task_data, config.limit)
        accuracy.open()
    measurer = StudyMeasurer(
        net,
        plan,
        realisations,
        windows,
        TrainingOrders(rows, plan.batch, max(plan.marks, default=0), config.seed),
        session.micro_batch,
        settings,
        lora,
        accuracy,
    )
    refitted = realisations.get("compensated")
    path = config.out / COSTS
    if not path.is_file():
        write_json(path, _costs(session, proxies, config.trace_rank, refitted, first.arch))
    return StudyWork(make_panel(session, proxies, config.trace_rank, refitted), measurer), read_json(path)


def _costs(
    session: Session, proxies: Sequence[str], rank: int, refitted: Realisation | None, arch: Architecture
) -> dict[str, float]:
    """Seconds that each proxy takes by itself on `arch`: the faster of two runs after a first, which fills memos."""
    seconds = {}
    with phase("time the proxies", len(proxies)) as steps:
        for name in steps.over(proxies):
            panel = make_panel(session, (name,), rank, refitted)
            runs = []
            for _ in range(3):
                started = time.perf_counter()
                panel.measure(arch)
                runs.append(time.perf_counter() - started)
            seconds[name] = min(runs[1:])
    return seconds


def _measure(
    config: StudyConfig,
    space: SearchSpace,
    pool: list[Drawn],
    answers: Answers,
    facts: Mapping[str, Any],
    trackers: Trackers,
) -> list[dict[str, Any]]:
    """Score and measure what the journal does not hold yet, one line per architecture, with `facts` in each.

    Raises:
        UserError: if the journal is of other architectures.
    """
    journal = Journal(config.out / JOURNAL)
    records = journal.read()
    for drawn, record in zip(pool, records, strict=False):
        if record["id"] != drawn.arch.id:
            raise UserError(f"{config.out / JOURNAL}: holds other architectures than this version of the study draws")
    with phase("study", len(pool), done=len(records)) as steps:
        left = pool[len(records) :]
        asked = answers([drawn.arch.to_json() for drawn in left])
        for index, (drawn, found) in enumerate(zip(left, asked, strict=True), start=len(records)):
            scores = found["scores"]
            record = {
                "index": index,
                "id": drawn.arch.id,
                "kind": drawn.kind,
                "params": space.parameters(drawn.arch),
                "arch": drawn.arch.to_json(),
                "scores": {n: _finite(s["value"]) for n, s in scores.items()},
                "reasons": {
                    n: s["reason"] or "score is not finite" for n, s in scores.items() if _finite(s["value"]) is None
                },
                "proxy_seconds": {n: s["seconds"] for n, s in scores.items()},
                "targets": found["targets"],
                **facts,
                "seconds": found["seconds"],
            }
            journal.append(record)
            records.append(record)
            steps.advance()
            trackers.report(architecture_points(records))
    return records


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
