"""The step loop that pre-training and fine-tuning share: batches in, guarded updates, records, checkpoints, signals, exact resume."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stmae_data import files
from stmae_train.checkpoint.store import drop_checkpoints_after, newest_checkpoint, save_checkpoint
from stmae_train.checkpoint.trainee import Trainee
from stmae_train.distributed import World
from stmae_train.errors import CheckpointError, DataMismatch, RunInterrupted
from stmae_train.loader import Advisor, Batch, Spent, TrainLoader
from stmae_train.optim import set_learning_rate
from stmae_train.runlog import Guard, Meter, RunFolder, StepRecord, StopSignals, Update, peak_flops, peak_memory_bytes

__all__ = ["StepLoop"]

LOGGER = logging.getLogger("stmae.train")

Watch = Callable[[StepRecord], None]


class StepLoop:
    """Steps of one run in one process.

    Args:
        run: the run folder; None in the processes that do not write it.
        world: this process among the others.
        trainee: what is trained, and saved.
        loader: batches by step number.
        steps: of the whole run.
        flops_per_clip: of one training step, for the share of the peak.
        log_every, checkpoint_every: steps; sensible ones unless given.
        after_step: called by every process with the number of steps done, before a checkpoint of that step.
    """

    def __init__(
        self,
        run: RunFolder | None,
        world: World,
        *,
        trainee: Trainee,
        loader: TrainLoader,
        steps: int,
        flops_per_clip: float,
        log_every: int | None = None,
        checkpoint_every: int | None = None,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        self.run, self.world = run, world
        self.trainee, self.loader, self.steps, self.after_step = trainee, loader, steps, after_step
        self.flops_per_clip = flops_per_clip
        self.log_every = log_every or max(1, min(50, steps // 20))
        self.checkpoint_every = checkpoint_every or max(1, steps // 10)
        self.guard, self.step = Guard(), 0
        self.spent = dict.fromkeys(
            ("seconds", "cpu_seconds", "gpu_seconds", "stall_seconds", "bytes_read"), 0.0
        )  # by earlier starts
        self.advisor = Advisor(loader)
        peak = peak_flops(world.device)
        self.meter = Meter(
            steps=steps,
            clips_per_step=loader.clips_per_step,
            flops_per_clip=flops_per_clip,
            peak_flops=None if peak is None else peak * world.size,  # clips are counted over all processes
        )

    def resume(self, folder: Path, *, accept_new_data: bool) -> None:
        """Take up the newest whole checkpoint of a run folder, if one was ever committed.

        Raises:
            DataMismatch: a set has changed since.
            CheckpointError: no usable checkpoint is left, none although one was committed, or it holds another model.
        """
        found = newest_checkpoint(folder / "checkpoints")
        if found is None:
            if (saved := files.read_json(folder / "run.json").get("last_checkpoint")) is not None:
                raise CheckpointError(
                    f"{folder / 'checkpoints'} holds no committed checkpoint, but run.json says that step {saved} was saved there. Restore it "
                    f"from a copy, or start a new run with another --out; nothing restarts from scratch on its own."
                )
            return
        before, now = found.state["digests"], self.digests()
        changed = [name for name, digest in now.items() if before.get(name) != digest]
        if changed and not accept_new_data:
            raise DataMismatch(
                f"{changed[0]} is not what {folder} was started with (digest {before.get(changed[0], 'none')[:12]}, now "
                f"{now[changed[0]][:12]}); restore the set, or go on with --accept-new-data."
            )
        self.trainee.restore(found, where=f"Checkpoint {found.step} of {folder}")
        self.world.wait()  # until every process has read it
        if self.run is not None:
            drop_checkpoints_after(folder / "checkpoints", found.step)
        self.step = found.step
        self.guard.skipped = list(found.state["skipped_steps"])
        self.spent = {name: found.state["cost"][name] for name in self.spent}
        self.loader.reader.learn(found.state.get("skipped_clips", {}))
        LOGGER.info("Resumed at step %d of %d.", self.step, self.steps)

    def go(
        self,
        update: Callable[[int, Sequence[Batch]], Update],
        *,
        rate: Callable[[int], float],
        watch: Watch | None = None,
    ) -> None:
        """Run the remaining steps.

        Args:
            update: does step n (counted from 0) on its micro-batches.
            rate: the learning rate of step n.
            watch: called with every record.

        Raises:
            RunInterrupted: a signal came; a checkpoint was written first.
            TrainingStopped: loss or gradients stayed non-finite.
        """
        if self.run is not None:
            self.run.forget_after(self.step)
        batches = self.loader.batches(self.step, self.steps)
        self.meter.begin(self.step)
        with StopSignals() as signals:
            while self.step < self.steps:
                current = rate(self.step)
                set_learning_rate(self.trainee.optimizer, current)
                with self.meter.watch.waiting():
                    parts = [next(batches) for _ in range(self.loader.accumulate)]
                self.guard.add(update(self.step, parts))
                self.step += 1
                is_last = self.step == self.steps
                if self.step % self.log_every == 0 or is_last:
                    self._log(current, watch)
                if self.after_step is not None:
                    self.after_step(self.step)
                stop = self.world.any(signals.received or 0)
                if stop or is_last or self.step % self.checkpoint_every == 0:
                    self._checkpoint()
                if stop and not is_last:
                    raise RunInterrupted(stop)
        batches.close()

    def _log(self, rate: float, watch: Watch | None) -> None:
        loss, norm = self.guard.take()
        if self.world.size > 1 and loss is not None:
            loss = float(self.world.mean(torch.tensor(loss, device=self.world.device)))
        record, recent = self.meter.record(self.step, loss=loss, lr=rate, grad_norm=norm), self.advisor.recent()
        # All wait for the slowest: what is shown, and advised, is of that process.
        waits = self.world.by_rank(record.wait_share, recent.samples, recent.seconds)
        slowest = max(range(len(waits)), key=lambda rank: waits[rank][0])
        wait_share, samples, seconds = waits[slowest]
        record = replace(record, wait_share=wait_share, wait_rank=slowest)
        if self.run is not None:
            self.run.log(record)
            LOGGER.info("%s", record)
            said = self.advisor.sentence(
                Spent(int(samples), seconds),
                rank=slowest,
                wait_share=wait_share,
                clips_per_second=record.clips_per_second,
            )
            if said is not None:
                LOGGER.warning("%s", said)
            if watch is not None:
                watch(record)

    def _checkpoint(self) -> None:
        """Judge every update first: a checkpoint holds no weights that were not looked at."""
        self.guard.look()
        # Every process asks for all of these: a sharded model, and what each process has spent, are put together.
        trainee, cost, skipped = self.trainee, self.cost(), self.world.merged(self.loader.reader.skipped)
        weights, optimizer, mean = trainee.tensors(), trainee.state_tensors(), trainee.mean_tensors()
        if self.run is not None:
            save_checkpoint(
                self.run.path / "checkpoints",
                step=self.step,
                weights=weights,
                optimizer=optimizer,
                mean=mean,
                state={
                    "clips": self.step * self.loader.clips_per_step,
                    "digests": self.digests(),
                    "skipped_steps": self.guard.skipped,
                    "skipped_clips": skipped,
                    "world_size": self.world.size,
                    "cost": cost,
                    "loss_scale": None if trainee.scale is None else trainee.scale.state(),
                },
            )
            # Said outside of the folder too: a lost commit must not pass for a checkpoint that was never finished.
            self.run.facts["last_checkpoint"] = self.step
            self.run.save()
        self.world.wait()
        self.loader.reader.learn(skipped)

    def digests(self) -> dict[str, str]:
        """Digest of every set or selection by its reference."""
        return {str(source.index.reference): source.index.digest for source in self.loader.sources}

    def cost(self) -> dict[str, Any]:
        """What the run has cost so far, over all its interruptions and processes (`cost.json`); every process must ask."""
        watch, spent = self.meter.watch, self.spent
        waited = max(each for (each,) in self.world.by_rank(watch.waited))
        cpu_seconds, bytes_read = self.world.total(watch.cpu_seconds, self.loader.reader.bytes_read)
        clips = self.step * self.loader.clips_per_step
        seconds = watch.seconds
        gpu_seconds = seconds * self.world.size if self.world.device.type == "cuda" else 0.0
        return {
            "schema_version": 1,
            "seconds": round(seconds + spent["seconds"], 3),
            "cpu_seconds": round(cpu_seconds + spent["cpu_seconds"], 3),
            "gpu_seconds": round(gpu_seconds + spent["gpu_seconds"], 3),
            "stall_seconds": round(waited + spent["stall_seconds"], 3),
            "bytes_read": int(bytes_read + spent["bytes_read"]),
            "clips": clips,
            "steps": self.step,
            "epochs": round(self.step * self.loader.batch_videos / self.loader.mix.epoch_videos, 3),
            "flops": clips * self.flops_per_clip,
            "kwh": None,
            "memory_bytes": self.world.any(peak_memory_bytes()),
        }
