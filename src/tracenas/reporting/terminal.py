"""What commands return: plain data with `to_json()` for scripts and `show()` for people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.tables import Table

__all__ = ["Outcome", "Table", "print_table", "to_plain"]


class Outcome:
    """What a command returns: plain data for scripts, tables for people."""

    def to_json(self) -> Any:
        """For `--json`."""
        return to_plain(vars(self))

    def tables(self) -> Sequence[Table]:
        """For people."""
        raise NotImplementedError

    def records(self) -> list[dict[str, Any]]:
        """What it consists of, a mapping each."""
        plain = self.to_json()
        return plain if isinstance(plain, list) else [plain]

    def to_frame(self) -> Any:
        """The records as a pandas DataFrame; columns of nested ones are called `outer.inner`.

        Raises:
            UserError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("to_frame needs pandas: pip install pandas") from error
        return pandas.json_normalize(to_plain(self.records()))

    def _repr_html_(self) -> str:
        """The tables in a notebook."""
        return "".join(table.html() for table in self.tables())

    def show(self) -> None:
        """The tables on stdout."""
        for table in self.tables():
            print_table(table)

    def table(self) -> str:
        """The tables as plain text."""
        return "\n".join(table.text() for table in self.tables())


def print_table(table: Table) -> None:
    """Draw a table and its notes on stdout, every cell as it stands; plain text where stdout is no terminal."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    title = Text(table.title, style="table.title") if table.title else None
    drawn = RichTable(title=title, title_justify="left", header_style="bold")
    for i, name in enumerate(table.columns):
        drawn.add_column(Text(name), justify="left" if i == 0 else "right", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    console = Console()
    if not console.is_terminal:  # lines of a file or pipe are not cut to the width of a screen
        console.width = 100_000
    console.print(drawn)
    for note in table.notes:
        print(note)


def to_plain(value: Any) -> Any:
    """Paths as strings, tuples as lists, recursively."""
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
