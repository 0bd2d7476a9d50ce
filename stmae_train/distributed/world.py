"""One process or several: ranks from torchrun, the device, and the few sums that processes share."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stmae_train.distributed.blocks import blocks_of

__all__ = ["Sharding", "World", "start_world", "stop_world"]

LOGGER = logging.getLogger("stmae.train")

Sharding = Literal["ddp", "fsdp"]


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

    def wrap(self, model: nn.Module, sharding: Sharding = "ddp") -> nn.Module:
        """The model with gradients averaged over processes; alone, the model itself.

        Args:
            model: on its device.
            sharding: "ddp" keeps all of it in every process; "fsdp" leaves each process a part of every parameter, and
                of what the optimizer keeps about it (FSDP2). An optimizer is made from the parameters afterwards.
        """
        if self.size == 1:
            return model
        if sharding == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (self.size,))
            for block in blocks_of(model):
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    @contextlib.contextmanager
    def micro_batch(self, wrapped: nn.Module, *, is_last: bool) -> Iterator[None]:
        """Around forward and backward of one micro-batch: processes exchange gradients after the last one alone."""
        share = getattr(wrapped, "set_requires_gradient_sync", None)
        if share is not None:  # a sharded model
            share(is_last)
            yield
        elif isinstance(wrapped, nn.parallel.DistributedDataParallel) and not is_last:
            with wrapped.no_sync():
                yield
        else:
            yield

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a value over processes."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total / self.size

    def total(self, *values: float) -> list[float]:
        """The sum of each number over processes."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(shared)
        return [float(each) for each in shared]

    def by_rank(self, *values: float) -> list[tuple[float, ...]]:
        """The numbers of every process, by rank."""
        places = [0.0] * (self.size * len(values))
        places[self.rank * len(values) : (self.rank + 1) * len(values)] = values
        found = self.total(*places)  # nobody else has put anything into our places
        return [tuple(found[rank * len(values) : (rank + 1) * len(values)]) for rank in range(self.size)]

    def any(self, flag: int) -> int:
        """The largest flag of any process, so that all of them decide alike."""
        if self.size == 1:
            return flag
        shared = torch.tensor(flag, device=self.device)
        torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
        return int(shared)

    def all_of(self, value: Tensor) -> list[Tensor]:
        """The value of every process, by rank, on the CPU; shapes may differ."""
        if self.size == 1:
            return [value.cpu()]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, value.cpu())
        return found

    def merged(self, texts: Mapping[str, str]) -> dict[str, str]:
        """The texts of all processes, by key; of a key that several have, the last one's."""
        if self.size == 1:
            return dict(texts)
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, dict(texts))
        return {key: text for each in found for key, text in each.items()}

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
        _join("nccl" if chosen.type == "cuda" else "gloo", rank, size)
    return World(rank, size, chosen)


def _join(backend: str, rank: int, size: int) -> None:
    """Join the group that torchrun describes.

    torchrun keeps one store over all its restarts, with the addresses of processes that are gone: whoever reads them first waits for the
    dead. On one machine a restart therefore has keys of its own. Several machines count their restarts apart and cannot do that; there the
    store must not be shared, which a warning says where it is.
    """
    restarts, is_shared = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), "TORCHELASTIC_USE_AGENT_STORE"
    if os.environ.get(is_shared) != "True" or os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        torch.distributed.init_process_group(backend)
        return
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        LOGGER.warning(
            "torchrun shares one store between restarts, in which a restart may meet processes that are gone; set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun (the script of --slurm does)."
        )
        torch.distributed.init_process_group(backend)
        return
    from torch._C._distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, *_ = next(rendezvous("env://"))
    keys = PrefixStore(f"start-{restarts}", store)
    torch.distributed.init_process_group(backend, store=keys, rank=rank, world_size=size)


def stop_world(world: World) -> None:
    """Leave the group."""
    if world.size > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
