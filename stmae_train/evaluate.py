"""Scoring a classifier: every test video in fixed views and crops, probabilities summed, one row per video."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stmae_train.checkpoint import weights_path
from stmae_train.classifier import Classifier
from stmae_train.config import DataConfig, ModelConfig, Recipe
from stmae_train.convert import read_weights
from stmae_train.distributed import World, start_world, stop_world
from stmae_train.errors import CheckpointError
from stmae_train.loader import (
    DEFAULT_CACHE_BYTES,
    DEFAULT_RANGE_BYTES,
    ClipSource,
    ReadOptions,
    SweepLoader,
    open_sources,
)
from stmae_train.runlog import RunFolder, Stopwatch, autocast, peak_memory_bytes, write_card, write_scores
from stmae_train.views import FrameRule, center_boxes

__all__ = [
    "METRIC_VERSION",
    "EvaluateRequest",
    "Scores",
    "collect",
    "evaluate",
    "frame_rule",
    "load_classifier",
    "merge",
    "score",
    "warn_of_stills",
    "write_results",
]

LOGGER = logging.getLogger("stmae.train")

METRIC_VERSION = "top1-1"
"""Changes whenever the same predictions would give another number."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Merged predictions of N videos over C classes."""

    clip_ids: tuple[str, ...]
    labels: NDArray[np.int64]  # [N]
    probabilities: NDArray[np.float64]  # [N, C], rows sum to 1

    def metrics(self) -> dict[str, Any]:
        """Top-1 with its 95 % Wilson interval, top-5, cross-entropy and the mean margin of the right class."""
        count = len(self.labels)
        own = self.of_label()
        rank = (self.probabilities > own[:, None]).sum(axis=1)
        others = self.probabilities.copy()
        others[np.arange(count), self.labels] = -1
        top1 = float((self.top5()[:, 0] == self.labels).mean())
        low, high = _wilson(top1, count)
        return {
            "top1": top1,
            "top1_low": low,
            "top1_high": high,
            "top5": float((rank < 5).mean()),
            "cross_entropy": float(-np.log(np.maximum(own, 1e-12)).mean()),
            "margin": float((own - others.max(axis=1)).mean()),
            "num_clips": count,
            "num_classes": self.probabilities.shape[1],
            "metric_version": METRIC_VERSION,
        }

    def of_label(self) -> NDArray[np.float64]:
        """Probability [N] of each video's own class."""
        chosen: NDArray[np.float64] = self.probabilities[np.arange(len(self.labels)), self.labels]
        return chosen

    def top5(self) -> NDArray[np.int64]:
        """The five most likely classes [N, 5], best first; of equal ones the lower number."""
        best: NDArray[np.int64] = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :5]
        return best

    def rows(self, seed: int) -> list[dict[str, Any]]:
        """Rows of `scores.parquet`."""
        top5, own = self.top5(), self.of_label()
        return [
            {
                "clip_id": clip_id,
                "label": int(label),
                "top5": [int(each) for each in top5[place]],
                "p_label": float(own[place]),
                "seed": seed,
                "correct": bool(top5[place, 0] == label),
            }
            for place, (clip_id, label) in enumerate(zip(self.clip_ids, self.labels, strict=True))
        ]


