"""The example notebook in a kernel, and a kernel that is interrupted in a search."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager, start_new_kernel
from nbclient import NotebookClient

import tracenas
from tracenas.cli import invoke
from tracenas.demo import calibration_path, model_path

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.filterwarnings("default")]

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_hour.ipynb"
SEARCH: dict[str, Any] = {"params": "60%", "evaluations": 40, "samples": 8, "seq_len": 128, "threads": 1}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook after all of its cells have run; one that fails is an error here."""
    home = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")], "outputs are not committed"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(home)}}).execute()
    return notebook


def shown(notebook: Any, source: str) -> list[dict[str, str]]:
    """What the cell that has this text shows, by type."""
    (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and source in cell.source)
    return [output.get("data") or {"text/plain": output["text"]} for output in cell.outputs]


def test_a_search_shows_its_progress_in_one_output(executed: Any) -> None:
    bars, table = shown(executed, "tracenas.search(")
    assert "Generation" in bars["text/html"] and "best loss_compensated" in bars["text/html"]
    assert table["text/html"].startswith("<table><caption>search of ")


def test_results_are_tables_and_frames(executed: Any) -> None:
    _, pruned = shown(executed, "found = tracenas.prune(")
    assert "<td>checkpoint</td>" in pruned["text/html"]
    (frame,) = shown(executed, "result.to_frame()")
    assert 'class="dataframe"' in frame["text/html"] and "perplexity" in frame["text/html"]


def test_both_models_go_on_with_the_text(executed: Any) -> None:
    said = "".join(output["text/plain"] for output in shown(executed, ".generate("))
    assert said.count("The function returns") >= 2


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    manager, client = start_new_kernel(cwd=str(tmp_path))
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_an_interrupted_search_goes_on_from_the_command_line(
    kernel: tuple[KernelManager, BlockingKernelClient], tmp_path: Path
) -> None:
    """The kernel lives on: what it has measured is in the journal, and the run is nobody's."""
    manager, client = kernel
    calm, run = tmp_path / "calm", tmp_path / "run"
    tracenas.search(model_path(), data=calibration_path(), out=calm, **SEARCH)
    places = {"data": str(calibration_path()), "out": "run"}
    asked = client.execute(f"import tracenas\ntracenas.search({str(model_path())!r}, **{ {**places, **SEARCH} })")
    begun = time.monotonic()
    while len(journal(run)) < 5:
        assert time.monotonic() - begun < 300, "the search does not begin"
        time.sleep(0.01)
    manager.interrupt_kernel()
    reply = reply_to(client, asked)
    assert reply.get("ename") == "KeyboardInterrupt", reply
    assert 5 <= len(journal(run)) < len(journal(calm))
    assert invoke(["resume", str(run)]) == 0
    assert journal(run) == journal(calm)
    best = [json.loads((path / "best.json").read_text())["architecture"] for path in (run, calm)]
    assert best[0] == best[1]
    asked = client.execute("found = tracenas.resume('run')\nassert found.best.exists()")
    assert reply_to(client, asked)["status"] == "ok"


def reply_to(client: BlockingKernelClient, request: str) -> dict[str, Any]:
    """What the kernel answers; answers to earlier requests, such as whether it is there, are passed over."""
    while (message := client.get_shell_msg(timeout=120))["parent_header"]["msg_id"] != request:
        pass
    content: dict[str, Any] = message["content"]
    return content


def journal(run: Path) -> list[dict[str, Any]]:
    """A search's complete lines, times aside."""
    path = run / "journal.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]
