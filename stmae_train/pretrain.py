"""Pre-training, in the order of time: set-up, data, model, optimiser, loop, checkpoint, end. Start reading here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stmae_train.checkpoint import StepLoop, Trainee, Weights, load_autoencoder, save_tensors, save_weights
from stmae_train.config import Recipe
from stmae_train.convert import start_model
from stmae_train.distributed import Sharding, World, start_world, stop_world
from stmae_train.errors import ConfigError
from stmae_train.loader import (
    DEFAULT_CACHE_BYTES,
    DEFAULT_RANGE_BYTES,
    Batch,
    ClipSource,
    CropRule,
    ReadOptions,
    SweepLoader,
    TrainLoader,
    open_sources,
    weights_of,
)
from stmae_train.masks import DECODE_STREAM, draw_masks, noise_for
from stmae_train.model import MaskedAutoencoder
from stmae_train.optim import parameter_groups
from stmae_train.pictures import PictureRequest, draw, shown_ratios, shows_pixels
from stmae_train.runlog import RunFolder, StepRecord, Track, Update, cost_facts, last_loss, train_flops, write_card
from stmae_train.schedule import learning_rate, rate_line
from stmae_train.targets import Teacher, fit_pca, pixel_vectors, read_teacher
from stmae_train.views import FrameRule

__all__ = ["PretrainRequest", "RunResult", "clips_of", "pretrain"]

PCA_CLIPS = 256  # clips that a basis of principal components is fitted to


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
        force: resume with another learning rate, weight decay, clipping or precision than before; `run.json` and the card say so.
        skip_damaged: damaged samples that may be left out.
        log_every: steps between records.
        device: `cpu`, `cuda`, `cuda:1`; a GPU where there is one unless given.
        cache_bytes: decoded sets up to this size are cached; 0 = never.
        init: weights to start from, of any known layout; from scratch unless given. An encoder alone starts the encoder.
        prefetch: videos that each worker may have decoded ahead; bounds memory, changes speed alone.
        store_cache_bytes: what may stand on this disk of sets that are read from a store.
        pictures: clips of the first set whose reconstructions are left in `pictures/` at the end.
        pictures_every: steps between such pictures while it trains, in `pictures/step-…`; none unless given.
        track: "tensorboard" shows records and pictures there too, under the run folder.
        sharding: with several processes, "ddp" or "fsdp"; a run may be resumed with either.
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
    init: str | None = None
    prefetch: int = 4
    store_cache_bytes: int = DEFAULT_RANGE_BYTES
    pictures: int = 8
    pictures_every: int | None = None
    track: str | None = None
    sharding: Sharding = "ddp"
    force: bool = False


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
            return _finished(request.run_dir) if world.any(0) else _Training(request, world, None).go(watch)
        with run:
            return _finished(run.path) if world.any(int(run.was_done)) else _Training(request, world, run).go(watch)
    finally:
        stop_world(world)


def clips_of(
    workspace: Path, shards: Sequence[str], recipe: Recipe, *, epochs: float | None = None, steps: int | None = None
) -> int:
    """How many clips that many passes over the videos, or that many steps, come to; repeats included.

    Raises:
        ConfigError: neither or both are given; SetError: the sets cannot be read.
    """
    if (epochs is None) == (steps is None):
        raise ConfigError("The length of a run is given once: --clips, --epochs or --steps.")
    repeats = recipe.data.repeats
    if steps is not None:
        return steps * recipe.optim.batch_videos * repeats  # micro-batches share the batch of a step
    assert epochs is not None
    return round(epochs * repeats * sum(len(source) for source in open_sources(workspace, shards)))


def _open_run(request: PretrainRequest) -> RunFolder:
    settings: dict[str, Any] = {"shards": list(request.shards), "clips": _total_clips(request)}
    if request.init is not None:
        settings["init"] = request.init
    return RunFolder.open(
        request.run_dir,
        command="pretrain",
        recipe=request.recipe,
        seed=request.seed,
        settings=settings,
        resume=request.resume,
        force=request.force,
    )


def _total_clips(request: PretrainRequest) -> int:
    return request.clips if request.clips is not None else request.recipe.optim.total_clips


def _finished(folder: Path) -> RunResult:
    """The result of a run that had already ended well."""
    cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
    return RunResult(
        weights=folder / "weights.safetensors",
        run_dir=folder,
        clips_seen=cost["clips"],
        steps=cost["steps"],
        loss=last_loss(folder),
        seconds=cost["seconds"],
    )


class _Training:
    """One pre-training run in one process: everything is set up here, in the order it is needed; then `go`."""

    def __init__(self, request: PretrainRequest, world: World, run: RunFolder | None) -> None:
        self.request, self.world, self.run = request, world, run
        recipe = self.recipe = request.recipe

        # Data: the order of all draws is fixed from here on.
        data = recipe.data
        self.loader = TrainLoader(
            request.workspace,
            open_sources(request.workspace, request.shards),
            rule=FrameRule(data.num_frames, data.frame_stride, data.fps, data.sampling),
            crop=CropRule(data.crop_area, data.crop_aspect, data.flip, data.color_jitter),
            seed=request.seed,
            batch_videos=recipe.optim.batch_videos,
            repeats=data.repeats,
            accumulate=recipe.optim.accumulate,
            rank=world.rank,
            world_size=world.size,
            options=ReadOptions(
                request.workers,
                request.cache_bytes,
                request.skip_damaged,
                request.prefetch,
                request.store_cache_bytes,
                pins_memory=world.device.type == "cuda",
            ),
        )
        self.steps = math.ceil(_total_clips(request) / self.loader.clips_per_step)
        if self.steps < 1:
            raise ConfigError(f"A run of {_total_clips(request)} clips has no step; ask for at least one clip.")
        shares = self.loader.mix.shares
        drawn = [round(self.steps * self.loader.clips_per_step * share) for share in shares]
        self.entries = [
            source.entry("train", clips_drawn=count) for source, count in zip(self.loader.sources, drawn, strict=True)
        ]

        # Model.
        self.model = MaskedAutoencoder(recipe.model, seed=request.seed)
        self.init: dict[str, Any] = {}
        if request.init is not None:
            self.init = start_model(self.model, request.init, workspace=request.workspace)
        self.model.teacher = self._teacher()

        # What is trained, with its optimiser.
        optim = recipe.optim
        self.trainee = Trainee(
            self.model,
            world,
            optim,
            groups=lambda: parameter_groups(self.model, weight_decay=optim.weight_decay, decay_rule=optim.decay_rule),
            eps=optim.eps,
            sharding=request.sharding,
        )

        # The loop, where an earlier process left it.
        self.loop = StepLoop(
            run,
            world,
            trainee=self.trainee,
            loader=self.loader,
            steps=self.steps,
            flops_per_clip=train_flops(recipe.model),
            log_every=request.log_every,
            checkpoint_every=request.checkpoint_every,
            after_step=self._show_progress,
        )
        if request.resume:
            self.loop.resume(request.run_dir, accept_new_data=request.accept_new_data)

    def _teacher(self) -> Teacher | None:
        """The basis or tokenizer behind the target; a basis that no file gives is fitted to the first clips and kept in the run folder.

        Raises:
            ConfigError: a tokenizer is wanted and no file is named.
        """
        model, data = self.recipe.model, self.recipe.data
        if model.target not in ("pca", "tokens"):
            return None
        kept = self.request.run_dir / "target.safetensors"
        path = Path(model.target_file) if model.target_file else kept
        if model.target_file or path.is_file():
            return read_teacher(path, target=model.target, values=model.target_values).to(self.world.device)
        if model.target == "tokens":
            raise ConfigError(
                "The target 'tokens' needs the encoder of a discrete tokenizer as safetensors; name it with --set model.target_file=PATH."
            )
        first = _first(self.loader.sources[0], PCA_CLIPS)
        sweep = SweepLoader(
            self.request.workspace,
            [first],
            rule=FrameRule(data.num_frames, data.frame_stride, data.fps, data.sampling),
            views=1,
            batch_videos=32,
            options=ReadOptions(
                cache_bytes=0,
                skip_damaged=min(self.request.skip_damaged, len(first) - 1),  # a basis needs one
                store_cache_bytes=self.request.store_cache_bytes,
            ),
        )
        vectors = [
            pixel_vectors(batch.clips(model, device=torch.device("cpu")), model).flatten(0, 1)
            for batch in sweep.batches()
        ]
        basis = fit_pca(torch.cat(vectors), count=model.target_values)
        if self.run is not None:
            save_tensors(kept, {"mean": basis.mean, "components": basis.components})
        return basis.to(self.world.device)

    def go(self, watch: Callable[[StepRecord], None] | None) -> RunResult:
        """Train to the end and write what the run leaves."""
        kind = None
        if self.run is not None:
            self.run.write_data(self.entries)
            kind = self.request.track
        with Track(kind, self.request.run_dir, after=self.loop.step) as self.track:
            self.loop.go(self._update, rate=self._rate, watch=self.track.told_too(watch))
            return self._end()

    def _rate(self, step: int) -> float:
        clips, repeats = self.loader.clips_per_step, self.loader.repeats
        return learning_rate(self.recipe.optim, clips=step * clips, repeats=repeats, total_clips=self.steps * clips)

    def _update(self, step: int, parts: Sequence[Batch]) -> Update:
        """Forward and backward for every micro-batch, then one guarded step."""
        trainee, losses = self.trainee, []
        for number, (part, weight) in enumerate(zip(parts, weights_of(parts), strict=True), start=1):
            clips = part.clips(self.recipe.model, device=self.world.device)  # [B, 3, T, H, W]
            with trainee.micro_batch(is_last=number == len(parts)):
                with trainee.autocast():
                    loss = trainee.wrapped(clips, **self._hidden(part)).loss * weight
                trainee.backward(loss / len(parts))
            losses.append(loss)
        clip_ids = tuple(clip_id for part in parts for clip_id in part.clip_ids)
        return trainee.update(step=step + 1, losses=losses, clip_ids=clip_ids)

    def _hidden(self, part: Batch) -> dict[str, Tensor]:
        """What hides tokens of a batch: noise for random masks, which needs no counting, else masks."""
        model, seed, numbers = self.recipe.model, self.request.seed, part.numbers.tolist()
        length = math.prod(model.grid_shape)
        if model.mask == "random":
            drawn = {"noise": noise_for(seed, numbers, length)}
        else:
            drawn = {"mask": draw_masks(model, seed=seed, sample_numbers=numbers)}
        if model.decoded_share < 1:
            drawn["decode_noise"] = noise_for(seed, numbers, length, stream=DECODE_STREAM)
        return drawn

    def _end(self) -> RunResult:
        cost, tensors, mean = self.loop.cost(), self.trainee.tensors(), self.trainee.mean_tensors()
        result = RunResult(
            weights=self.request.run_dir / "weights.safetensors",
            run_dir=self.request.run_dir,
            clips_seen=cost["clips"],
            steps=cost["steps"],
            loss=last_loss(self.request.run_dir),
            seconds=cost["seconds"],
            skipped_clips=tuple(sorted(self.loader.reader.skipped)),
        )
        if self.run is not None:
            # What the starting weights had read counts as read here too, for the leak guard.
            data = {**self.init.get("data", {}), **self.loop.digests()}
            facts = {"kind": "pretrain", "data": data, "clips": cost["clips"], "seed": self.request.seed}
            if self.init:
                facts["init"] = json.dumps(self.init, sort_keys=True)
            save_weights(result.weights, tensors, recipe=self.recipe, facts=facts)
            if mean is not None:
                averaged = {**facts, "ema_decay": self.recipe.optim.ema_decay}
                save_weights(
                    result.weights.with_name("weights-ema.safetensors"), mean, recipe=self.recipe, facts=averaged
                )
            self.run.facts["execution"] = self.trainee.facts()
            self.run.write_json("cost.json", cost)
            self.run.write_json("skipped.json", self.loader.reader.skipped)
            if self.request.pictures and shows_pixels(self.recipe.model):
                self._show(tensors, step=self.steps)
            write_card(
                self.run.path / "CARD.md",
                title=f"{self.run.path.name}: {self.recipe.model.lineage} {self.recipe.model.size}, pre-trained",
                recipe=self.recipe,
                entries=self.entries,
                facts=[
                    (
                        "Clips seen",
                        f"{cost['clips']:,} in {cost['steps']:,} steps, {cost['epochs']:g} epochs of videos",
                    ),
                    ("Rate", rate_line(self.recipe.optim, repeats=self.recipe.data.repeats)),
                    ("Last loss", "none" if result.loss is None else f"{result.loss:.4f}"),
                    ("Skipped steps", str(len(self.loop.guard.skipped))),
                    ("Skipped clips", str(len(result.skipped_clips))),
                    *self.run.changes,
                    *cost_facts(cost, self.trainee.facts()),
                    ("Load", "`stmae_train.checkpoint.load_weights(Path('weights.safetensors'))`"),
                ],
            )
        self.world.wait()
        return result

    def _show_progress(self, step: int) -> None:
        """Pictures of the same clips every so many steps; the weights are put together by all processes and drawn by one."""
        every = self.request.pictures_every
        if every is None or step % every or step == self.steps or not shows_pixels(self.recipe.model):
            return
        tensors = self.trainee.tensors()
        if self.run is not None:
            self._show(tensors, step=step)

    def _show(self, tensors: dict[str, Tensor], *, step: int) -> None:
        """Leave pictures of fixed clips at the ratio the model was trained with and, as the papers show them, at 90 % and 95 %."""
        # A model of its own: the one in training may be sharded or compiled.
        model = load_autoencoder(Weights(tensors, self.recipe, {}), where="the run").to(self.world.device).eval()
        request, folder = self.request, self.request.run_dir / "pictures"
        reference, _, _ = request.shards[0].partition("@")
        count = request.pictures or 8
        wanted = PictureRequest(
            request.workspace,
            str(request.run_dir),
            reference,
            folder if step == self.steps else folder / f"step-{step:09d}",
            count=count,
            ratios=shown_ratios(self.recipe.model),
            seed=request.seed,
            store_cache_bytes=request.store_cache_bytes,
            # Where damage is allowed, pictures end no run; what may be left out of training is counted there.
            skip_damaged=count if request.skip_damaged else 0,
        )
        self.track.add_pictures(draw(model, self.recipe, wanted), step=step)


def _first(source: ClipSource, count: int) -> ClipSource:
    """The first clips of a source in stored order, which is a fair draw (every prefix of a set is)."""
    return replace(source, rows=source.rows[:count])
