"""Hidden states that are put aside come back as they were; a full disk is told in one line."""

import errno
from typing import Any

import pytest
import torch

from tracenas.errors import UserError
from tracenas.saliency.backwards import Shelf


def test_what_is_put_aside_comes_back_in_any_order() -> None:
    shelf = Shelf(torch.device("cpu"))
    kept = [torch.randn(2, 3, 4), torch.randn(1, 5, 4, dtype=torch.bfloat16), torch.randn(3, 2).T]
    numbers = [shelf.put(tensor) for tensor in kept]
    for number in (2, 0, 1, 0):
        back = shelf.get(numbers[number])
        assert back.dtype == kept[number].dtype and torch.equal(back, kept[number])
    back = shelf.get(numbers[0])
    back.zero_()
    assert torch.equal(shelf.get(numbers[0]), kept[0])
    shelf.close()


class Full:
    def seek(self, place: int, whence: int = 0) -> int:
        return 0

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_the_users_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    with pytest.raises(UserError, match="no space left for hidden states; point TMPDIR at"):
        Shelf(torch.device("cpu")).put(torch.zeros(4))
