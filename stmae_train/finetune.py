"""Fine-tuning a classifier from pre-trained weights, in the order of time: set-up, data, model, optimiser, loop, test, end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stmae_train.checkpoint import StepLoop, Trainee, save_weights
from stmae_train.classifier import Classifier
from stmae_train.config import Recipe
from stmae_train.convert import Start
from stmae_train.distributed import Sharding, World, start_world, stop_world
from stmae_train.errors import ConfigError
from stmae_train.evaluate import Scores, frame_rule, load_classifier, score, warn_of_stills, write_results
from stmae_train.loader import (
    DEFAULT_CACHE_BYTES,
    DEFAULT_RANGE_BYTES,
    Batch,
    CropRule,
    ReadOptions,
    TrainLoader,
    check_labels,
    open_sources,
    weights_of,
)
from stmae_train.optim import parameter_groups
from stmae_train.runlog import RunFolder, StepRecord, Track, Update, autocast, cost_facts, train_flops
from stmae_train.schedule import cosine_lr, rate_line
from stmae_train.views import mix_clips, perturb_clips, step_seed

__all__ = ["FinetuneRequest", "finetune"]


@dataclass(frozen=True, slots=True)
class FinetuneRequest:
    """What to fine-tune, on what.

    Attributes:
        workspace: folder of the sets.
        init: a weights file, a run folder or run name, or `random` (from scratch).
        train_shards: labelled set references.
        eval_shards: the labelled set reference to score at the end, once.
        recipe: its fine-tuning settings; model and clips too where `init` is random, else those of the weights.
        run_dir: the run folder.
        seed: of the head, order, crops, mixing, drop path.
        workers, checkpoint_every, resume, accept_new_data, skip_damaged, log_every, device, cache_bytes, prefetch,
            store_cache_bytes, track, sharding, force: as in pre-training.
        changed: dotted names of what the user changed in the recipe; of model and clips these alone hold beside those of the weights: crop and
            frames (positions are interpolated), and how clips are drawn.
    """

    workspace: Path
    init: str
    train_shards: tuple[str, ...]
    eval_shards: str
    recipe: Recipe
    run_dir: Path
    seed: int = 0
    workers: int = 0
    checkpoint_every: int | None = None
    resume: bool = False
    accept_new_data: bool = False
    skip_damaged: int = 0
    log_every: int | None = None
    device: str | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES
    prefetch: int = 4
    store_cache_bytes: int = DEFAULT_RANGE_BYTES
    track: str | None = None
    sharding: Sharding = "ddp"
    force: bool = False
    changed: tuple[str, ...] = ()


def finetune(request: FinetuneRequest, *, watch: Callable[[StepRecord], None] | None = None) -> dict[str, Any]:
    """Fine-tune, score the test set once, leave a run folder; returns the metrics.

    Raises:
        RunInterrupted: SIGTERM or SIGINT came; a checkpoint was written first.
        TrainingStopped: loss or gradients stayed non-finite.
        RunBusy, ConfigError, DataMismatch, CheckpointError, SetError: what cannot be used, in one sentence.
    """
    config = request.recipe.finetune
    if config.task == "detection":
        raise ConfigError(
            f"Recipe '{request.recipe.name}' is for detection on boxes, and this trains classifiers; train a stmae_train.detector.Detector "
            f"with its numbers, or choose another recipe."
        )
    start = Start.of(
        request.init, workspace=request.workspace, recipe=request.recipe, seed=request.seed, changed=request.changed
    )
    if config.frames == "segments":
        drawn = replace(start.recipe.data, sampling="segments")
        start = replace(start, recipe=replace(start.recipe, data=drawn))
    world = start_world(request.device)
    try:
        if not world.is_main:
            return {} if world.any(0) else _Finetuning(request, start, world, None).go(watch)
        settings = {
            "train_shards": list(request.train_shards),
            "eval_shards": request.eval_shards,
            "init": start.facts,
        }
        with RunFolder.open(
            request.run_dir,
            command="finetune",
            recipe=start.recipe,
            seed=request.seed,
            settings=settings,
            resume=request.resume,
            force=request.force,
        ) as run:
            if world.any(int(run.was_done)):  # all of them must know
                return dict(run.read_json("metrics.json"))
            return _Finetuning(request, start, world, run).go(watch)
    finally:
        stop_world(world)


class _Finetuning:
    """One fine-tuning in one process: everything is set up here, in the order it is needed; then `go`."""

    def __init__(self, request: FinetuneRequest, start: Start, world: World, run: RunFolder | None) -> None:
        self.request, self.world, self.run, self.recipe = request, world, run, start.recipe
        config = self.config = start.recipe.finetune
        self.read_before: dict[str, str] = start.facts["data"]

        # Data: labelled videos alone, and one class list on both sides.
        train = open_sources(request.workspace, request.train_shards, labelled=True)
        self.test = open_sources(request.workspace, [request.eval_shards], labelled=True)
        self.num_classes = check_labels(train, self.test)
        if run is not None:
            warn_of_stills(start.recipe.model, [*train, *self.test])
        self.options = ReadOptions(
            request.workers,
            request.cache_bytes,
            request.skip_damaged,
            request.prefetch,
            request.store_cache_bytes,
            pins_memory=world.device.type == "cuda",
        )
        self.loader = TrainLoader(
            request.workspace,
            train,
            rule=frame_rule(start.recipe.data),
            crop=CropRule(config.crop_area, config.crop_aspect, config.flip),
            seed=request.seed,
            batch_videos=config.batch_videos,
            repeats=config.repeats,
            accumulate=config.accumulate,
            rank=world.rank,
            world_size=world.size,
            options=self.options,
        )
        self.steps = math.ceil(config.epochs * self.loader.mix.epoch_videos / config.batch_videos)
        drawn = self.steps * self.loader.clips_per_step
        shares = self.loader.mix.shares
        self.entries = [
            each.entry("train", clips_drawn=round(drawn * share)) for each, share in zip(train, shares, strict=True)
        ]
        self.entries += [each.entry("eval") for each in self.test]
        together = config.batch_videos * config.repeats // (world.size * config.accumulate)
        if (config.mixup or config.cutmix) and together % 2:
            raise ConfigError(
                f"Mixup and cutmix pair the clips of a batch, but each process has {together} at a time; "
                f"make finetune.batch_videos even, or set mixup=0 and cutmix=0."
            )

        # Model.
        self.model = Classifier(
            start.recipe.model,
            self.num_classes,
            pooling=config.pooling,
            drop_path=config.drop_path,
            dropout=config.head_dropout,
            head_init_std=config.head_init_std,
            head_bias=config.head_bias,
            seed=request.seed,
        )
        if start.tensors is not None:
            self.model.start_from(start.tensors, grid=start.grid)

        # What is trained, with its optimiser: deeper blocks learn faster than early ones.
        self.trainee = Trainee(
            self.model,
            world,
            config,
            groups=lambda: parameter_groups(
                self.model,
                weight_decay=config.weight_decay,
                decay_rule="not-1d-nor-tokens",
                layer_decay=config.layer_decay,
                depth=start.recipe.model.depth,
            ),
            optimizer=config.optimizer,
            sharding=request.sharding,
        )

        # The loop, where an earlier process left it.
        self.loop = StepLoop(
            run,
            world,
            trainee=self.trainee,
            loader=self.loader,
            steps=self.steps,
            flops_per_clip=train_flops(start.recipe.model, num_classes=self.num_classes),
            log_every=request.log_every,
            checkpoint_every=request.checkpoint_every,
        )
        if request.resume:
            self.loop.resume(request.run_dir, accept_new_data=request.accept_new_data)

    def go(self, watch: Callable[[StepRecord], None] | None) -> dict[str, Any]:
        """Train, then score the test set once."""
        if self.run is not None:
            self.run.write_data(self.entries)
        self.model.train()
        kind = self.request.track if self.run is not None else None
        with Track(kind, self.request.run_dir, after=self.loop.step) as track:
            self.loop.go(self._update, rate=self._rate, watch=track.told_too(watch))
        return self._end()

    def _rate(self, step: int) -> float:
        """Cosine after a linear warm-up, in epochs as the published code counts them."""
        per_epoch = self.loader.mix.epoch_videos / self.config.batch_videos
        return cosine_lr(
            step / per_epoch,
            total=self.config.epochs,
            warmup=self.config.warmup_epochs,
            peak=self.config.peak_lr(),
            end=self.config.end_lr(),
        )

    def _update(self, step: int, parts: Sequence[Batch]) -> Update:
        """Augment, mix, forward and backward for every micro-batch, then one guarded step."""
        trainee, losses = self.trainee, []
        # Drop path, dropout and mixing draw from generators that know the step alone, so a resumed run draws the same.
        torch.manual_seed(step_seed(self.request.seed, step, rank=self.world.rank))
        for number, (batch, weight) in enumerate(zip(parts, weights_of(parts), strict=True)):
            clips, targets = self._mixed(batch, step * len(parts) + number)
            with trainee.micro_batch(is_last=number + 1 == len(parts)):
                with trainee.autocast():
                    logits = trainee.wrapped(clips)
                loss = F.cross_entropy(logits.float(), targets) * weight
                trainee.backward(loss / len(parts))
            losses.append(loss)
        clip_ids = tuple(clip_id for part in parts for clip_id in part.clip_ids)
        return trainee.update(step=step + 1, losses=losses, clip_ids=clip_ids)

    def _mixed(self, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
        """Clips [B, 3, T, H, W] and targets [B, classes] of the micro-batch of that number, counted over the run."""
        clips = batch.clips(self.recipe.model, device=self.world.device)
        clips = perturb_clips(clips, self.config, self.recipe.model, numbers=batch.numbers, seed=self.request.seed)
        return mix_clips(
            clips,
            batch.labels.to(self.world.device),
            self.config,
            num_classes=self.num_classes,
            seed=step_seed(self.request.seed, number, rank=self.world.rank),
        )

    def _end(self) -> dict[str, Any]:
        """Save the weights, score the test set with what was saved, each process its share, and write down what came out."""
        cost, tensors, mean = self.loop.cost(), self.trainee.tensors(), self.trainee.mean_tensors()
        if self.run is not None:
            self._save(self.run, tensors, mean)
        self.world.wait()
        path = self.request.run_dir / ("weights-ema.safetensors" if self.config.ema_decay else "weights.safetensors")
        classifier = load_classifier(path)[0].to(self.world.device).eval()
        before = self.loop.meter.watch.cpu_seconds, self.loop.meter.watch.seconds

        def logits(clips: Tensor) -> Tensor:
            with autocast(self.world.device, self.config.precision):
                out: Tensor = classifier(clips)
            return out

        scores, tested = score(
            logits,
            self.request.workspace,
            self.test,
            recipe=self.recipe,
            views=self.config.views,
            world=self.world,
            options=replace(self.options, skip_damaged=0),  # a score is of every test video or of none
        )
        watch = self.loop.meter.watch
        bytes_read, cpu_seconds = self.world.total(tested.reader.bytes_read, watch.cpu_seconds - before[0])
        if self.run is None:
            return {}
        seconds = watch.seconds - before[1]
        cost["bytes_read"] += int(bytes_read)
        cost["cpu_seconds"] = round(cost["cpu_seconds"] + cpu_seconds, 3)
        cost["seconds"] = round(cost["seconds"] + seconds, 3)
        if self.world.device.type == "cuda":
            cost["gpu_seconds"] = round(cost["gpu_seconds"] + seconds * self.world.size, 3)
        return self._write(self.run, scores, cost, weights=path.name)

    def _save(self, run: RunFolder, tensors: dict[str, Tensor], mean: dict[str, Tensor] | None) -> None:
        facts = {
            "kind": "finetune",
            "num_classes": self.num_classes,
            "init": self.request.init,
            # What the starting weights had read counts as read here too, for the leak guard.
            "data": {**self.read_before, **self.loop.digests()},
            "seed": self.request.seed,
        }
        save_weights(run.path / "weights.safetensors", tensors, recipe=self.recipe, facts=facts)
        if mean is not None:
            facts["ema_decay"] = self.config.ema_decay
            save_weights(run.path / "weights-ema.safetensors", mean, recipe=self.recipe, facts=facts)
        run.facts["execution"] = self.trainee.facts()

    def _write(self, run: RunFolder, scores: Scores, cost: dict[str, Any], *, weights: str) -> dict[str, Any]:
        run.write_json("skipped.json", self.loader.reader.skipped)
        return write_results(
            run,
            scores,
            facts={
                "kind": "finetune",
                "init": self.request.init,
                "views": list(self.config.views),
                "weights": weights,
                "train_videos": self.loader.mix.epoch_videos,
            },
            recipe=self.recipe,
            device=self.world.device,
            watch=self.loop.meter.watch,
            clips=cost["clips"],
            bytes_read=cost["bytes_read"],
            cost=cost,
            lines=[
                ("Rate", rate_line(self.config, repeats=self.config.repeats)),
                *run.changes,
                *cost_facts(cost, self.trainee.facts()),
            ],
        )
