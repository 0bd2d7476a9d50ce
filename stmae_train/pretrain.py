"""Pre-training, in the order of time: set-up, data, model, optimiser, loop, checkpoint, end. Start reading here."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stmae_train import checkpoint as checkpoints
from stmae_train.checkpoint import newest_checkpoint, save_checkpoint, save_weights
from stmae_train.config import Recipe
from stmae_train.distributed import World, start_world, stop_world
from stmae_train.errors import ConfigError, DataMismatch, RunInterrupted
from stmae_train.loader import DEFAULT_CACHE_BYTES, Batch, ClipSource, CropRule, ReadOptions, TrainLoader, open_sources
from stmae_train.masks import draw_masks, noise_for
from stmae_train.model import MaskedAutoencoder
from stmae_train.optim import adamw, parameter_groups, set_learning_rate
from stmae_train.runlog import (
    Guard,
    Meter,
    RunFolder,
    StepRecord,
    StopSignals,
    autocast,
    data_entry,
    peak_flops,
    peak_memory_bytes,
    train_flops,
    update_weights,
    write_card,
)
from stmae_train.schedule import learning_rate
from stmae_train.views import FrameRule

__all__ = ["PretrainRequest", "RunResult", "pretrain"]

LOGGER = logging.getLogger("stmae.train")


@dataclass(frozen=True, slots=True)
class PretrainRequest:
    """What to pre-train, on what, and where it goes.

    Attributes:
        workspace: folder of the sets.
        shards: set references; several are mixed by their weights.
        recipe: the whole config.
        run_dir: the run folder.
        seed: of initial weights, order, crops, masks.
        clips: clips to see, repeats included; the recipe's number unless given. Rounded up to whole steps.
        workers: decoding processes; they change speed alone.
        checkpoint_every: steps between checkpoints; a tenth of the run unless given.
        resume: go on with what stands in `run_dir`, or start where nothing does.
        accept_new_data: resume although a set has changed since.
        skip_damaged: damaged samples that may be left out.
        log_every: steps between records.
        device: `cpu`, `cuda`, `cuda:1`; a GPU where there is one unless given.
        cache_bytes: decoded sets up to this size are cached; 0 = never.
    """

    workspace: Path
    shards: tuple[str, ...]
    recipe: Recipe
    run_dir: Path
    seed: int = 0
    clips: int | None = None
    workers: int = 0
    checkpoint_every: int | None = None
    resume: bool = False
    accept_new_data: bool = False
    skip_damaged: int = 0
    log_every: int | None = None
    device: str | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished pre-training run."""

    weights: Path
    run_dir: Path
    clips_seen: int
    steps: int
    loss: float | None
    seconds: float
    skipped_clips: tuple[str, ...] = ()


def pretrain(request: PretrainRequest, *, watch: Callable[[StepRecord], None] | None = None) -> RunResult:
    """Train a masked autoencoder and leave a run folder (FORMATS.md, "A run on disk").

    Args:
        request: what to do.
        watch: called with every record as it is logged, for progress bars.

    Raises:
        RunInterrupted: SIGTERM or SIGINT came; a checkpoint was written first.
        TrainingStopped: loss or gradients stayed non-finite.
        RunBusy, ConfigError, DataMismatch, CheckpointError, SetError: what cannot be used, in one sentence.
    """
    torch.manual_seed(request.seed)
    world = start_world(request.device)
    try:
        run = _open_run(request) if world.is_main else None
        if run is None:
            return _Training(request, world, None).go(watch)
        with run:
            return _finished(run) if run.was_done else _Training(request, world, run).go(watch)
    finally:
        stop_world(world)


def _open_run(request: PretrainRequest) -> RunFolder:
    settings = {"shards": list(request.shards), "clips": _total_clips(request)}
    return RunFolder.open(
        request.run_dir,
        command="pretrain",
        recipe=request.recipe,
        seed=request.seed,
        settings=settings,
        resume=request.resume,
    )


def _total_clips(request: PretrainRequest) -> int:
    return request.clips if request.clips is not None else request.recipe.optim.total_clips


def _finished(run: RunFolder) -> RunResult:
    """The result of a run that had already ended well."""
    cost = run.read_json("cost.json")
    last = list(run.records())[-1:]
    return RunResult(
        weights=run.path / "weights.safetensors",
        run_dir=run.path,
        clips_seen=cost["clips"],
        steps=cost["steps"],
        loss=last[0]["loss"] if last else None,
        seconds=cost["seconds"],
    )


