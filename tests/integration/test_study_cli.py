"""`tracenas study` and `tracenas study ablation` in-process on a tiny model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny

from tracenas.cli import invoke

pytestmark = pytest.mark.integration

Study = Callable[..., list[str]]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Study:
    """A command line for a tiny model and its texts."""
    home = tmp_path_factory.mktemp("study")
    model = save_tiny(home / "model", "llama", tokenizer)
    for name, start in (("data", 0), ("held", 7)):
        lines = [
            f"In line {i} the sum of {i * i % 97} and {i * 31 % 89} is told." for i in range(start, 400, 1 + start)
        ]
        (home / f"{name}.txt").write_text("\n".join(lines))

    def command(out: Path, *more: str, proxies: str = "phi,loss,loss_compensated", params: str = "80%") -> list[str]:
        argv = ["study", str(model), "--data", str(home / "data.txt"), "--text", str(home / "held.txt")]
        argv += ["--out", str(out), "--samples", "4", "--seq-len", "32", "--proxies", proxies]
        argv += ["--rank", "4", "--compensate-samples", "6"] if "phi" in proxies else []
        argv += [] if "0" in more else ["--recover-batch", "2"]
        argv += ["--windows", "4", "--resamples", "50"]
        argv += ["--params", params] if params else []
        return [*argv, *more]

    return command


POOL = ("--architectures", "4", "--steps", "2", "--long-steps", "4", "--seeds", "2")


@pytest.fixture(scope="module")
def finished(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "study"
    assert invoke(study(out, *POOL)) == 0
    return out


def results(out: Path) -> dict[str, Any]:
    """study.json and the journal without what differs from run to run: times."""
    found = json.loads((out / "study.json").read_text())
    found.pop("seconds")
    for row in found["proxies"]:
        row.pop("seconds")
    journal = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    for record in journal:
        record.pop("seconds")
        record.pop("proxy_seconds")
        for target in record["targets"].values():
            target.pop("seconds")
    return {**found, "journal": journal}


def said(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    """The single line a wrong command line is answered with."""
    assert invoke(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_study_writes_its_results(finished: Path) -> None:
    found = results(finished)
    assert [t["name"] for t in found["targets"]] == [f"{s}_{n}" for n in (0, 2, 4) for s in ("plain", "compensated")]
    assert found["main_target"] == "compensated_4"
    assert [row["name"] for row in found["proxies"]] == ["phi", "loss", "loss_compensated"]
    kinds = [r["kind"] for r in found["journal"]]
    assert kinds == ["uniform", "random", "mutation", "random"]
    for record in found["journal"]:
        assert len(record["targets"]["plain_4"]["by_seed"]) == 2
        assert record["targets"]["plain_4"]["by_seed"][0] != record["targets"]["plain_4"]["by_seed"][1]
        # both are a plain forward pass of the same candidate, on different text
        assert record["targets"]["plain_0"]["value"] == pytest.approx(-record["scores"]["loss"], rel=0.2)
    for row in found["proxies"]:
        assert -1 <= row["targets"]["compensated_4"]["rho"]["value"] <= 1
        assert row["targets"]["compensated_4"]["regret"]["to_best"] >= 0
    page = (finished / "report.html").read_text()
    assert page.count("<figure") >= 3
    assert "NaN" not in page
    assert "| loss_compensated |" in (finished / "study.md").read_text()


def test_recovery_lowers_the_training_loss_and_leaves_the_base_alone(finished: Path) -> None:
    """Steps of a random model on this text: the loss must fall, more with more steps."""
    for record in results(finished)["journal"]:
        losses = [record["targets"][f"plain_{n}"]["value"] for n in (0, 2, 4)]
        assert losses == sorted(losses, reverse=True)


def test_the_same_command_gives_the_same_table(study: Study, finished: Path, tmp_path: Path) -> None:
    assert invoke(study(tmp_path / "again", *POOL)) == 0
    assert results(tmp_path / "again") == results(finished)


def test_interrupted_and_resumed_equals_undisturbed(
    study: Study, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracenas.commands.study.targets import StudyMeasurer

    measure, calls = StudyMeasurer.measure, []

    def interrupted(self: StudyMeasurer, arch: Any) -> Any:
        calls.append(arch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(self, arch)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(StudyMeasurer, "measure", interrupted)
        assert invoke(study(out, *POOL)) == 130
    assert "go on with: tracenas resume" in capsys.readouterr().err
    journal = out / "journal.jsonl"
    assert len(journal.read_text().splitlines()) == 2
    with journal.open("a") as file:
        file.write('{"index": 2, "id": "cut o')
    assert "go on with --resume" in said(capsys, study(out, *POOL))
    assert "another steps" in said(capsys, study(out, *POOL, "--steps", "3", "--resume"))
    assert invoke(study(out, *POOL, "--resume")) == 0
    assert results(out) == results(finished)


def test_a_resumed_study_draws_from_the_space_that_it_was_started_with(study: Study, tmp_path: Path) -> None:
    argv = study(tmp_path / "out", "--architectures", "5", "--steps", "0", proxies="loss")
    assert invoke([*argv, "--min-depth", "4"]) == 0
    journal = (tmp_path / "out" / "journal.jsonl").read_text()
    assert invoke([*argv, "--resume"]) == 0
    assert (tmp_path / "out" / "journal.jsonl").read_text() == journal


def test_the_score_fisher_is_the_sum_of_the_table_of_sensitivity(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = study(out, "--architectures", "4", "--steps", "0", "--starts", "plain", proxies="fisher,loss")
    assert invoke([*argv, "--compensate-samples", "12"]) == 0
    capsys.readouterr()
    text, table = str(out / "compensation.safetensors"), str(tmp_path / "table.safetensors")
    assert invoke(["sensitivity", argv[1], "--data", text, "--out", table, "--json"]) == 0
    sub_blocks = json.loads(capsys.readouterr().out)["sub_blocks"]
    for record in results(out)["journal"]:
        total = 0.0
        for one in sub_blocks:
            kept = record["arch"]["layers"][one["block"]].get(one["unit"], 0)
            total += one["rise"][one["widths"].index(kept)]
        assert record["scores"]["fisher"] == pytest.approx(-total, rel=1e-12)
    scores = {r["id"]: r["scores"]["fisher"] for r in results(out)["journal"]}
    assert invoke([*argv, "--compensate-samples", "12", "--resume"]) == 0
    assert {r["id"]: r["scores"]["fisher"] for r in results(out)["journal"]} == scores


def test_too_little_text_for_the_table_says_which_proxy_wants_it(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = study(tmp_path / "out", "--architectures", "4", "--steps", "0", proxies="loss,fisher")
    line = said(capsys, [*argv, "--compensate-samples", "2"])
    assert line.startswith("tracenas: proxy fisher: 62 tokens are too few for ") and "are the least" in line
    assert not (tmp_path / "out").exists()


def test_nothing_can_be_taken_away_from_a_proxy_that_runs_no_candidate(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = study(tmp_path)[1], study(tmp_path)[3]
    argv = ["study", "ablation", model, "--data", data, "--proxy", "fisher", "--params", "80%"]
    assert "proxy fisher runs no candidate" in said(capsys, [*argv, "--out", str(tmp_path / "out")])


def test_a_finished_study_can_be_judged_anew(study: Study, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    text = "loss_compensated=0.5,phi=0.5"
    argv = study(out, *POOL, "--resume", "--target", "plain_2", "--combinations", text)
    assert invoke(argv) == 0
    found = results(out)
    assert found["main_target"] == "plain_2"
    assert found["proxies"][-1]["name"] == text
    assert found["journal"] == results(finished)["journal"]
    assert invoke(["report", str(out), "--out", str(tmp_path / "again.html")]) == 0
    assert text in (tmp_path / "again.html").read_text()


def test_across_sizes_with_the_shared_lora(study: Study, tmp_path: Path) -> None:
    more = ("--across-sizes", "--sizes", "60%-95%", "--architectures", "4", "--steps", "0", "--starts", "plain")
    out = tmp_path / "out"
    lora = ("--targets", "supernet_lora", "--lora-steps", "6", "--lora-rank", "2")
    assert invoke(study(out, *more, *lora, proxies="num_params,loss", params="")) == 0
    found = results(out)
    assert [t["name"] for t in found["targets"]] == ["plain_0", "supernet_lora"]
    for record in found["journal"]:
        assert record["targets"]["supernet_lora"]["value"] < record["targets"]["plain_0"]["value"]
    assert all(row["targets"]["supernet_lora"]["regret"] is None for row in found["proxies"])


def test_equal_scores_are_said_to_be_equal(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracenas.proxies import PROXIES, Proxy

    def fails(measurement: Any) -> float:
        raise ValueError("no such thing")

    for name, score in (("flat", lambda m: 1.0), ("broken", fails)):
        monkeypatch.setitem(PROXIES._loaded, name, Proxy(name, score))
    argv = study(tmp_path / "out", "--architectures", "3", "--steps", "0", "--starts", "plain", proxies="flat,broken")
    assert invoke(argv) == 0
    output = capsys.readouterr().out
    assert "flat with plain 0: undefined, all scores are equal" in output
    assert "0 of 3 architectures have both values" in output
    assert "broken failed on 3 of 3: ValueError: no such thing" in " ".join(output.split())
    assert "nan" not in output


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--architectures", "2"), "a correlation needs at least 3"),
        (("--proxies", "ph"), "did you mean 'phi'"),
        (("--starts", "compensted"), "did you mean 'compensated'"),
        (("--long-steps", "40"), "must be more than steps (50)"),
        (("--target", "plain_7"), "target 'plain_7'"),
        (("--architectures", "4", "--steps", "9999"), "recovery needs 19998"),
        (("--architectures", "500"), "distinct ones of this budget"),
        (("--across-sizes",), "either params"),
        (("--combinations", "kl=1,phi=1"), "'kl' is not among the study's proxies"),
        (("--targets", "supernet-lora"), "did you mean 'supernet_lora'"),
    ],
)
def test_wrong_input_is_answered_in_one_line(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert message in said(capsys, study(tmp_path / "out", *more))
    assert not list(tmp_path.glob("out/*"))


def test_ablation_of_a_study(study: Study, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = study(tmp_path / "x")
    argv = ["study", "ablation", command[1], "--data", command[3], "--study", str(finished)]
    argv += ["--out", str(tmp_path / "out"), "--seq-len", "32", "--samples", "2", "--sample-counts", "1,2,4"]
    argv += ["--lengths", "8,32", "--ranks", "1,4,full", "--rank", "4", "--resamples", "20"]
    assert invoke([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    values = {c["category"]: [row["value"] for row in c["rows"]] for c in found["categories"]}
    assert values == {"samples": ["1", "2", "4"], "length": ["8", "32"], "rank": ["1", "4", "full"]}
    for category in found["categories"]:
        assert category["rows"][-1]["with_reference"]["tau"]["value"] == 1.0
        assert "compensated_4" in category["rows"][0]["with_targets"]
    journal = tmp_path / "out" / "journal.jsonl"
    lines = journal.read_text().splitlines()
    assert len(lines) == 6  # the setting that all categories share is scored once
    journal.write_text("\n".join(lines[:3]) + "\n")
    assert invoke([*argv, "--json", "--resume"]) == 0
    again = json.loads(capsys.readouterr().out)
    for ours, theirs in zip(again["categories"], found["categories"], strict=True):
        assert [r["with_reference"] for r in ours["rows"]] == [r["with_reference"] for r in theirs["rows"]]
    assert "expected the directory of a finished study" in said(
        capsys, [*argv[:5], "--study", str(tmp_path), "--out", str(tmp_path / "other")]
    )
