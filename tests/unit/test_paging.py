"""Tensors in mapped files: the same numbers, nothing left behind, a full or a volatile directory refused."""

import errno
import tempfile
from pathlib import Path

import pytest
import torch

from tracenas import paging
from tracenas.errors import UserError
from tracenas.formats import parse_bytes
from tracenas.paging import paged


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(paging, "_file_system", lambda path: "ext4")
    monkeypatch.setattr(paging, "LEAST", 1)
    monkeypatch.setattr(paging, "_SMALL", paging._SharedFile())
    return tmp_path


def resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_it_holds_the_same_numbers_and_leaves_no_file(dtype: torch.dtype, directory: Path) -> None:
    tensor = torch.arange(12, dtype=dtype).view(3, 4).T
    kept = paged(tensor)
    assert torch.equal(kept, tensor) and kept.dtype == dtype and kept.is_contiguous()
    assert list(directory.iterdir()) == []
    kept[0, 0] = 7
    assert tensor[0, 0] == 0 and kept[0, 0] == 7


def test_it_casts_and_takes_what_is_empty() -> None:
    kept = paged(torch.tensor([1.001, 2.0]), torch.bfloat16)
    assert torch.equal(kept, torch.tensor([1.001, 2.0]).bfloat16())
    assert paged(torch.zeros(0, 3)).shape == (0, 3)


def test_small_tensors_share_a_file_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "_SHARED", 1 << 12)
    kept = [paged(torch.full((33,), float(number))) for number in range(40)]
    assert 1 < len({tensor.untyped_storage().data_ptr() for tensor in kept}) < 40
    assert all(torch.equal(tensor, torch.full((33,), float(number))) for number, tensor in enumerate(kept))
    kept[0].requires_grad_()
    loss = (kept[0] * kept[0]).sum()
    kept[1].fill_(0)  # in-place, and no part of the graph
    loss.backward()


def test_what_is_small_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "LEAST", 17)
    small = torch.ones(4)
    assert paged(small) is small
    assert paged(torch.ones(5)) is not small


def test_its_pages_are_not_the_process_own_memory() -> None:
    tensor = torch.ones(8 << 20)
    before = resident("RssAnon")
    kept = paged(tensor)
    assert float(kept.sum()) == len(tensor)
    assert resident("RssAnon") - before < 8 << 20  # of 32 MiB


def test_tensors_of_an_accelerator_stay_there() -> None:
    kept = paged(torch.empty(1 << 20, device="meta"), torch.bfloat16)
    assert kept.device.type == "meta" and kept.dtype == torch.bfloat16


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(paging, "_reserve", full)
    with pytest.raises(UserError, match="no space left for weights; point TMPDIR at a larger disk"):
        paged(torch.ones(4))
    assert list(directory.iterdir()) == []


def test_a_directory_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "_file_system", lambda path: "tmpfs")
    with pytest.raises(UserError, match="its files are memory"):
        paged(torch.ones(4))


@pytest.mark.parametrize(
    ("text", "size"),
    [("700MB", 700_000_000), ("3.5GiB", 3758096384), ("512 KiB", 524288), ("auto", None), ("12", None), ("-1GB", None)],
)
def test_amounts_of_memory(text: str, size: int | None) -> None:
    assert parse_bytes(text) == size
