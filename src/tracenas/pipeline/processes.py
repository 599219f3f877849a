"""Data-parallel work under torchrun or `accelerate launch`: who this process is."""

from dataclasses import dataclass

from tracenas.recovery.settings import World

__all__ = ["Processes", "join_processes"]


@dataclass(frozen=True)
class Processes:
    """The processes that work side by side.

    Args:
        rank: of this process.
        count: of all.
        device: this process's own, as `load` takes it.
    """

    rank: int
    count: int
    device: str

    @property
    def many(self) -> bool:
        """Whether there is more than one."""
        return self.count > 1

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0


def join_processes(device: str) -> Processes:
    """Join the process group that the launcher announced in the environment, if it did.

    Args:
        device: as the user named it; `auto` and `cuda` become this process's own GPU.
    """
    if World.from_environment().size < 2:
        return Processes(0, 1, device)
    import torch
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu)
    own = "cpu" if on_cpu else f"cuda:{state.local_process_index}"
    return Processes(state.process_index, state.num_processes, own if device in ("auto", "cpu", "cuda") else device)
