"""Budgets of milliseconds by the command line, on a tiny model with a made table."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_lines import printed, refused
from latency_tables import made_table, written
from tiny import save_families

from tracenas.benchmark.latency_table import LatencyTable
from tracenas.cli import invoke
from tracenas.families import Options
from tracenas.journal import Journal
from tracenas.models.checkpoints.source import open_source
from tracenas.settings import read_settings
from tracenas.space import Architecture

pytestmark = pytest.mark.integration

SETTINGS = ["--samples", "4", "--seq-len", "32", "--threads", "1", "--channel-quantum", "8"]
SMALL = ["--population", "6", "--elites", "2", "--iterations", "2"]
PAIR = ["--budget", "decode_ms=75%", "--params", "90%"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Tiny models, a text, a table, and the run of a search under it."""
    home = save_families(tmp_path_factory.mktemp("latency"), ("llama", "mixtral"), tokenizer)
    written(home / "table.json", made_table(home / "llama", channel_quantum=8))
    assert invoke([*search(home, home / "run"), *PAIR]) == 0
    return home


def search(home: Path, out: Path, table: str = "table.json") -> list[str]:
    data = ["--data", str(home / "text.txt"), "--out", str(out), "--latency", str(home / table)]
    return ["search", str(home / "llama"), *data, *SETTINGS, *SMALL]


def planned(home: Path, *options: str, table: Path | None = None) -> list[str]:
    named = ["--latency", str(table or home / "table.json"), "--channel-quantum", "8"]
    return ["plan", str(home / "llama"), "--no-timing", *named, *options]


def predicted(home: Path, arch: Any, point: int = 0) -> dict[str, float]:
    """By the table's own sum."""
    space = open_source(str(home / "llama")).space(Options(8))
    table = LatencyTable.read(home / "table.json")
    return table.predict(space.layers, Architecture.from_json(arch, where="test"), point)


