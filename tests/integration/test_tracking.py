"""`--report-to`: event files of TensorBoard read back; a class that remembers stands for the other trackers."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from accelerate import tracking as accelerate_tracking
from recovery_toys import log_of, write_text
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from test_resume import interrupted
from tiny import save_tiny

from tracenas.cli import invoke
from tracenas.config.tracking import TRACKERS
from tracenas.strategies import generations

pytestmark = pytest.mark.integration

SMALL = ["--samples", "4", "--seq-len", "32", "--population", "4", "--elites", "2", "--iterations", "3"]
LAST = 2
"""The last generation of these."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    home = tmp_path_factory.mktemp("tracking")
    save_tiny(home / "model", "llama", tokenizer)
    write_text(home / "text.txt", 60)
    write_text(home / "held-out.txt", 10, seed=1)
    return home


@pytest.fixture(autouse=True)
def nothing_is_said_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def search(home: Path, out: Path, *more: str) -> list[str]:
    argv = ["search", str(home / "model"), "--data", str(home / "text.txt"), "--threads", "1", *SMALL]
    return [*argv, "--params", "60%", "--start", "none", "--out", str(out), *more]


def points(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar in the event files by step, doubles included."""
    found = defaultdict(list)
    for file in sorted(directory.glob("events.*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found[value.tag].append((event.step, value.simple_value))
    return {name: sorted(values) for name, values in found.items()}


def journal(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def hyper_parameters(directory: Path) -> list[str]:
    return [file.read_text() for file in directory.rglob("hparams.yml")]


def test_an_interrupted_search_goes_on_in_the_same_event_log(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert interrupted(monkeypatch, search(home, out, "--report-to", "tensorboard"), 7) == 130
    events = out / "tensorboard"
    assert [step for step, _ in points(events)["search/best"]] == [0, 1]
    assert invoke(["resume", str(out)]) == 0
    found, summary = points(events), read(out / "summary.json")
    records, expected = journal(out), generations(journal(out), 4, 2)
    assert len(expected) == LAST + 1 > 2
    for name in ("best", "mean_elites", "mean"):
        values = [(one.generation, pytest.approx(getattr(one, name))) for one in expected]
        assert found[f"search/{name}"] == values
    assert found["search/evaluations"] == [(0, 4), (1, 6), (LAST, 8)]
    assert found["search/seconds"][-1] == (LAST, pytest.approx(sum(r["seconds"] for r in records)))
    budget = summary["budget"]["limit"]
    best = max(records, key=lambda r: float(r["score"]))  # the search's; held-out text may take another in the end
    assert found["search/budget_used"][-1] == (LAST, pytest.approx(best["params"] / budget))
    assert found["result/budget_used"] == [(LAST + 1, pytest.approx(summary["params"] / budget))]
    assert found["result/score"] == [(LAST + 1, pytest.approx(summary["score"]))]
    (settings,) = hyper_parameters(events)
    assert "proxy: loss_compensated" in settings and "params: 60%" in settings and "left_open" not in settings
    assert invoke(["resume", str(out)]) == 0
    assert points(events) == found and len(hyper_parameters(events)) == 1


def test_the_result_has_the_predicted_and_the_measured_rise(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    argv = [part for part in search(home, out, "--report-to", "tensorboard") if part not in ("--start", "none")]
    assert invoke(argv) == 0
    found, summary = points(out / "tensorboard"), read(out / "summary.json")
    rises = [key for key in summary if "_rise" in key]
    assert {"predicted_rise", "measured_rise"} <= set(rises)
    for key in rises:
        assert found[f"result/{key}"] == [(LAST + 1, pytest.approx(summary[key]))]


def test_a_run_reports_its_search_and_its_recovery(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sections = [f"recover.{key}" for key in ("method=pretrain", "max_steps=2", "global_batch=2", "seq_len=16")]
    argv = ["run", *search(home, out, "--report-to", "tensorboard")[1:], "--text", str(home / "held-out.txt")]
    assert invoke([*argv, "--compensate", "none", "--random-architectures", "1", *sections, "recover.log_every=1"]) == 0
    assert points(out / "tensorboard")["result/score"]
    losses = [record["loss"] for record in log_of(out / "recovered") if "loss" in record]
    trained = points(out / "recovered" / "tensorboard")["train/loss"]
    assert [value for _, value in trained] == pytest.approx(losses)


def test_a_study_reports_architectures_and_what_each_proxy_is_worth(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "study"
    argv = ["study", str(home / "model"), "--data", str(home / "text.txt"), "--text", str(home / "held-out.txt")]
    argv += ["--params", "80%", "--architectures", "4", "--samples", "4", "--seq-len", "32", "--windows", "4"]
    argv += ["--proxies", "loss,num_params", "--steps", "0", "--starts", "plain", "--resamples", "20", "--threads", "1"]
    argv += ["--report-to", "tensorboard", "--out", str(out)]
    assert interrupted(monkeypatch, argv, 3) == 130
    assert invoke(["resume", str(out)]) == 0
    found, results = points(out / "tensorboard"), read(out / "study.json")
    assert found["study/architectures"] == [(n, n) for n in (1, 2, 3, 4)]
    assert found["score/loss"] == [
        (n, pytest.approx(record["scores"]["loss"])) for n, record in enumerate(journal(out), start=1)
    ]
    rho = {row["name"]: row["targets"]["plain_0"]["rho"]["value"] for row in results["proxies"]}
    assert found["rho/loss"] == [(5, pytest.approx(rho["loss"]))]


def test_a_metric_search_reports_its_generations(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "metric"
    argv = ["metric", "search", str(home / "model"), "--data", str(home / "text.txt"), "--windows", "4", *SMALL]
    argv += ["--text", str(home / "held-out.txt"), "--threads", "1", "--report-to", "tensorboard", "--out", str(out)]
    assert invoke(argv) == 0
    found, summary = points(out / "tensorboard"), read(out / "summary.json")
    assert [step for step, _ in found["search/best"]] == [0, 1, LAST]
    assert found["search/best"][-1][1] == pytest.approx(-summary["loss"])
    assert found["result/perplexity"] == [(LAST + 1, pytest.approx(summary["perplexity"]))]
    assert "search/budget_used" not in found


# --- the other trackers ---------------------------------------------------------------------------


class Remembers(accelerate_tracking.GeneralTracker):  # type: ignore[misc]
    """Stands for a tracker of accelerate."""

    requires_logging_directory, main_process_only = False, False
    calls: ClassVar[list[tuple[str, Any]]] = []
    fails: ClassVar[dict[str, int]] = {}
    """Method → how many calls of it succeed."""

    def __init__(self, **arguments: Any) -> None:
        self._call("init", arguments)

    def _call(self, method: str, what: Any = None) -> None:
        left = self.fails.get(method, 1000)
        if left == 0:
            raise ConnectionError(f"no answer to {method}\nand more lines")
        self.fails[method] = left - 1
        self.calls.append((method, what))

    def start(self) -> None:
        print("what trackers tell of themselves")
        self._call("start")

    @property
    def tracker(self) -> Any:
        return SimpleNamespace(id="a1", name="r-1", info=SimpleNamespace(run_id="m1"))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._call("settings", values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self._call("log", (step, values))

    def log_artifact(self, local_path: str) -> None:
        self._call("artifact", local_path)

    def finish(self) -> None:
        self._call("finish")

    @classmethod
    def told(cls, method: str) -> list[Any]:
        return [what for name, what in cls.calls if name == method]


@pytest.fixture(params=["wandb", "trackio", "mlflow"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a tracker that counts as installed and remembers what it is told."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / f"{request.param}.py").write_text("raise ImportError('only looked for')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, request.param, Remembers)
    Remembers.calls, Remembers.fails = [], {}
    yield request.param


IDS = {"wandb": ("id", "a1"), "trackio": ("name", "r-1"), "mlflow": ("run_id", "m1")}


def test_every_tracker_is_told_everything_once(
    tracker: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    argv = search(home, out, "--report-to", tracker, "--run-name", "mine")
    assert interrupted(monkeypatch, argv, 7) == 130
    (begun,) = Remembers.told("init")
    assert "mine" in str(begun) and begun.get("run_id") is None and begun.get("id") is None
    assert Remembers.calls[-1][0] == "finish"
    capsys.readouterr()
    assert invoke([*argv, "--resume", "--json"]) == 0
    json.loads(capsys.readouterr().out)  # nothing else is on stdout
    key, value = IDS[tracker]
    assert Remembers.told("init")[1][key] == value
    assert len(Remembers.told("settings")) == (2 if tracker == "trackio" else 1)  # it forgets them
    assert Remembers.told("settings")[0]["proxy"] == "loss_compensated"
    *generations_, result = Remembers.told("log")
    assert [step for step, _ in (*generations_, result)] == [0, 1, LAST, LAST + 1]
    best = read(out / "best.json")
    if tracker == "mlflow":  # takes no text
        assert "result/architecture" not in result[1] and Remembers.told("artifact") == [str(out / "best.json")]
    else:
        assert json.loads(result[1]["result/architecture"]) == best["architecture"]


def test_a_tracker_that_fails_does_not_end_the_search_and_is_sent_the_rest_later(
    tracker: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    Remembers.fails = {"log": 1, "finish": 0}
    argv = search(home, out, "--report-to", f"{tracker},tensorboard")
    assert invoke(argv) == 0
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "report-to" in line]
    assert warning.startswith(f"warning: report-to {tracker}: no answer to log; goes on without it")
    assert [step for step, _ in points(out / "tensorboard")["search/best"]] == [0, 1, LAST]
    Remembers.fails = {}
    assert invoke([*argv, "--resume"]) == 0
    assert [step for step, _ in Remembers.told("log")] == [0, 1, LAST, LAST + 1]
    assert len(points(out / "tensorboard")["search/best"]) == LAST + 1


def test_a_tracker_that_cannot_be_started_is_told_before_any_work(
    tracker: str, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    Remembers.fails = {"start": 0}
    argv = search(home, out, "--report-to", f"tensorboard,{tracker}")
    assert invoke(argv) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == f"tracenas: report-to {tracker}: cannot be started: no answer to start"
    assert not out.exists()
    Remembers.fails = {}
    assert invoke(argv) == 0


def test_a_run_goes_on_without_a_tracker_that_cannot_be_started(
    tracker: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert interrupted(monkeypatch, search(home, out, "--report-to", tracker), 5) == 130
    Remembers.fails = {"start": 0}
    capsys.readouterr()
    assert invoke(["resume", str(out)]) == 0
    err = capsys.readouterr().err
    assert f"report-to {tracker}: no answer to start" in err and err.count("report-to") == 1
    assert (out / "best.json").is_file()


COMMANDS = {
    "search": [],
    "metric search": ["--text", "held-out.txt"],
    "study": ["--text", "held-out.txt", "--params", "80%"],
    "recover": ["--method", "pretrain", "--max-steps", "1"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("unknown", ["paper", "tensorboard,paper", "comet_ml"])
def test_an_unknown_tracker_is_told_by_every_command(
    command: str,
    unknown: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(home)
    argv = [*command.split(), "model", "--data", "text.txt", "--out", str(tmp_path / "out"), *COMMANDS[command]]
    argv += ["--params", "60%"] if command == "search" else []
    assert invoke([*argv, "--report-to", unknown]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    name = unknown.removeprefix("tensorboard,")
    assert f"report-to '{name}': accepted: tensorboard, wandb, trackio, mlflow" in line
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_tracker_that_is_not_installed_is_told(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TRACKERS, "mlflow", ("no_such_module",))
    assert invoke(search(home, tmp_path / "run", "--report-to", "mlflow")) == 2
    assert "report-to 'mlflow': not installed: pip install no_such_module" in capsys.readouterr().err
