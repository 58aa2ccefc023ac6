"""Training shared between processes that torchrun started, on one host or several."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run.

    Attributes:
        rank: number of this process; 0 logs, validates and saves.
        size: number of processes.
        device: of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share_of(self, batch_size: int) -> int:
        """Divide a batch between the processes.

        Raises:
            ValueError: It does not divide evenly, or leaves less than 2 for each.
        """
        if batch_size % self.size or batch_size < 2 * self.size:
            raise ValueError(
                f"batch_size: expected a multiple of the {self.size} processes, at least 2 for "
                f"each, got {batch_size}"
            )
        return batch_size // self.size

    def wrap(self, network: nn.Module) -> nn.Module:
        """Make a network average its gradients over the processes."""
        return DistributedDataParallel(network) if self.size > 1 else network

    def from_leader(self, value: float) -> float:
        """Return the leading process's value in all of them."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, 0)
        return float(shared.item())

    def leave(self) -> None:
        """Part from the other processes when all is done."""
        if self.size > 1:
            distributed.destroy_process_group()


def join_processes(device: str) -> ProcessGroup:
    """Join the processes that torchrun started; a process on its own is a group of one.

    Args:
        device: "cpu", "cuda", or "auto": a GPU where there is one.

    Raises:
        ValueError: "cuda" where PyTorch finds no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: expected a GPU for 'cuda', PyTorch finds none; use 'cpu'")
    gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    chosen = torch.device("cpu")
    if gpu:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(chosen)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if gpu else "gloo")
    if not distributed.is_initialized():
        return ProcessGroup(0, 1, chosen)
    return ProcessGroup(distributed.get_rank(), distributed.get_world_size(), chosen)