def test_plan_says_milliseconds(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = printed(capsys, planned(home, "--budget", "decode_ms=70%", "--budget", "prefill_ms=80%"))
    space = open_source(str(home / "llama")).space(Options(8))
    base = predicted(home, space.base.to_json())
    uniform = predicted(home, plan["uniform"]["architecture"])
    for name, share in (("decode_ms", 0.7), ("prefill_ms", 0.8)):
        budget = plan["budgets"][name]
        assert budget["feasible"][1] == pytest.approx(base[name], abs=1e-4)
        assert budget["limit"] == pytest.approx(share * base[name], abs=1e-4)
        assert budget["uniform"] == pytest.approx(uniform[name], abs=1e-4)
        assert budget["feasible"][0] < budget["uniform"] <= budget["limit"]
    absolute = planned(home, "--budget", f"decode_ms={0.7 * base['decode_ms']:.6f}ms")
    assert printed(capsys, absolute)["budgets"]["decode_ms"]["limit"] == pytest.approx(
        0.7 * base["decode_ms"], rel=1e-4
    )
    assert invoke(planned(home, "--params", "80%")) == 0  # the table is of use without a budget of milliseconds
    assert "decode_ms" in capsys.readouterr().out


def test_the_point_is_the_first_that_fits_what_is_asked(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = open_source(str(home / "llama")).space(Options(8)).base.to_json()
    budget = ["--budget", "decode_ms=70%"]
    for asked, point in (([], 0), (["--serve-batch", "2"], 1), (["--prompt", "8", "--context", "24"], 1)):
        found = printed(capsys, planned(home, *budget, *asked))["budgets"]["decode_ms"]["feasible"][1]
        assert found == pytest.approx(predicted(home, base, point)["decode_ms"], abs=1e-4)
    line = refused(capsys, planned(home, *budget, "--serve-batch", "2", "--context", "16"))
    assert "no point of the latency table" in line and "1:16:16, 2:8:24" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"machine": {"device": "Abacus", "dtype": "fp32"}}, "was measured on Abacus, and this machine has"),
        ({"machine": None}, "was measured in q8_0, not in fp32"),
        (
            {"model": {"name": "m", "family": "llama", "parameters": 7}},
            "is of a llama of 7 parameters, not of a llama of",
        ),
        ({"checked": {"median_error": 0.123}}, "is off by 12.3 % in the median"),
        ({"checked": {}}, "was not checked on whole architectures"),
    ],
)
def test_a_table_that_says_nothing_of_this_job_is_refused_unless_told(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    table = made_table(home / "llama", channel_quantum=8)
    if changes.get("machine", "") is None:
        changes = {"machine": {**table.machine, "dtype": "q8_0"}}
    argv = planned(home, "--budget", "decode_ms=70%", table=Path(written(tmp_path / "t.json", table, **changes)))
    line = refused(capsys, argv)
    assert message in line and "--latency-anyway takes it all the same" in line
    assert printed(capsys, [*argv, "--latency-anyway"])["budgets"]["decode_ms"]["limit"] > 0


def test_a_table_in_the_dtype_that_is_asked_for_is_taken(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = made_table(home / "llama", channel_quantum=8)
    path = Path(written(tmp_path / "t.json", table, machine={**table.machine, "dtype": "q8_0"}))
    argv = planned(home, "--budget", "decode_ms=70%", table=path)
    assert printed(capsys, [*argv, "--outtype", "q8_0"])["budgets"]["decode_ms"]["limit"] > 0
    assert "was measured in fp32, not in q8_0" in refused(
        capsys, [*planned(home, "--budget", "decode_ms=70%"), "--outtype", "q8_0"]
    )


def test_a_table_of_this_machines_gpu_is_taken(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = made_table(home / "llama", channel_quantum=8)
    changed = {"machine": {**table.machine, "device": "NVIDIA Abacus", "dtype": "bf16"}}
    argv = planned(home, "--budget", "decode_ms=70%", table=Path(written(tmp_path / "t.json", table, **changed)))
    program = tmp_path / "nvidia-smi"
    for names, said in (("NVIDIA Sieve", "was measured on NVIDIA Abacus"), ("NVIDIA Sieve\\nNVIDIA Abacus", "")):
        program.write_text(f"#!/bin/sh\nprintf '{names}\\n'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        if said:
            assert said in refused(capsys, argv)
        else:
            assert printed(capsys, argv)["budgets"]["decode_ms"]["limit"] > 0


def test_bad_input_is_one_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["plan", str(home / "llama"), "--no-timing"]
    assert "budget decode_ms needs --latency" in refused(capsys, [*model, "--budget", "decode_ms=70%"])
    assert "latency-anyway and prompt need latency" in refused(capsys, [*model, "--params", "80%", "--prompt", "8"])
    assert "below the smallest" in refused(capsys, planned(home, "--budget", "decode_ms=0.001ms"))
    assert "a time such as 12.5ms" in refused(capsys, planned(home, "--budget", "decode_ms=7GB"))
    assert "ms; accepted: up to 100%" in refused(capsys, planned(home, "--budget", "decode_ms=2s"))
    groups = planned(home, "--budget", "decode_ms=70%", "--budget", "kv_cache=75%")
    assert "measured without --kv-groups" in refused(capsys, groups)
    other = ["plan", str(home / "mixtral"), "--no-timing", "--budget", "decode_ms=70%", "--latency"]
    assert "is of a llama" in refused(capsys, [*other, str(home / "table.json")])
    (tmp_path / "no.json").write_text("{}")
    assert "not a latency table" in refused(capsys, [*other, str(tmp_path / "no.json")])
    data = ["--data", str(home / "text.txt"), "--out", str(tmp_path / "run"), *SETTINGS]
    assert "needs --latency" in refused(capsys, ["search", str(home / "llama"), *data, "--budget", "decode_ms=70%"])
    assert not (tmp_path / "run").exists()


def test_a_table_in_groups_serves_budgets_of_the_cache(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = written(tmp_path / "t.json", made_table(home / "llama", channel_quantum=8, kv_groups=True))
    argv = planned(home, "--budget", "decode_ms=70%", "--budget", "kv_cache=75%", table=Path(table))
    budgets = printed(capsys, argv)["budgets"]
    assert all(one["uniform"] <= one["limit"] for one in budgets.values())


def test_candidates_meet_the_budget_and_the_run_keeps_the_table(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((home / "run" / "summary.json").read_text())["budgets"]["decode_ms"]
    records = Journal(home / "run" / "journal.jsonl").read()
    spent = {r["id"]: predicted(home, r["arch"])["decode_ms"] for r in records}
    assert len(spent) > 6 and max(spent.values()) <= summary["limit"] + 1e-4
    best = json.loads((home / "run" / "best.json").read_text())
    assert summary["cost"] == pytest.approx(spent[best["id"]], abs=1e-4)
    assert LatencyTable.read(home / "run" / "latency.json") == LatencyTable.read(home / "table.json")
    assert read_settings(home / "run" / "config.yaml")["latency"] == str(home / "table.json")
    found = printed(capsys, ["best", str(home / "run"), "--budget", "decode_ms=70%"])
    fitting = [r for r in records if spent[r["id"]] <= 0.7 * summary["limit"] / 0.75]
    assert found["score"] == max(r["score"] for r in fitting)
    assert found["costs"]["decode_ms"] == pytest.approx(spent[found["id"]], abs=1e-4)
    assert found["costs"]["prefill_ms"] > 0
    other = printed(capsys, ["best", str(home / "run"), "--budget", "decode_ms=80%", "--serve-batch", "2"])
    assert other["costs"]["decode_ms"] == pytest.approx(
        predicted(home, other["architecture"], 1)["decode_ms"], abs=1e-4
    )
    assert "no candidate that it has measured meets decode_ms" in refused(
        capsys, ["best", str(home / "run"), "--budget", "decode_ms=20%"]
    )


def test_a_run_goes_on_without_the_tables_file(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(home / "table.json", tmp_path / "gone.json")
    copied = {name: home / name for name in ("llama", "text.txt")}
    for name, path in copied.items():
        (tmp_path / name).symlink_to(path)
    assert invoke([*search(tmp_path, tmp_path / "run", "gone.json"), *PAIR]) == 0
    whole = (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "journal.jsonl").write_bytes(b"".join(whole[:7]))
    (tmp_path / "gone.json").unlink()
    for name in ("best.json", "summary.json"):
        (tmp_path / "run" / name).unlink()
    printed(capsys, ["resume", str(tmp_path / "run")])
    again = (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["id"] for line in again] == [json.loads(line)["id"] for line in whole]
    table = made_table(home / "llama", channel_quantum=8)
    written(tmp_path / "other.json", table)
    line = refused(capsys, [*search(tmp_path, tmp_path / "run", "other.json"), *PAIR, "--resume"])
    assert "--resume with another latency" in line


def test_best_proposes_under_a_budget_that_the_run_did_not_have(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(home / "run", tmp_path / "run")
    found = printed(capsys, ["best", str(run), "--budget", "decode_ms=55%", "--evaluations", "2"])
    base = predicted(home, open_source(str(home / "llama")).space(Options(8)).base.to_json())["decode_ms"]
    assert found["costs"]["decode_ms"] <= 0.55 * base
    assert len(Journal(Path(run) / "proposals.jsonl").read()) == 2


def test_one_shot_methods_meet_it(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["prune", str(home / "llama"), "--data", str(home / "text.txt"), "--out", str(tmp_path / "out"), *SETTINGS]
    budget = ["--budget", "decode_ms=70%", "--latency", str(home / "table.json")]
    made = printed(capsys, [*argv, *budget, "--compensate", "none", "--method", "uniform"])
    assert made["params"] == printed(capsys, planned(home, "--budget", "decode_ms=70%"))["uniform"]["params"]
    assert "--budget decode_ms=70%" in (tmp_path / "out" / "README.md").read_text()
    assert "--latency" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_compares_architectures_of_the_budget(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["run", *search(home, tmp_path / "run")[1:], "--text", str(home / "text.txt"), "--windows", "2"]
    made = printed(capsys, [*argv, "--budget", "decode_ms=75%", "--random-architectures", "1", "--compensate", "auto"])
    budget = json.loads((tmp_path / "run" / "summary.json").read_text())["budgets"]["decode_ms"]
    assert budget["cost"] <= budget["limit"]
    rows = {row["name"]: row for row in made["comparison"]}
    assert {"base", "uniform", "found"} <= rows.keys()
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"Budget decode_ms: {budget['cost']:,.3f} of {budget['limit']:,.3f}" in page


def test_best_needs_no_torch(home: Path) -> None:
    code = (
        "import sys; from tracenas.commands import call;"
        f"call('best', {{'run': {str(home / 'run')!r}, 'budget': {{'decode_ms': '75%'}}}});"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
