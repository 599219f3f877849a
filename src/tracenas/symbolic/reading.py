"""An expression as users name it: its text, a JSON file, or a metric search's run directory. No torch."""

from pathlib import Path

from tracenas.errors import UserError
from tracenas.rundir import read_json
from tracenas.symbolic.parser import Located, locate
from tracenas.symbolic.tree import Expression

__all__ = ["located_expression"]


def located_expression(text: str) -> Located:
    """The expression of a text, of a JSON file or of a metric search's run directory.

    Raises:
        UserError: naming the column or the place in the file.
    """
    path = Path(text)
    if path.is_dir() and (path / "best.json").is_file():
        path = path / "best.json"
    if path.suffix == ".json" or path.is_file():
        try:
            return locate(Expression.from_json(read_json(path), where=str(path)).infix)
        except RecursionError as error:
            raise UserError(f"{path}: nested too deeply for an expression") from error
    return locate(text)
