"""A model in training: how its blocks run, its optimizer, loss scale and running mean; what a checkpoint keeps of all that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stmae_train.checkpoint.store import Checkpoint, load_model
from stmae_train.distributed import (
    Sharding,
    World,
    compile_blocks,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
    recompute_activations,
)
from stmae_train.errors import CheckpointError
from stmae_train.optim import WeightMean, adamw, sgd
from stmae_train.runlog import LossScale, Update, autocast, update_weights
from stmae_train.runlog import backward as run_backward

__all__ = ["Trainee"]


class Settings(Protocol):
    """What `OptimConfig` and `FinetuneConfig` both say about updates."""

    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def grad_clip(self) -> float: ...
    @property
    def precision(self) -> str: ...
    @property
    def ema_decay(self) -> float: ...
    @property
    def recompute_activations(self) -> bool: ...
    @property
    def compile_blocks(self) -> bool: ...


class Trainee:
    """Made in the order that matters: blocks, device, processes, and only then the optimizer, for sharding replaces parameters.

    Args:
        model: with its first weights.
        world: this process among the others.
        settings: of the updates.
        groups: the optimizer's parameter groups, asked for once the model stands.
        eps: of AdamW.
        optimizer: "adamw", or "sgd" with the first of the betas as its momentum.
        sharding: "ddp" or "fsdp"; alone a process keeps everything either way.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        settings: Settings,
        *,
        groups: Callable[[], list[dict[str, Any]]],
        eps: float = 1e-8,
        optimizer: str = "adamw",
        sharding: Sharding = "ddp",
    ) -> None:
        self.model, self.world, self.settings = model.to(world.device), world, settings
        self.sharding = sharding if world.size > 1 else None
        if settings.recompute_activations:
            recompute_activations(model)
        self.compiled = compile_blocks(model) if settings.compile_blocks else None
        self.wrapped = world.wrap(model, sharding)
        # Fused: it can skip a non-finite step without asking the device.
        made = [{**group, "fused": True} for group in groups()]
        self.parameters = [parameter for group in made for parameter in group["params"]]
        self.optimizer: torch.optim.Optimizer = (
            sgd(made, momentum=settings.betas[0]) if optimizer == "sgd" else adamw(made, betas=settings.betas, eps=eps)
        )
        self.scale = LossScale(world.device) if settings.precision == "fp16" else None
        self.mean = WeightMean(model, decay=settings.ema_decay) if settings.ema_decay else None

    @contextlib.contextmanager
    def micro_batch(self, *, is_last: bool) -> Iterator[None]:
        """Around forward and `backward` of one micro-batch of a step."""
        with self.world.micro_batch(self.wrapped, is_last=is_last):
            yield

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Around a forward pass."""
        return autocast(self.world.device, self.settings.precision)

    def backward(self, loss: Tensor) -> None:
        """Gradients of one micro-batch; its loss is already divided by their number."""
        run_backward(loss, self.scale)

    def update(self, *, step: int, losses: Sequence[Tensor], clip_ids: tuple[str, ...]) -> Update:
        """One guarded step with the gradients at hand."""
        update = update_weights(
            self.optimizer,
            self.parameters,
            step=step,
            losses=losses,
            grad_clip=self.settings.grad_clip,
            clip_ids=clip_ids,
            scale=self.scale,
        )
        if self.mean is not None:
            self.mean.add(update.is_finite)
        return update

    def tensors(self) -> dict[str, Tensor]:
        """The weights, whole. Every process must ask; sharded, the main process alone gets them."""
        return model_tensors(self.model)

    def mean_tensors(self) -> dict[str, Tensor] | None:
        """The same with the running mean in place of every trained parameter; None where none is kept."""
        return None if self.mean is None else {**self.tensors(), **self.mean.tensors()}

    def state_tensors(self) -> dict[str, Tensor]:
        """What the optimizer remembers."""
        return optimizer_tensors(self.optimizer, self.model)

    def facts(self) -> dict[str, Any]:
        """What `run.json` says about how it was trained."""
        compiled = self.compiled
        return {
            "processes": self.world.size,
            "sharding": self.sharding,
            "precision": self.settings.precision,
            "ema_decay": self.settings.ema_decay,
            "recompute_activations": self.settings.recompute_activations,
            "compiled": compiled is not None and compiled.failure is None,
            "compile_failure": None if compiled is None else compiled.failure,
        }

    def restore(self, found: Checkpoint, *, where: str) -> None:
        """Take up a checkpoint, written by any number of processes.

        Raises:
            CheckpointError: it is of another model, or lacks what these settings need.
        """
        load_model(self.model, found.weights, where=where)
        load_optimizer_tensors(self.optimizer, found.optimizer, self.model)
        if self.mean is not None:
            if found.mean is None:
                raise CheckpointError(
                    f"{where} holds no running mean of the weights, but ema_decay is {self.settings.ema_decay:g}; resume without it, or "
                    f"start a new run with another --out."
                )
            self.mean.restore(found.mean)
        if self.scale is not None and found.state.get("loss_scale") is not None:
            self.scale.restore(found.state["loss_scale"])

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return self.world.device
