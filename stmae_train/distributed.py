"""One process or several: ranks from torchrun, the device, and the few sums that processes share."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["World", "start_world", "stop_world"]


@dataclass(frozen=True, slots=True)
class World:
    """This process among `size` processes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over processes; alone, the model itself."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a value over processes."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total / self.size

    def any(self, flag: int) -> int:
        """The largest flag of any process, so that all of them decide alike."""
        if self.size == 1:
            return flag
        shared = torch.tensor(flag, device=self.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return int(shared)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            torch.distributed.barrier()


def start_world(device: str | None = None) -> World:
    """Join the processes that torchrun started, or stand alone.

    Args:
        device: `cpu`, `cuda` or `cuda:1`; without it a GPU is used where there is one.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda":
        chosen = torch.device(
            "cuda", chosen.index if chosen.index is not None else int(os.environ.get("LOCAL_RANK", "0"))
        )
        torch.cuda.set_device(chosen)
    if size > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return World(rank, size, chosen)


def stop_world(world: World) -> None:
    """Leave the group."""
    if world.size > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
