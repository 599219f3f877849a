"""What a resumed run is compared with: the base model's loss must be the one that was recorded."""

from pathlib import Path

import pytest

from tracenas.errors import UserError
from tracenas.pipeline.resume import same_model


@pytest.mark.parametrize("change", [1e-3, -1e-3])
def test_another_model_is_refused(tmp_path: Path, change: float) -> None:
    same_model(tmp_path, 2.5)
    same_model(tmp_path, 2.5 + 1e-5)
    with pytest.raises(UserError, match=r"--resume with another model: .* the run's is 2\.500000"):
        same_model(tmp_path, 2.5 + change)


@pytest.mark.parametrize("text", ["{}", "[]", '{"loss": "2.5"}', '{"loss": NaN}', '{"loss": true}', "{"])
def test_a_damaged_record_of_the_base_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(UserError, match="base.json: "):
        same_model(tmp_path, 2.5)
