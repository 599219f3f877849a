"""`sparsify` and `metric` on the command line: checkpoints, ratios, resumption, and complaints in one line."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from run_journals import journal
from safetensors.torch import save_file
from tiny import save_tiny
from transformers import AutoModelForCausalLM

import tracenas
from tracenas.cli import invoke

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny", "llama", tokenizer)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tokens.safetensors"
    save_file({"input_ids": torch.randint(1, 257, (6, 24), generator=torch.Generator().manual_seed(0))}, path)
    return path


def said(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The single line a wrong command line is answered with."""
    assert invoke([str(a) for a in argv]) == 2
    output = capsys.readouterr()
    lines = [line for line in output.err.strip().splitlines() if line.startswith("tracenas:")]
    assert len(lines) == 1 and "Traceback" not in output.err and output.out == "", output
    return lines[0]


def answer(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    """The JSON object of a command that succeeds."""
    assert invoke([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def matrices(path: Path) -> dict[str, torch.Tensor]:
    loaded = AutoModelForCausalLM.from_pretrained(path)
    return {n: p.detach() for n, p in loaded.named_parameters() if "_proj.weight" in n}


@pytest.mark.parametrize("sparsity", ["0.5", "2:4"])
@pytest.mark.parametrize("metric", ["wanda", "sparsegpt", "abs(W) * mms(G)"])
def test_a_sparse_checkpoint_is_stock_and_has_exact_zeros(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str, sparsity: str
) -> None:
    out = tmp_path / "out"
    said_ = answer(capsys, "sparsify", model, "--metric", metric, "--sparsity", sparsity, "--data", data, "--out", out)
    found, base = matrices(out), matrices(model)
    zeros = sum(int((w == 0).sum()) for w in found.values())
    assert zeros == said_["zeros"] and said_["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert {n: w.shape for n, w in found.items()} == {n: w.shape for n, w in base.items()}
    if metric != "sparsegpt":
        assert all(torch.equal(w[w != 0], base[n][w != 0]) for n, w in found.items())
    if sparsity == "2:4":
        assert all(int((w.view(-1, 4) != 0).sum(1).max()) <= 2 for w in found.values())
    statistics = json.loads((out / "sparsity.json").read_text())
    assert sum(layer["zeros"] for layer in statistics["layers"]) == zeros
    assert statistics["metric"] == metric and len(statistics["layers"]) == len(found)
    card = (out / "README.md").read_text()
    assert all(str(tmp_path) not in (out / name).read_text() for name in ("README.md", "sparsity.json", "config.json"))
    assert f"{zeros:,} of" in card and "tracenas sparsify" in card
    assert not [p for p in tmp_path.iterdir() if p != out]


def test_metrics_without_needs_take_no_data(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "sparsify", model, "--metric", "magnitude", "--sparsity", "30%", "--out", tmp_path / "out")
    assert found["loss"] is None and found["sparsity"] == pytest.approx(0.3, abs=0.001)


def test_owl_global_and_a_gradients_file(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["sparsify", model, "--sparsity", "0.5", "--data", data]
    owl = answer(capsys, *base, "--ratios", "owl", "--out", tmp_path / "owl")
    shares = json.loads((tmp_path / "owl" / "sparsity.json").read_text())["shares"]
    assert len(set(shares.values())) > 1 and owl["sparsity"] == pytest.approx(0.5, abs=0.02)
    whole = answer(capsys, *base, "--compare", "global", "--metric", "magnitude", "--out", tmp_path / "global")
    assert whole["zeros"] == whole["weights"] // 2
    gradients = tmp_path / "g.safetensors"
    first = answer(capsys, *base, "--metric", "pruner_zero", "--gradients", gradients, "--out", tmp_path / "a")
    again = answer(capsys, *base, "--metric", "pruner_zero", "--gradients", gradients, "--out", tmp_path / "b")
    assert gradients.is_file() and first["loss"] == again["loss"]


SEARCH = ["--population", "5", "--elites", "2", "--iterations", "3", "--rank", "8"]


def test_ratios_from_a_search_and_from_its_file(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["sparsify", model, "--metric", "wanda", "--sparsity", "0.5", "--data", data]
    found = answer(capsys, *base, "--ratios", "search", *SEARCH, "--run", tmp_path / "run", "--out", tmp_path / "a")
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert {"attention", "mlp"} == set(best["architecture"]["layers"][0]) and 0 < best["score"] < 8
    again = answer(capsys, *base, "--ratios", tmp_path / "run" / "best.json", "--out", tmp_path / "b")
    assert (again["loss"], again["zeros"]) == (found["loss"], found["zeros"])
    message = said(capsys, *base, "--ratios", "search", *SEARCH, "--run", tmp_path / "run", "--out", tmp_path / "c")
    assert "go on with --resume" in message
    lines = (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "journal.jsonl").write_bytes(b"".join(lines[:4]))
    resumed = answer(
        capsys, *base, "--ratios", "search", *SEARCH, "--run", tmp_path / "run", "--resume", "--out", tmp_path / "c"
    )
    assert resumed["loss"] == found["loss"]
    again_lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    strip = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in again_lines]
    assert strip == [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


WRONG = {
    "abs(W) * Q": "unknown name 'Q'",
    "mul(W)": "'mul' takes 2 arguments, found 1, at column 1",
    "W +": "found the end at column 4",
    "wnada": "did you mean 'wanda'?",
    "2 + 3": "is constant",
    "1 + sqrt(X - X)": "'X - X' at column 10 is constant on layer 0",
    "sqr(exp(60 + W))": "is not finite on layer 0",
    "nowhere.json": "no such file",
}


@pytest.mark.parametrize("metric", WRONG)
def test_wrong_metrics(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str
) -> None:
    out = tmp_path / "out"
    message = said(capsys, "sparsify", model, "--metric", metric, "--sparsity", "0.5", "--data", data, "--out", out)
    assert WRONG[metric] in message and not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sparsity", "1.0"], "outside [0, 1)"),
        (["--sparsity", "-0.1"], "outside [0, 1)"),
        (["--sparsity", "4:2"], "N must be from 1 to M - 1"),
        (["--sparsity", "3:7"], "layer 0 self_attn.q_proj has 32 inputs, which is not divisible by 7"),
        (["--sparsity", "2:4", "--ratios", "owl"], "ratios must be uniform"),
        (["--sparsity", "2:4", "--compare", "global"], "compare must be auto or row"),
        (["--sparsity", "0.5", "--metric", "sparsegpt", "--compare", "row"], "compare must be auto"),
        (["--sparsity", "0.5", "--ratios", "nowhere"], "accepted: uniform, owl, search, or a JSON file"),
        (["--sparsity", "0.02", "--ratios", "owl"], "leaves no room"),
        (["--sparsity", "0.5", "--compare", "columns"], "compare"),
        ([], "'sparsity' is required"),
    ],
)
def test_wrong_settings(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert message in said(capsys, "sparsify", model, "--data", data, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_missing_data_and_a_taken_directory(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["sparsify", model, "--sparsity", "0.5"]
    assert "'data' is required: metric wanda" in said(capsys, *base, "--out", tmp_path / "out")
    assert "exists and is not empty" in said(capsys, *base, "--metric", "magnitude", "--out", model)


def test_metric_show_and_its_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = answer(capsys, "metric", "show", "abs(W * W) * mms(G)")
    assert shown["canonical"] == "mul(mms(G), sqr(W))" and shown["reads"] == ["G", "W"] and shown["nodes"] == 7
    (tmp_path / "tree.json").write_text(json.dumps(shown["tree"]))
    assert answer(capsys, "metric", "show", tmp_path / "tree.json")["id"] == shown["id"]
    assert "no command 'metric serach': did you mean 'search'?" in said(capsys, "metric", "serach")
    assert invoke(["metric", "--help"]) == 0 and "Discover pruning metrics" in capsys.readouterr().out


def metric_search(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    small = [
        "--windows",
        "2",
        "--population",
        "6",
        "--elites",
        "2",
        "--iterations",
        "4",
        "--samples",
        "3",
        "--threads",
        "1",
    ]
    return [
        "metric",
        "search",
        str(model),
        "--data",
        str(data),
        "--text",
        str(data),
        "--out",
        str(out),
        *small,
        *more,
    ]


@pytest.fixture(scope="module")
def searched(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("metric") / "run"
    assert invoke(metric_search(model, data, out)) == 0
    return out


def test_a_metric_search_finds_a_metric_that_sparsify_takes(
    searched: Path, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, summary = (json.loads((searched / n).read_text()) for n in ("best.json", "summary.json"))
    records = journal(searched)
    assert best["score"] == max(r["score"] for r in records if r["score"] is not None)
    assert {k["name"] for k in summary["known"]} >= {"magnitude", "wanda", "sparsegpt", "pruner_zero", "random"}
    assert {"weight", "activation", "gradient", "complexity"} == set(summary["correlation"])
    page = (searched / "report.html").read_text()
    assert "Fitness against complexity" in page and best["metric"].split("(")[0] in page
    for where in (searched / "best.json", searched):
        found = answer(
            capsys,
            "sparsify",
            model,
            "--metric",
            where,
            "--sparsity",
            "0.5",
            "--data",
            data,
            "--out",
            tmp_path / where.name,
        )
        assert found["metric"] == best["metric"]


def test_report_draws_a_metric_search_again(searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "report", searched, f"out={tmp_path / 'again.html'}")
    assert (tmp_path / "again.html").read_bytes() == (searched / "report.html").read_bytes()


def test_python_searches_as_the_command_does(searched: Path, model: Path, data: Path, tmp_path: Path) -> None:
    small = {"windows": 2, "population": 6, "elites": 2, "iterations": 4, "samples": 3, "threads": 1}
    found = tracenas.metric_search(model, data=data, text=data, out=tmp_path / "run", **small)
    assert found.metric == json.loads((searched / "best.json").read_text())["metric"]
    assert journal(tmp_path / "run") == journal(searched)


def test_resuming_with_other_settings_is_refused(
    searched: Path, model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "go on with --resume" in said(capsys, *metric_search(model, data, searched))
    assert "another seed" in said(capsys, *metric_search(model, data, searched, "--seed", "3", "--resume"))


@pytest.mark.parametrize(
    "option", [["--variables", "W,Q"], ["--sparsity", "3:7"], ["--elites", "9"], ["--max-nodes", "1"]]
)
def test_a_metric_search_refuses_wrong_settings(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    said(capsys, *metric_search(model, data, tmp_path / "out", *option))
    assert not (tmp_path / "out").exists()


def in_child(argv: list[str], kill_at: Path | None, lines: int) -> int | None:
    """Run a command line in a forked process, killed when a journal has so many lines; its exit status or None."""
    child = os.fork()
    if child == 0:
        os._exit(invoke(argv))
    for _ in range(2000 if kill_at is not None else 0):
        assert kill_at is not None
        if kill_at.is_file() and kill_at.read_bytes().count(b"\n") >= lines:
            os.kill(child, signal.SIGKILL)
            break
        time.sleep(0.005)
    _, status = os.waitpid(child, 0)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def test_killed_and_resumed_equals_undisturbed(searched: Path, model: Path, data: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    argv = metric_search(model, data, killed)
    for name, lines in (("config.yaml", 1), ("journal.jsonl", 1), ("journal.jsonl", 9)):
        in_child([*argv, *(["--resume"] if killed.exists() else [])], killed / name, lines)
    assert in_child([*argv, "--resume"], None, 0) == 0
    assert journal(killed) == journal(searched)
    best = [json.loads((run / "best.json").read_text()) for run in (killed, searched)]
    assert best[0] == best[1]


@pytest.mark.slow
def test_the_number_of_workers_does_not_matter(searched: Path, model: Path, data: Path, tmp_path: Path) -> None:
    assert invoke(metric_search(model, data, tmp_path / "run", "--workers", "2")) == 0
    assert journal(tmp_path / "run") == journal(searched)
