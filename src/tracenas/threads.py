"""CPU threads of torch."""

import torch

__all__ = ["set_threads"]


def set_threads(threads: int | None) -> int:
    """Fix torch's CPU threads for this process; returns how many there are. None leaves torch's own choice."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
