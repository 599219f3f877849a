"""Tables of the stages after the search, for the page and for a terminal alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from tracenas.formats import MISSING, decimal, fixed, plural
from tracenas.reporting.data.reading import Fields
from tracenas.reporting.data.stages import Checkpoint, Measured, Recovery, Stages
from tracenas.reporting.labels import capitalised, cost_name, source_label, spent
from tracenas.tables import Table

__all__ = ["bench_table", "checkpoints_table", "evaluation_table", "recovery_table", "stage_tables"]

_FEW = 3
"""Tasks that a front's checkpoints are shown with, each; of more, their average alone."""


def stage_tables(stages: Stages) -> list[Table]:
    """Everything there is, in the stages' order."""
    tables = [checkpoints_table(stages)] if stages.checkpoints else []
    if stages.recoveries:
        tables.append(recovery_table(stages.recoveries))
    tables += [evaluation_table(e) for e in stages.evaluations]
    return [*tables, *(bench_table(b) for b in stages.benches)]


def checkpoints_table(stages: Stages) -> Table:
    """A row for the base and one per size of a front: cost, losses, and what further stages came to; where it is."""
    rows = stages.checkpoints
    columns: list[tuple[str, Callable[[Checkpoint], str]]] = [
        ("Size", lambda c: c.size),
        (capitalised(cost_name(stages.cost)), lambda c: spent(stages.cost, c.cost)),
        ("Loss", lambda c: decimal(c.row.number("loss"))),
        ("Perplexity", lambda c: decimal(c.perplexity)),
    ]
    if any("recovered" in one.row.values for one in rows):
        columns.append(("Recovered", lambda c: decimal(c.recovered)))
    columns += _accuracies(rows)
    if any("bench" in one.row.values for one in rows):
        columns += [
            ("TPOT, ms", lambda c: fixed(c.decoding)),
            ("Decode ×", lambda c: fixed(c.speedup)),
        ]
    columns += [
        ("Realisation", lambda c: c.row.text("written") or MISSING),
        ("In checkpoints/", lambda c: c.place or MISSING),
    ]
    cells = [[get(one) for _, get in columns] for one in rows]
    notes = ["losses are on the calibration text, as scored"]
    return Table("checkpoints of the front", [name for name, _ in columns], cells, notes)


def _accuracies(rows: Sequence[Checkpoint]) -> Iterator[tuple[str, Callable[[Checkpoint], str]]]:
    """Columns of a few tasks, or of the average of many."""
    tasks = list(dict.fromkeys(name for one in rows for name in one.row.fields("eval").fields("tasks").values))
    if any(one.row.fields("eval").fields("average").values for one in rows):
        yield "Average, %", lambda c: _average(c.row.fields("eval").fields("average"))
    elif len(tasks) <= _FEW:
        for name in tasks:
            yield f"{name}, %", partial(_first_metric, name)


def _average(average: Fields) -> str:
    value = average.number("value")
    return MISSING if value is None else _plus_minus(value, average.number("stderr"))


def _first_metric(task: str, one: Checkpoint) -> str:
    result = one.row.fields("eval").fields("tasks").fields(task).values
    return _accuracy(result, next(iter(_metrics(result)), ""))


def recovery_table(recoveries: Sequence[Recovery]) -> Table:
    """Steps, tokens, speed and, where it was measured on the way, held-out perplexity of every recovery."""
    columns = ["Architecture", "Method", "Steps", "Tokens", "Tokens/s", "Loss at the end"]
    measured = any(recovery.result.get("perplexity") is not None for recovery in recoveries)
    columns += ["Perplexity before", "Perplexity after"] if measured else []
    rows = []
    for recovery in recoveries:
        speed = sorted(value for _, value in recovery.series("tokens_per_second"))
        result, losses = recovery.result, recovery.series("loss")
        running = f"{losses[-1][0]} so far" if losses else MISSING
        rows.append(
            [
                recovery.name,
                str(result.get("method") or recovery.settings.get("method") or MISSING),
                _count(result["steps"]) if result.get("steps") else running,
                _count(result.get("tokens")),
                f"{speed[len(speed) // 2]:,.0f}" if speed else MISSING,
                decimal(losses[-1][1]) if losses else MISSING,
                *(decimal(result.get(key)) for key in ("perplexity_before", "perplexity") if measured),
            ]
        )
    return Table("recovery", columns, rows, _recovery_notes(recoveries))


def _recovery_notes(recoveries: Sequence[Recovery]) -> list[str]:
    notes = []
    settings, result = recoveries[0].settings, recoveries[0].result
    batch, length = settings.get("global_batch"), settings.get("seq_len")
    if settings.get("data"):
        batches = f", batches of {batch:,}" if isinstance(batch, int) else ""
        batches += f" × {length:,} tokens" if batches and isinstance(length, int) else ""
        notes.append(f"trained on {source_label(settings['data'])}{batches}")
    if chosen := result.get("selected_on"):
        for source in filter(None, (settings.get("data"), settings.get("validation"))):
            chosen = chosen.replace(str(source), source_label(source))
        notes.append(f"the checkpoint of step {result.get('step')} was chosen on {chosen}")
    if text := settings.get("text") or settings.get("eval_text"):  # its former name
        windows = f" (windows of {length:,} tokens)" if isinstance(length, int) else ""
        notes.append(f"perplexities of this table: {source_label(text)}{windows}, by which nothing was chosen")
    if len(recoveries) > 1:
        keys = {key for recovery in recoveries for key in recovery.settings} - {"model", "out"}
        if all(len({str(recovery.settings.get(key)) for recovery in recoveries}) == 1 for key in keys):
            notes.append("all with exactly the same settings")
    return notes


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else MISSING