def _wilson(share: float, count: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share of `count` (Wilson 1927)."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def frame_rule(data: DataConfig) -> FrameRule:
    """How a config takes frames."""
    return FrameRule(data.num_frames, data.frame_stride, data.fps, data.sampling)


def warn_of_stills(model: ModelConfig, sources: Sequence[ClipSource]) -> None:
    """Say so where an image model meets videos: it sees one frame of each."""
    videos = [str(source.index.reference) for source in sources if not source.is_of_pictures]
    if model.num_frames == 1 and videos:
        LOGGER.warning(
            "The model is of single images, so it sees one frame of each video of %s; for clips, inflate its weights first: stmae-train convert "
            "FILE --to stmae --inflate divide",
            ", ".join(videos),
        )


@torch.no_grad()
def collect(
    outputs: Callable[[Tensor], Tensor], loader: SweepLoader, model: ModelConfig, *, crops: int, device: torch.device
) -> Tensor:
    """Outputs of every clip of a sweep.

    Args:
        outputs: clips [B, 3, T, H, W] to a tensor [B, ...].
        loader: what to sweep; its views are the second axis of the result.
        model: size and normalisation of the clips.
        crops: test crops per view; random sweeps have one.
        device: where to compute.

    Returns:
        [videos, views * crops, ...] on the CPU; empty where the sweep has nothing.
    """
    kept: list[Tensor] = []
    for batch in loader.batches():
        for_crops = []
        for crop in range(crops):
            boxes = None
            if loader.crop is None:
                size = {"heights": batch.heights, "widths": batch.widths}
                boxes = center_boxes(**size, crop=crop, crops=crops, side_share=model.test_crop)
            for_crops.append(outputs(batch.clips(model, device=device, boxes=boxes)).cpu())
        merged = torch.stack(for_crops, dim=1)  # [videos * views, crops, ...]
        kept.append(merged.reshape(-1, loader.views * crops, *merged.shape[2:]))
    return torch.cat(kept) if kept else torch.empty(0)


def score(
    logits: Callable[[Tensor], Tensor],
    workspace: Path,
    sources: Sequence[ClipSource],
    *,
    recipe: Recipe,
    views: tuple[int, int],
    world: World,
    options: ReadOptions | None = None,
    batch_videos: int = 32,
) -> tuple[Scores, SweepLoader]:
    """Predictions of all labelled videos, soft-max summed over views x crops (SPEC-models B2); every process does its share, all get the result.

    Args:
        logits: clips [B, 3, T, H, W] to [B, C].
        workspace, sources: what to score.
        recipe: model and data settings.
        views: temporal x spatial.
        world: this process and its device among those that share the work.
        options: how samples are read.
        batch_videos: videos at a time.
    """
    loader = SweepLoader(
        workspace,
        sources,
        rule=frame_rule(recipe.data),
        views=views[0],
        batch_videos=batch_videos,
        options=options,
        share=(world.rank, world.size),
    )
    outputs = collect(
        lambda clips: logits(clips).float().softmax(dim=-1), loader, recipe.model, crops=views[1], device=world.device
    )
    parts = world.all_of(outputs)
    together = torch.empty(len(loader), *parts[0].shape[1:])
    for rank, part in enumerate(parts):
        if len(part):
            together[rank :: world.size] = part
    return merge(together, loader), loader


def merge(probabilities: Tensor, loader: SweepLoader) -> Scores:
    """One prediction per video from those of its views [N, views, C]."""
    mean = probabilities.double().mean(dim=1).numpy()
    ids = [str(each) for source in loader.sources for each in source.index.clip_ids[source.rows]]
    labels = np.concatenate([source.index.label_index[source.rows] for source in loader.sources]).astype(np.int64)
    return Scores(tuple(ids), labels, mean)


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """Score a fine-tuned classifier.

    Attributes:
        workspace: folder of the sets.
        weights: weights file, run folder or run name of a fine-tuning.
        eval_shards: a labelled set reference.
        run_dir: the run folder of this evaluation.
        views: temporal x spatial; those of the recipe unless given.
        seed: written into the scores; draws nothing.
        workers, device, cache_bytes, prefetch, store_cache_bytes: as in pre-training.
    """

    workspace: Path
    weights: str
    eval_shards: str
    run_dir: Path
    views: tuple[int, int] | None = None
    seed: int = 0
    workers: int = 0
    device: str | None = None
    resume: bool = False
    cache_bytes: int = DEFAULT_CACHE_BYTES
    prefetch: int = 4
    store_cache_bytes: int = DEFAULT_RANGE_BYTES


def evaluate(request: EvaluateRequest) -> dict[str, Any]:
    """Score a fine-tuned classifier and leave a run folder; returns the metrics.

    Raises:
        CheckpointError: the weights are missing or hold no classifier.
        SetError, DataMismatch: the set cannot be read or has no labels.
    """
    path = weights_path(request.weights, workspace=request.workspace)
    classifier, recipe = load_classifier(path)
    views = request.views or recipe.finetune.views
    settings = {"weights": str(path), "eval_shards": request.eval_shards, "views": list(views)}
    watch = Stopwatch()
    world = start_world(request.device)
    try:
        if not world.is_main:
            if not world.any(0):
                _scored(request, classifier, recipe, views, world, watch)
            return {}
        with RunFolder.open(
            request.run_dir,
            command="evaluate",
            recipe=recipe,
            seed=request.seed,
            settings=settings,
            resume=request.resume,
        ) as run:
            if world.any(int(run.was_done)):
                return dict(run.read_json("metrics.json"))
            found, loader, bytes_read, cpu_seconds = _scored(request, classifier, recipe, views, world, watch)
            run.write_data([source.entry("eval") for source in loader.sources])
            return write_results(
                run,
                found,
                facts={"kind": "evaluate", "views": list(views), "weights": str(path)},
                recipe=recipe,
                device=world.device,
                watch=watch,
                clips=len(loader) * views[0] * views[1],
                bytes_read=bytes_read,
                cost={
                    "cpu_seconds": round(cpu_seconds, 3),
                    "gpu_seconds": round(watch.seconds * world.size, 3) if world.device.type == "cuda" else 0.0,
                },
            )
    finally:
        stop_world(world)


def _scored(
    request: EvaluateRequest,
    classifier: Classifier,
    recipe: Recipe,
    views: tuple[int, int],
    world: World,
    watch: Stopwatch,
) -> tuple[Scores, SweepLoader, int, float]:
    """Scores, what was swept, and the bytes and processor seconds of all processes."""
    sources = open_sources(request.workspace, [request.eval_shards], labelled=True)
    classifier = classifier.to(world.device).eval()

    def logits(clips: Tensor) -> Tensor:
        with autocast(world.device, recipe.finetune.precision):
            out: Tensor = classifier(clips)
        return out

    options = ReadOptions(
        request.workers,
        request.cache_bytes,
        prefetch=request.prefetch,
        store_cache_bytes=request.store_cache_bytes,
        pins_memory=world.device.type == "cuda",
    )
    found, loader = score(logits, request.workspace, sources, recipe=recipe, views=views, world=world, options=options)
    bytes_read, cpu_seconds = world.total(loader.reader.bytes_read, watch.cpu_seconds)
    return found, loader, int(bytes_read), cpu_seconds


def load_classifier(path: Path) -> tuple[Classifier, Recipe]:
    """The classifier of a fine-tuning and its recipe.

    Raises:
        CheckpointError: the file holds something else.
    """
    weights = read_weights(path)
    if weights.metadata.get("kind") != "finetune":
        raise CheckpointError(
            f"{path} holds {weights.metadata.get('kind', 'no')} weights, wanted a fine-tuned classifier; make one: stmae-train finetune."
        )
    recipe = weights.recipe
    classifier = Classifier(
        recipe.model,
        int(weights.metadata["num_classes"]),
        pooling=recipe.finetune.pooling,
        drops_first_token=json.loads(weights.metadata.get("drops_first_token", "false")),
    )
    classifier.load_state_dict(weights.tensors)
    return classifier, recipe


def write_results(
    run: RunFolder,
    scores: Scores,
    *,
    facts: Mapping[str, Any],
    recipe: Recipe,
    device: torch.device,
    watch: Stopwatch,
    clips: int,
    bytes_read: int,
    cost: Mapping[str, Any] | None = None,
    lines: Sequence[tuple[str, str]] = (),
) -> dict[str, Any]:
    """Write scores, metrics, cost and card of a run; returns the metrics.

    Args:
        run: where.
        scores: predictions of the test videos.
        facts: what else belongs into `metrics.json`.
        recipe: for the card.
        device: that the encoder ran on.
        watch: of the whole run.
        clips: that went through the encoder.
        bytes_read: from shards.
        cost: where it is known better: of a training that came before, of several processes.
        lines: what else the card says.
    """
    metrics = {"schema_version": 1, **scores.metrics(), **facts}
    spent = {
        "schema_version": 1,
        "seconds": round(watch.seconds, 3),
        "cpu_seconds": round(watch.cpu_seconds, 3),
        "gpu_seconds": round(watch.seconds, 3) if device.type == "cuda" else 0.0,
        "stall_seconds": round(watch.waited, 3),
        "bytes_read": bytes_read,
        "clips": clips,
        "kwh": None,
        "memory_bytes": peak_memory_bytes(),
    }
    write_scores(run.path / "scores.parquet", scores.rows(int(run.facts["seed"])))
    run.write_json("metrics.json", metrics)
    run.write_json("cost.json", {**spent, **(cost or {})})
    sampled = "each clip cut at fixed places"
    write_card(
        run.path / "CARD.md",
        title=f"{run.path.name}: {run.facts['command']}",
        recipe=recipe,
        entries=run.read_json("data.json")["sets"],
        facts=[
            (
                "Top-1",
                f"{metrics['top1']:.4f} [{metrics['top1_low']:.4f}, {metrics['top1_high']:.4f}] on {metrics['num_clips']} videos",
            ),
            ("Views", f"{facts.get('views')} (temporal x spatial), {sampled}, soft-max summed"),
            ("Metric version", METRIC_VERSION),
            *lines,
        ],
    )
    return metrics
