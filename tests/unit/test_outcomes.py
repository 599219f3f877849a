"""What a command returns, in a notebook: tables as HTML, records as a DataFrame."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tracenas.commands.search.result import SearchOutcome
from tracenas.commands.sensitivity import Sensitivities
from tracenas.errors import UserError
from tracenas.reporting.terminal import Outcome, Table
from tracenas.space.architecture import Architecture


@dataclass(frozen=True)
class Measured(Outcome):
    path: Path
    loss: float
    choice: dict[str, int]

    def tables(self) -> list[Table]:
        return [Table("loss <of> a & b", ("model", "loss"), [(str(self.path), f"{self.loss:.4f}")], ["<script>"])]


MEASURED = Measured(Path("a<b>"), 1.5, {"tokens": 3})


def test_tables_are_html_with_everything_as_it_stands() -> None:
    assert MEASURED._repr_html_() == (
        "<table><caption>loss &lt;of&gt; a &amp; b</caption><thead><tr><th>model</th><th>loss</th></tr></thead>"
        "<tbody><tr><td>a&lt;b&gt;</td><td>1.5000</td></tr></tbody></table><p>&lt;script&gt;</p>"
    )


def test_a_frame_has_the_numbers() -> None:
    pytest.importorskip("pandas")
    frame = MEASURED.to_frame()
    assert frame.to_dict("records") == [{"path": "a<b>", "loss": 1.5, "choice.tokens": 3}]
    one = {"block": 0, "sub_block": "mlp", "unit": "channels", "order": [1, 0], "widths": [0, 2]}
    table = Sensitivities(Path("t"), 8, [{**one, "rise": [0.5, 0.0], "parameters": [0, 6]}]).to_frame()
    assert table["width"].tolist() == [0, 2] and table["rise"].tolist() == [0.5, 0.0] and len(table.columns) == 6


def test_the_frame_of_a_search_has_a_row_per_candidate(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    (tmp_path / "journal.jsonl").write_text('{"id": "a", "loss": 2.0}\n{"id": "b", "loss": 1.0}\n')
    found = SearchOutcome(tmp_path, tmp_path / "best.json", Architecture(()), -1.0, {})
    assert found.to_frame()["loss"].tolist() == [2.0, 1.0]


def test_a_frame_without_pandas_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="pip install pandas"):
        MEASURED.to_frame()
