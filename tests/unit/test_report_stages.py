"""The report's sections on compensation, recovery, evaluation and speed, from the files that the stages write."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_run import make_run
from test_report import report, rewrite

from tracenas.errors import UserError
from tracenas.reporting import write_report
from tracenas.reporting.data.stages import Stages
from tracenas.reporting.stage_tables import stage_tables

MADE = {
    "method": "sequential",
    "ridge": 0.01,
    "drift": 1.0,
    "trials": {"0.001 drift 1": 4.4321, "0.01 drift 1": 4.3321, "0.1 drift 1": None},
    "sequences": 48,
    "tokens": 24_576,
    "separate_text": True,
    "plain_loss": 5.1234,
    "loss": 4.2345,
}


def task(acc: float, norm: float) -> dict[str, Any]:
    return {"acc": acc, "acc_stderr": 0.012, "acc_norm": norm, "acc_norm_stderr": 0.013, "n": 100, "shots": 25}


def spread(median: float, width: float = 0.0) -> dict[str, float]:
    return {"median": median, "q1": median - width / 2, "q3": median + width / 2}


DATA = "/some/where/else/train.jsonl"


def write_recovery(directory: Path, scale: float, steps: int = 40, result: bool = True) -> None:
    directory.mkdir(parents=True)
    lines: list[dict[str, Any]] = [{"step": 0, "perplexity": 80 * scale, "nll": 1.0, "validation_nll": 4.0}]
    for step in range(2, steps + 1, 2):
        lines.append({"step": step, "loss": scale * (5 - step / 20), "tokens": step * 512, "tokens_per_second": 900.0})
    lines.append({"step": steps, "perplexity": 40 * scale, "nll": 1.0, "validation_nll": 3.0})
    (directory / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "recover.yaml").write_text(
        f"model: {directory.parent}/pruned\nout: {directory}\nmethod: distill\nglobal_batch: 8\nseq_len: 64\n"
        f"data: {DATA}\neval_text: /some/where/held-out.txt\nmax_steps: {steps}\n"
    )
    if result:
        told = {"method": "distill", "steps": steps, "step": steps, "tokens": steps * 512, "loss": 3.0}
        told |= {
            "perplexity_before": 80 * scale,
            "perplexity": 40 * scale,
            "selected_on": f"64 sequences split off {DATA}",
        }
        (directory / "recovery.json").write_text(json.dumps(told))


PUBLISHED = {
    "answers": [{"prompt": "Which <b>?", "base": " one\n two ", "pruned": "p", "recovered": "  "}],
    "perplexity": [{"name": "found", "params": 52_640, "before": 9.5, "after": None}],
    "plan": {"estimate_seconds": {"search": 60, "speed": 40}, "actual_seconds": {"run": 110}, "sessions": 1},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = make_run(tmp_path / "run", layers=6, iterations=3)
    (run / "pruned.json").write_text(json.dumps({"path": "run/pruned", "compensation": MADE}))
    write_recovery(run / "recovered", 1.0)
    write_recovery(run / "rivals" / "uniform" / "recovered", 1.4)
    write_recovery(run / "rivals" / "random-1" / "recovered", 1.9, result=False)
    models = ["HuggingFaceTB/SmolLM2-135M", "run/pruned", "run/recovered", "run/rivals/uniform/recovered", "some/x"]
    rows = [
        {
            "model": name,
            "params": 134_515_008 - place,
            "perplexity": None if place == 4 else 16.0 + place,
            "nll": None if place == 4 else 2.7,
            "tokens": 1000,
            "protocol": "/a/held-out.txt: documents joined by EOS",
            "tasks": {"arc_challenge": task(0.2512 + place / 100, 0.2812)} if place < 4 else {},
            "limit": 50,
            "average": {"value": 0.4321, "stderr": 0.0042} if place == 0 else None,
        }
        for place, name in enumerate(models)
    ]
    (run / "evaluation.json").write_text(json.dumps({"results": rows, "settings": {}}))
    timed = [
        {
            "model": name,
            "params": 134_515_008,
            "ttft_ms": spread(1234.5, 10.2),
            "tpot_ms": spread(33.25),
            "throughput_tokens_per_s": spread(30.1),
            "peak_memory_bytes": 1_230_000_000,
            "prefill_speedup": spread(1.51, 0.02),
            "prefill_flop_ratio": 1.62,
            "decode_speedup": spread(1.21),
        }
        for name in (models[0], "run/recovered")
    ]
    setting = {"device_name": "H100", "dtype": "bfloat16", "threads": 4, "torch": "2", "cache": "static"}
    setting |= {"batch_size": 1, "prompt": 4096, "new_tokens": 128, "trials": 20}
    (run / "bench.json").write_text(json.dumps({"setting": setting, "models": timed}))
    return run


def test_every_stage_is_on_the_page(run: Path) -> None:
    page = report(run)
    for expected in (
        "Compensation",
        "24,576 tokens (48 sequences), other text than the losses'",
        "4.332",
        "The checkpoint is this model, another one than was scored. Its calibration loss is lower than without",
        "found: perplexity 80.00 to 40.00 (−50.0 %) with 20.5K tokens.",
        "trained on train.jsonl, batches of 8 × 64 tokens",
        "chosen on 64 sequences split off train.jsonl",
        "held-out.txt (windows of 64 tokens)",
        "all with exactly the same settings",
        "40 so far",
        "normalised accuracy",
        "25.1 ± 1.2",
        "43.2 ± 0.4",
        "the paper's average",
        "50 questions per task only",
        "uniform recovered",
        "1,234.5 (10.2)",
        "1.51 (0.02)",
        "1.62",
        "1 × 4,096 prompt tokens, 128 new",
    ):
        assert expected in page.text, expected
    assert page.text.count("Training loss") >= 1 and "/some/where" not in page.text


def test_only_what_is_there_is_shown(tmp_path: Path) -> None:
    page = report(make_run(tmp_path / "run", layers=3, iterations=1))
    for name in ("Compensation", "Recovery", "Evaluation", "Speed"):
        assert name not in page.texts
    assert stage_tables(Stages.read(tmp_path / "run")) == []


def test_results_from_elsewhere_are_found_by_name(run: Path) -> None:
    (run / "evaluation-tasks.json").write_text((run / "evaluation.json").read_text())
    write_recovery(run / "recovered-lora", 0.5)
    stages = Stages.read(run)
    assert [r.name for r in stages.recoveries] == ["found (recovered)", "found (recovered-lora)", "uniform", "random 1"]
    assert [e.file for e in stages.evaluations] == ["evaluation-tasks.json", "evaluation.json"]
    names = ("base", "pruned", "recovered", "uniform recovered", "x")
    assert stages.evaluations[0].names == names
    assert "evaluation (evaluation-tasks.json)" in report(run).text


def test_stages_of_the_comparison(run: Path) -> None:
    rows = json.loads((run / "summary.json").read_text())["comparison"]
    for row in rows:
        if row["name"] in ("uniform", "found"):
            row["checkpoint"] = {"realisation": "sequential", "perplexity": row["perplexity"] / 2, "nll": 1.0}
            row["recovered"] = {"perplexity": row["perplexity"] / 4, "nll": 1.0}
    rewrite(run / "summary.json", comparison=rows)
    page = report(run)
    assert "All compensated likewise: found 42.16, against 59.20 for uniform (−28.8 %)" in page.text
    assert "All recovered with the same settings: found 21.08, against 29.60 for uniform (−28.8 %)" in page.text
    assert "as scored 84.3, compensated 42.2" in page.text and "Perplexity, base to recovered" in page.text
    rows[-1]["recovered"]["perplexity"] = None
    rewrite(run / "summary.json", comparison=rows)
    assert "All recovered" not in report(run).text


def test_a_checkpoint_compensated_as_it_was_scored_is_no_other_model(run: Path) -> None:
    rewrite(run / "pruned.json", compensation={**MADE, "method": "ridge", "loss": 5.2})
    rewrite(run / "best.json", provenance={"realisation": "ridge", "ridge": 0.01})
    assert "this model. Its calibration loss is no lower than without the refit." in report(run).text
    rewrite(run / "best.json", provenance={"realisation": "ridge", "ridge": 0.1})
    assert "this model, another one than was scored." in report(run).text


def test_what_was_compared_on_held_out_text_and_what_was_written(run: Path) -> None:
    losses = {"plain": 5.25, "ridge": 5.75, "sequential": None}
    choice = {"written": "plain", "losses": losses, "tokens": 512, "text": "512 tokens"}
    rewrite(run / "pruned.json", compensation=None, choice=choice)
    page = report(run).text
    assert "The checkpoint is the plain cut: no refit" in page and "Which one is written" in page
    assert "5.25" in page and "5.75" in page
    rewrite(run / "pruned.json", compensation=MADE, choice={**choice, "written": "sequential"})
    page = report(run).text
    assert "Output projections refitted by least squares" in page and "Which one is written" in page


def test_answers_of_a_published_model_stand_before_the_architecture(run: Path) -> None:
    (run / "published-model.json").write_text(json.dumps(PUBLISHED))
    page = report(run)
    assert "Which <b>?" in page.texts and "one\n two" in page.texts
    assert "1 min 50 s (+10.0 %)" in page.text
    menu = [link.removeprefix("#") for link in page.references]
    assert menu[menu.index("published-model") + 1] == "architecture"
    assert menu == re.findall(r'<section id="([^"]+)"', (run / "report.html").read_text(encoding="utf-8"))
    (run / "published-model.json").write_text(json.dumps({**PUBLISHED, "plan": {**PUBLISHED["plan"], "sessions": 2}}))
    assert "it took" not in report(run).text


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("evaluation.json", "[]", "expected an object"),
        ("evaluation.json", '{"results": []}', "no results of models"),
        ("bench.json", "{", "not JSON"),
        ("bench.json", '{"models": [{}]}', "no results of models"),
        ("recovered/log.jsonl", "x\n{}\n", "line 1"),
        ("recovered/recover.yaml", "a: [", "not YAML"),
        ("pruned.json", "3", "expected an object"),
        ("published-model.json", json.dumps({**PUBLISHED, "answers": [{"prompt": ""}]}), "objects with base, prompt"),
        ("published-model.json", json.dumps({**PUBLISHED, "plan": {}}), "no 'estimate_seconds'"),
    ],
)
def test_corrupt_files_are_named(run: Path, file: str, content: str, words: str) -> None:
    (run / file).write_text(content)
    with pytest.raises(UserError, match=words) as told:
        write_report(run)
    assert file in str(told.value) and "\n" not in str(told.value)