def evaluation_table(measured: Measured) -> Table:
    """A row per quantity, a column per model: parameters, perplexity, both accuracies of every task, the average."""
    models = measured.rows
    rows = [["parameters", "", "", *(_count(m.get("params")) for m in models)]]
    if any("nll" in m for m in models):
        rows.append(["perplexity", "", "", *(decimal(m.get("perplexity")) for m in models)])
    tasks = [m.get("tasks") or {} for m in models]
    for name in dict.fromkeys(name for results in tasks for name in results):
        first = next(results[name] for results in tasks if name in results)
        for place, metric in enumerate(_metrics(first)):
            label = [name, str(first.get("shots", ""))] if place == 0 else ["", ""]
            rows.append([*label, _metric_name(metric), *(_accuracy(r.get(name), metric) for r in tasks)])
    averages = [m.get("average") for m in models]
    if any(averages):
        cells = (_plus_minus(a["value"], a.get("stderr")) if a else MISSING for a in averages)
        rows.append(["the paper's average", "", "8 tasks", *cells])
    notes = list(dict.fromkeys(str(m["protocol"]) for m in models if m.get("protocol")))
    notes = [note.replace(text, source_label(text)) for note in notes for text in [note.split(":")[0]]]
    if any(tasks):
        limit = next((m["limit"] for m in models if m.get("limit")), None)
        notes.append("tasks by lm-evaluation-harness, in percent, ± standard error")
        if limit:
            notes.append(f"{plural(limit, 'question')} per task only: not comparable with full results")
    columns = ["Quantity", "Shots", "Metric", *measured.names]
    if not any(tasks):
        columns, rows = [columns[0], *columns[3:]], [[row[0], *row[3:]] for row in rows]
    return Table(f"evaluation ({measured.file})", columns, rows, notes)


def _metrics(task: Mapping[str, Any]) -> list[str]:
    """Numbers of a task that are neither counts nor standard errors."""
    other = ("n", "shots", "truncated", "split", "shots_from", "subtasks")
    return [key for key in task if key not in other and not key.partition(",")[0].endswith("_stderr")]


def _metric_name(metric: str) -> str:
    return {"acc": "accuracy", "acc_norm": "normalised accuracy"}.get(metric, metric)


def _accuracy(task: Mapping[str, Any] | None, metric: str) -> str:
    value = (task or {}).get(metric)
    if task is None or not isinstance(value, int | float):
        return MISSING
    plain, comma, kind = metric.partition(",")
    error = task.get(f"{plain}_stderr{comma}{kind}")
    return _plus_minus(value, error) if plain.startswith(("acc", "exact_match", "f1", "mc")) else decimal(value)


def _plus_minus(value: float, error: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def bench_table(measured: Measured) -> Table:
    """Latency, throughput, memory and speed-ups of every model (TraceNAS Table 8)."""
    columns = ["Model", "Parameters", "TTFT, ms", "TPOT, ms", "Tokens/s", "Memory, GB"]
    columns += ["Prefill ×", "FLOPs ×", "Decode ×"]
    several = len({model.get("batch") for model in measured.rows}) > 1
    columns[1:1] = ["Sequences"] if several else []
    rows = []
    for name, model in zip(measured.names, measured.rows, strict=True):
        memory = model.get("peak_memory_bytes")
        rows.append(
            [
                name,
                *([_count(model.get("batch"))] if several else []),
                _count(model.get("params")),
                _spread(model.get("ttft_ms"), 1),
                _spread(model.get("tpot_ms"), 2),
                _spread(model.get("throughput_tokens_per_s"), 1),
                f"{memory / 1e9:.3g}" if memory else MISSING,
                _spread(model.get("prefill_speedup"), 2),
                fixed(model.get("prefill_flop_ratio")),
                _spread(model.get("decode_speedup"), 2),
            ]
        )
    return Table(f"speed ({measured.file})" if measured.file else "", columns, rows, _bench_notes(measured.setting))


def _bench_notes(s: Mapping[str, Any]) -> list[str]:
    notes = []
    if {"device_name", "dtype", "threads", "torch", "cache"} <= set(s):
        threads = plural(int(s["threads"]), "thread")
        compiled = "compiled " if s.get("backend") == "torch-compile" else ""
        notes.append(f"{s['device_name']}, {s['dtype']}, {threads}, {compiled}torch {s['torch']}, {s['cache']} cache")
    if {"device_name", "dtype", "threads", "llama_cpp"} <= set(s):
        threads = plural(int(s["threads"]), "thread")
        notes.append(f"{s['device_name']}, {s['dtype']}, {threads}, llama.cpp (llama-cpp-python {s['llama_cpp']})")
    if {"device_name", "dtype", "threads", "vllm"} <= set(s):
        notes.append(f"{s['device_name']}, {s['dtype']}, {plural(int(s['threads']), 'thread')}, vLLM {s['vllm']}")
    if {"batch_size", "prompt", "new_tokens", "trials"} <= set(s):
        batches = ", ".join(map(str, s.get("batch_sizes") or [s["batch_size"]]))
        notes.append(
            f"{batches} × {s['prompt']:,} prompt tokens, {s['new_tokens']} new; medians of "
            f"{plural(int(s['trials']), 'trial')} in turns, interquartile range in brackets"
        )
    notes.append("×: speed-up over the first model, and its prefill FLOPs over this model's")
    return notes


def _spread(value: Mapping[str, float] | None, digits: int) -> str:
    if not value:
        return MISSING
    width = value["q3"] - value["q1"]
    shown = f" ({width:,.{digits}f})" if round(width, digits) else ""
    return f"{value['median']:,.{digits}f}{shown}"
