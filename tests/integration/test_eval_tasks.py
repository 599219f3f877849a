"""`tracenas eval --tasks` on the miniature tasks of the test suite, through the command line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tracenas.cli import invoke
from tracenas.demo import heldout_path, model_path

# lm-eval and what it imports warn.
pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

TASKS = Path(__file__).resolve().parents[1] / "data" / "tasks"
DEMO = str(model_path())


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """lm-eval alone on the same files: its own model loading, overlays with `dataset_path: json`."""
    import lm_eval
    import yaml
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("overlays")
    for name, file in (("piqa", "piqa/piqa"), ("arc_easy", "arc/arc_easy"), ("winogrande", "winogrande/default")):
        overlay = {
            "include": str(Path(lm_eval.__file__).parent / "tasks" / f"{file}.yaml"),
            "task": name,
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {
                "data_files": {"validation": str(TASKS / name / "validation.jsonl")},
                "cache_dir": str(folder / "cache"),
            },
            "training_split": None,
            "test_split": None,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(overlay))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    lm = HFLM(pretrained=DEMO, dtype="float32", device="cpu", batch_size=4)
    found: dict[str, Any] = {}
    for shots, names in ((0, ["piqa", "arc_easy"]), (3, ["winogrande"])):
        raw = lm_eval.simple_evaluate(lm, tasks=names, task_manager=manager, num_fewshot=shots)
        assert raw is not None
        found |= raw["results"]
    return {
        name: {k.removesuffix(",none"): v for k, v in row.items() if k.endswith(",none")} for name, row in found.items()
    }


def test_tasks_and_text_in_one_call_equal_lm_eval(
    expected: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    argv = ["eval", DEMO, "--tasks", "piqa,arc_easy,winogrande:3", "--task-data", str(TASKS), "--device", "cpu"]
    argv += ["--text", str(heldout_path()), "--windows", "2", "--seq-len", "64", "--json", "--out", str(out)]
    assert invoke(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["perplexity"] > 1 and found["tokens"] == 126
    assert set(found["tasks"]) == set(expected) == {"piqa", "arc_easy", "winogrande"}
    for name, metrics in expected.items():
        assert {k: found["tasks"][name][k] for k in metrics} == metrics
    assert {n: (t["n"], t["shots"]) for n, t in found["tasks"].items()} == {
        "piqa": (10, 0),
        "arc_easy": (8, 0),
        "winogrande": (8, 3),
    }
    assert found["tasks"]["winogrande"]["shots_from"] == "validation, without the question itself"
    assert found["tasks"]["piqa"]["truncated"] == 0
    assert found["average"] is None
    written = json.loads(out.read_text())
    assert written["results"] == [found] and written["provenance"]["lm_eval"]


def test_several_models_make_one_table_and_long_prompts_are_reported(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny import save_tiny

    tiny = str(save_tiny(tmp_path / "tiny", "llama", tokenizer))
    argv = ["eval", DEMO, tiny, "--tasks", "piqa", "--limit", "3", "--task-data", str(TASKS), "--device", "cpu"]
    assert invoke(argv) == 0
    out = capsys.readouterr().out
    assert "acc_norm" in out and "3 questions per task only" in out
    assert "lost their beginning" in out  # 64 positions, a byte per token
    assert invoke([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["tasks"]["piqa"]["n"] for row in found] == [3, 3]
    assert "perplexity" not in found[0]
    assert found[1]["tasks"]["piqa"]["truncated"] > 0


def test_a_heterogeneous_model_is_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers: list[dict[str, Any]] = [{"heads": 5, "channels": 224}] * 6 + [{"skip": True}, {"heads": 0, "channels": 64}]
    (tmp_path / "arch.json").write_text(json.dumps({"layers": layers}))
    pruned = str(tmp_path / "pruned")
    settings = ["--data", str(heldout_path()), "--samples", "2", "--seq-len", "32", "--device", "cpu", "--json"]
    assert invoke(["prune", DEMO, "--arch", str(tmp_path / "arch.json"), "--out", pruned, *settings]) == 0
    assert not json.loads(capsys.readouterr().out)["stock"]
    assert invoke(["eval", pruned, "--tasks", "piqa", "--task-data", str(TASKS), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"]["piqa"]["n"] == 10


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to measure: give text"),
        (["--task-data", str(TASKS), "--text", "x.txt"], "task-data without tasks"),
        (["--tasks", "piqqa", "--task-data", str(TASKS)], "unknown task 'piqqa': did you mean 'piqa'?"),
        (["--tasks", "sciq", "--task-data", str(TASKS)], "no folder 'sciq' in it"),
        (["--tasks", "piqa:10", "--task-data", str(TASKS)], "with 10 shots needs 11 rows in validation.jsonl"),
        (["--suite", "papre"], "unknown suite 'papre': did you mean 'paper'?"),
        (["--tasks", "piqa", "--limit", "0"], "limit '0'"),
    ],
)
def test_wrong_input_is_one_line_and_status_two(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["eval", DEMO, *argv]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1


def test_without_lm_eval_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracenas.evaluation import harness

    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    assert invoke(["eval", DEMO, "--tasks", "piqa", "--task-data", str(TASKS)]) == 2
    assert capsys.readouterr().err.strip() == ("tracenas: tasks need lm-evaluation-harness: pip install lm-eval")


@pytest.mark.slow
def test_an_unknown_task_gets_a_suggestion_from_all_of_lm_eval(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["eval", DEMO, "--tasks", "openbokqa"]) == 2
    assert "unknown task 'openbokqa': did you mean 'openbookqa'" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_give_what_one_gives(capsys: pytest.CaptureFixture[str]) -> None:
    """torchrun on gloo: windows and requests are shared out, one process prints."""
    argv = ["eval", DEMO, "--tasks", "piqa,winogrande:3", "--task-data", str(TASKS), "--device", "cpu", "--json"]
    argv += ["--text", str(heldout_path()), "--windows", "5", "--seq-len", "128"]
    assert invoke(argv) == 0
    one = json.loads(capsys.readouterr().out)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "tracenas.cli",
    ]
    done = subprocess.run([*launch, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads(done.stdout)
    assert two.pop("nll") == pytest.approx(one.pop("nll"), rel=1e-12)
    assert two.pop("perplexity") == pytest.approx(one.pop("perplexity"), rel=1e-12)
    assert two == one