@dataclass(slots=True)
class _Spent:
    """What the run has cost, over all its interruptions."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    stall_seconds: float = 0.0
    bytes_read: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


class _Training:
    """One pre-training run in one process: everything is set up here, in order; `go` is the loop."""

    def __init__(self, request: PretrainRequest, world: World, run: RunFolder | None) -> None:
        self.request, self.world, self.run = request, world, run
        recipe = self.recipe = request.recipe

        # Data: the order of all draws is fixed from here on.
        self.sources = open_sources(request.workspace, request.shards)
        data = recipe.data
        self.loader = TrainLoader(
            request.workspace,
            self.sources,
            rule=FrameRule(data.num_frames, data.frame_stride, data.fps, data.sampling),
            crop=CropRule(data.crop_area, data.crop_aspect, data.flip),
            seed=request.seed,
            batch_videos=recipe.optim.batch_videos,
            repeats=data.repeats,
            accumulate=recipe.optim.accumulate,
            rank=world.rank,
            world_size=world.size,
            options=ReadOptions(request.workers, request.cache_bytes, request.skip_damaged),
        )
        self.steps = math.ceil(_total_clips(request) / self.loader.clips_per_step)
        if self.steps < 1:
            raise ConfigError(f"A run of {_total_clips(request)} clips has no step; ask for at least one clip.")

        # Model and optimiser.
        self.model = MaskedAutoencoder(recipe.model, seed=request.seed).to(world.device)
        groups = parameter_groups(
            self.model, weight_decay=recipe.optim.weight_decay, decay_rule=recipe.optim.decay_rule
        )
        # Fused: it can skip a non-finite step without asking the device.
        groups = [{**group, "fused": True} for group in groups]
        self.optimizer = adamw(groups, betas=recipe.optim.betas, eps=recipe.optim.eps)
        self.parameters = [parameter for group in groups for parameter in group["params"]]

        # Where an earlier process stopped.
        self.guard, self.spent, self.step = Guard(), _Spent(), 0
        if request.resume:
            self._resume()
        self.trained = world.wrap(self.model)
        self.meter = Meter(
            steps=self.steps,
            clips_per_step=self.loader.clips_per_step,
            flops_per_clip=train_flops(recipe.model),
            peak_flops=peak_flops(world.device),
        )
        self.log_every = request.log_every or max(1, min(50, self.steps // 20))
        self.checkpoint_every = request.checkpoint_every or max(1, self.steps // 10)
        self.entries = [_entry(source, self._drawn(number)) for number, source in enumerate(self.sources)]

    def go(self, watch: Callable[[StepRecord], None] | None) -> RunResult:
        """Train to the end, checkpoint on the way, write what the run leaves."""
        if self.run is not None:
            self.run.write_data(self.entries)
            self.run.forget_after(self.step)
        record: StepRecord | None = None
        batches = self.loader.batches(self.step, self.steps)
        self.meter.begin(self.step)
        with StopSignals() as signals:
            while self.step < self.steps:
                rate = self._rate()
                set_learning_rate(self.optimizer, rate)
                with self.meter.watch.waiting():
                    parts = [next(batches) for _ in range(self.loader.accumulate)]
                self._update(parts)
                self.step += 1
                is_last = self.step == self.steps
                if self.step % self.log_every == 0 or is_last:
                    record = self._log(rate, watch)
                stop = self.world.any(signals.received or 0)
                if stop or is_last or self.step % self.checkpoint_every == 0:
                    self._checkpoint()
                if stop and not is_last:
                    raise RunInterrupted(stop)
        batches.close()
        return self._end(record)

    def _rate(self) -> float:
        return learning_rate(
            self.recipe.optim,
            clips=self.step * self.loader.clips_per_step,
            repeats=self.loader.repeats,
            total_clips=self.steps * self.loader.clips_per_step,
        )

    def _update(self, parts: list[Batch]) -> None:
        """Forward and backward for every micro-batch, then one guarded step."""
        losses = []
        for part in parts:
            clips = part.clips(self.recipe.model, device=self.world.device)
            with autocast(self.world.device, self.recipe.optim.precision):
                loss = self.trained(clips, **self._hidden(part)).loss
            (loss / len(parts)).backward()
            losses.append(loss)
        ids = tuple(clip_id for part in parts for clip_id in part.clip_ids)
        self.guard.add(
            update_weights(
                self.optimizer,
                self.parameters,
                step=self.step + 1,
                losses=losses,
                grad_clip=self.recipe.optim.grad_clip,
                clip_ids=ids,
            )
        )

    def _hidden(self, part: Batch) -> dict[str, torch.Tensor]:
        """What hides tokens of a batch: noise for random masks, which need no count, else masks."""
        numbers = part.numbers.tolist()
        if self.recipe.model.mask == "random":
            return {"noise": noise_for(self.request.seed, numbers, math.prod(self.recipe.model.grid_shape))}
        return {"mask": draw_masks(self.recipe.model, seed=self.request.seed, sample_numbers=numbers)}

    def _log(self, rate: float, watch: Callable[[StepRecord], None] | None) -> StepRecord:
        loss, norm = self.guard.take()
        if self.world.size > 1 and loss is not None:
            loss = float(self.world.mean(torch.tensor(loss, device=self.world.device)))
        record = self.meter.record(self.step, loss=loss, lr=rate, grad_norm=norm)
        if self.run is not None:
            self.run.log(record)
            LOGGER.info("%s", record)
            if watch is not None:
                watch(record)
        return record

    def _checkpoint(self) -> None:
        """Judge every update first: a checkpoint holds no weights that were not looked at."""
        self.guard.look()
        if self.run is not None:
            save_checkpoint(
                self.run.path / "checkpoints",
                step=self.step,
                weights=self.model.state_dict(),
                optimizer=checkpoints.optimizer_tensors(self.optimizer),
                state={
                    "clips": self.step * self.loader.clips_per_step,
                    "digests": self._digests(),
                    "skipped_steps": self.guard.skipped,
                    "world_size": self.world.size,
                    "cost": self._cost(),
                },
            )
        self.world.wait()

    def _digests(self) -> dict[str, str]:
        return {str(source.index.reference): source.index.digest for source in self.sources}

    def _resume(self) -> None:
        found = newest_checkpoint(self.request.run_dir / "checkpoints")
        if found is None:
            return
        changed = [name for name, digest in self._digests().items() if found.state["digests"].get(name) != digest]
        if changed and not self.request.accept_new_data:
            raise DataMismatch(
                f"{changed[0]} is not what {self.request.run_dir} was started with (digest {found.state['digests'].get(changed[0], 'none')[:12]}, "
                f"now {self._digests()[changed[0]][:12]}); restore the set, or go on with --accept-new-data."
            )
        checkpoints.load_model(self.model, found.weights, where=f"Checkpoint {found.step} of {self.request.run_dir}")
        checkpoints.load_optimizer(self.optimizer, found.optimizer)
        self.step = found.step
        self.guard.skipped = list(found.state["skipped_steps"])
        cost = found.state["cost"]
        self.spent = _Spent(cost["seconds"], cost["cpu_seconds"], cost["stall_seconds"], cost["bytes_read"])
        LOGGER.info("Resumed at step %d of %d.", self.step, self.steps)

    def _drawn(self, number: int) -> int:
        """Clips the whole run draws from one of its sets."""
        return round(self.steps * self.loader.clips_per_step * self.loader.mix.shares[number])

    def _cost(self) -> dict[str, Any]:
        watch, spent = self.meter.watch, self.spent
        clips = self.step * self.loader.clips_per_step
        seconds = watch.seconds + spent.seconds
        return {
            "schema_version": 1,
            "seconds": round(seconds, 3),
            "cpu_seconds": round(watch.cpu_seconds + spent.cpu_seconds, 3),
            "gpu_seconds": round(seconds * self.world.size, 3) if self.world.device.type == "cuda" else 0.0,
            "stall_seconds": round(watch.waited + spent.stall_seconds, 3),
            "bytes_read": self.loader.reader.bytes_read + spent.bytes_read,
            "clips": clips,
            "steps": self.step,
            "epochs": round(self.step * self.loader.batch_videos / self.loader.mix.epoch_videos, 3),
            "flops": clips * train_flops(self.recipe.model),
            "kwh": None,
            "memory_bytes": peak_memory_bytes(),
        }

    def _end(self, record: StepRecord | None) -> RunResult:
        cost = self._cost()
        result = RunResult(
            weights=self.request.run_dir / "weights.safetensors",
            run_dir=self.request.run_dir,
            clips_seen=cost["clips"],
            steps=self.step,
            loss=record.loss if record else None,
            seconds=cost["seconds"],
            skipped_clips=tuple(sorted(self.loader.reader.skipped)),
        )
        if self.run is not None:
            facts = {"data": self._digests(), "clips": cost["clips"], "seed": self.request.seed, "kind": "pretrain"}
            save_weights(result.weights, self.model, recipe=self.recipe, facts=facts)
            self.run.write_json("cost.json", cost)
            if result.skipped_clips:
                self.run.write_json("skipped.json", self.loader.reader.skipped)
            write_card(
                self.run.path / "CARD.md",
                title=f"{self.run.path.name}: {self.recipe.model.lineage} {self.recipe.model.size}, pre-trained",
                recipe=self.recipe,
                entries=self.entries,
                facts=[
                    (
                        "Clips seen",
                        f"{cost['clips']:,} in {self.step:,} steps, {cost['epochs']:g} epochs of the videos",
                    ),
                    ("Last loss", "none" if result.loss is None else f"{result.loss:.4f}"),
                    ("Skipped steps", str(len(self.guard.skipped))),
                    ("Skipped clips", str(len(result.skipped_clips))),
                    ("Load", "`stmae_train.checkpoint.load_weights(Path('weights.safetensors'))`"),
                ],
            )
        self.world.wait()
        return result


def _entry(source: ClipSource, drawn: int) -> dict[str, Any]:
    index = source.index
    return data_entry(
        reference=str(index.reference),
        role="train",
        digest=index.digest,
        set_digest=source.set_digest,
        version=source.version,
        layout=index.layout,
        clip_ids=[str(each) for each in index.clip_ids[source.rows]],
        ledgers=source.ledgers,
        clips_drawn=drawn,
    )
