"""Pictures of reconstructions, as the papers show them: original, masked, reconstruction, for fixed clips at several mask ratios."""

from __future__ import annotations

import io
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from stmae_train.checkpoint import load_autoencoder, load_weights, weights_path
from stmae_train.config import ModelConfig, Recipe
from stmae_train.distributed import start_world
from stmae_train.errors import ModelError
from stmae_train.evaluate import frame_rule
from stmae_train.loader import (
    DEFAULT_CACHE_BYTES,
    DEFAULT_RANGE_BYTES,
    ClipSource,
    ReadOptions,
    SweepLoader,
    open_sources,
)
from stmae_train.masks import draw_masks
from stmae_train.model import MaskedAutoencoder
from stmae_train.runlog import commit
from stmae_train.targets import target_frame_index, target_vectors
from stmae_train.tokens import Grid, patchify, unpatchify

__all__ = ["PictureRequest", "draw", "picture", "reconstruct", "shown_ratios", "shows_pixels"]

LOGGER = logging.getLogger("stmae.train")
GREY = 0.5  # of hidden patches
_FRAME_PX = 96  # small clips are shown enlarged, pixel by pixel


@dataclass(frozen=True, slots=True)
class PictureRequest:
    """Which clips to show through which model.

    Attributes:
        workspace: folder of the sets.
        weights: a weights file, run folder or run name of a pre-training.
        shards: set reference the clips come from.
        out: folder the pictures go to, such as `<run>/pictures`.
        clip_ids: the clips; the first `count` of the set in stored order unless given.
        count: how many.
        ratios: mask ratios; the model's own kind of mask is used where it can hide so much, else random masks.
        seed: of the masks.
        device: `cpu`, `cuda`; a GPU where there is one unless given.
        store_cache_bytes: what may stand on this disk of sets that are read from a store.
        skip_damaged: damaged clips that may be left out; none is shown in their place.
    """

    workspace: Path
    weights: str
    shards: str
    out: Path
    clip_ids: tuple[str, ...] = ()
    count: int = 8
    ratios: tuple[float, ...] = (0.9, 0.95)
    seed: int = 0
    device: str | None = None
    store_cache_bytes: int = DEFAULT_RANGE_BYTES
    skip_damaged: int = 0


def picture(request: PictureRequest) -> list[Path]:
    """Write one PNG per clip and ratio, and `captions.json`; returns the paths of the PNGs.

    Rows are original, masked, reconstruction (visible patches are shown as they are); columns are the frames the model predicts. The
    caption stands in the PNG itself too, as its Description.

    Raises:
        CheckpointError: the weights are missing or hold no decoder.
        ModelError: the target is no pixels, or a clip is not in the set.
        DataMismatch: more clips are damaged than may be left out.
    """
    path = weights_path(request.weights, workspace=request.workspace)
    weights = load_weights(path)
    device = start_world(request.device).device
    model = load_autoencoder(weights, where=str(path)).to(device).eval()
    return draw(model, weights.recipe, request)


def draw(model: MaskedAutoencoder, recipe: Recipe, request: PictureRequest) -> list[Path]:
    """The same of a model at hand, on its device; the weights of the request are not read. Nothing is written where no clip is whole.

    Raises:
        ModelError: the target is no pixels, or a clip is not in the set.
        DataMismatch: more clips are damaged than may be left out.
    """
    device = next(model.parameters()).device
    (source,) = open_sources(request.workspace, [request.shards])
    chosen = _chosen(source, request)
    sweep = SweepLoader(
        request.workspace,
        [chosen],
        rule=frame_rule(recipe.data),
        views=1,
        batch_videos=len(chosen),
        options=ReadOptions(
            cache_bytes=0 if len(chosen) < len(source) else DEFAULT_CACHE_BYTES,
            skip_damaged=request.skip_damaged,
            store_cache_bytes=request.store_cache_bytes,
        ),
    )
    batches = list(sweep.batches())
    if sweep.reader.skipped:
        LOGGER.warning("No pictures of damaged clips: %s.", ", ".join(sweep.reader.skipped))
    if not batches:
        return []
    (batch,) = batches
    clips = batch.clips(recipe.model, device=device)
    written, captions = [], {}
    for ratio in request.ratios:
        config = _masking(recipe.model, ratio)
        mask = draw_masks(config, seed=request.seed, sample_numbers=batch.numbers.tolist())
        shown, note = reconstruct(model, clips, mask=mask)
        for number, clip_id in enumerate(batch.clip_ids):
            caption = f"{clip_id}, {ratio:.0%} hidden ({config.mask}): original, masked, reconstruction. {note}"
            name = f"{clip_id}-{round(100 * ratio)}.png"
            _write_png(request.out / name, _strip([row[number] for row in shown], recipe.model), caption)
            written.append(request.out / name)
            captions[name] = caption
    with commit(request.out / "captions.json") as stream:
        stream.write((json.dumps(captions, indent=2, sort_keys=True) + "\n").encode())
    return written


def shows_pixels(model: ModelConfig) -> bool:
    """Whether what a model predicts can be shown."""
    return model.target not in ("hog", "pca", "tokens")


def shown_ratios(model: ModelConfig) -> tuple[float, ...]:
    """The ratio a model is trained with and, as the papers show, 90 % and 95 %, as far as a token is left visible."""
    length = math.prod(model.grid_shape)
    return tuple(ratio for ratio in sorted({model.mask_ratio, 0.9, 0.95}) if int(length * (1 - ratio)) > 0)


def _masking(model: ModelConfig, ratio: float) -> ModelConfig:
    """The model's own kind of mask at a ratio, or random masks where that kind would leave nothing visible."""
    config = replace(model, mask_ratio=ratio)
    try:
        draw_masks(config, seed=0, sample_numbers=[0])
    except ModelError:
        return replace(config, mask="random")
    return config


def _chosen(source: ClipSource, request: PictureRequest) -> ClipSource:
    """The source with only the clips to show in use."""
    if not request.clip_ids:
        return replace(source, rows=source.rows[: request.count])
    places = {str(clip_id): row for row, clip_id in enumerate(source.index.clip_ids)}
    missing = [clip_id for clip_id in request.clip_ids if clip_id not in places]
    if missing:
        raise ModelError(f"Clip {missing[0]} is not in {request.shards}; look for it: stmae-data show {missing[0]}")
    return replace(source, rows=np.array([places[clip_id] for clip_id in request.clip_ids], dtype=np.int64))


@torch.no_grad()
def reconstruct(model: MaskedAutoencoder, clips: Tensor, *, mask: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], str]:
    """Original, masked and reconstructed frames [B, 3, t, S, S] in [0, 1], and a sentence on how they were made readable.

    Args:
        model: on the device of the clips.
        clips: normalised pixels [B, 3, T, S, S].
        mask: bool [B, L], True means hidden.

    Raises:
        ModelError: the model predicts no pixels.
    """
    config = model.config
    if not shows_pixels(config):
        raise ModelError(
            f"A model whose target is '{config.target}' has no pixels to show; use weights with a pixel target."
        )
    tubelet_frames = config.tubelet_frames * config.input_stride
    grid = Grid.of(clips, tubelet_frames=tubelet_frames, patch_px=config.patch_px)
    out = model(clips, mask=mask, predicts_all=True)
    assert out.every_prediction is not None
    frames = target_frame_index(config, num_frames=clips.shape[2])
    mean, std = (clips.new_tensor(each)[:, None, None, None] for each in (config.mean, config.std))
    seen = (clips[:, :, frames] * std + mean).clamp(0, 1)  # [B, 3, t, S, S]
    fine = Grid(grid.t, grid.h, grid.w, len(frames) // grid.t, grid.patch_px)
    original = patchify(seen, fine)  # [B, L, U] in [0, 1]
    vectors, note = _readable(out.every_prediction.float(), clips, config)
    hidden = mask.to(clips.device)[..., None]
    shown = torch.where(hidden, vectors.clamp(0, 1), original)
    masked = torch.where(hidden, torch.full_like(original, GREY), original)
    return (seen, unpatchify(masked, fine), unpatchify(shown, fine)), note


def _readable(vectors: Tensor, clips: Tensor, config: ModelConfig) -> tuple[Tensor, str]:
    """Predicted vectors [B, L, U] as pixels in [0, 1], and how that was done."""
    plain = target_vectors(clips, replace(config, target="pixels"))  # what the normalisation was computed from
    note = "Plain pixels, as predicted."
    if config.target == "normalized-pixels":
        variance, mean = torch.var_mean(plain, dim=-1, keepdim=True)
        vectors = vectors * (variance + 1e-6).sqrt() + mean
    elif config.target == "normalized-per-color":
        colours = plain.unflatten(-1, (-1, 3))  # type: ignore[no-untyped-call]
        variance, mean = torch.var_mean(colours, dim=-2, keepdim=True)
        vectors = (vectors.unflatten(-1, (-1, 3)) * (variance.sqrt() + 1e-6) + mean).flatten(-2)  # type: ignore[no-untyped-call]
    if config.target != "pixels":
        note = (
            "The target is normalised per patch: each patch's own mean and deviation were put back from the original."
        )
    if config.target_range == "input":
        scale, shift = (vectors.new_tensor(each).repeat(vectors.shape[-1] // 3) for each in (config.std, config.mean))
        vectors = vectors * scale + shift
    return vectors, note


def _strip(rows: Sequence[Tensor], config: ModelConfig) -> NDArray[np.uint8]:
    """Rows of frames [3, t, S, S] as one picture [height, width, 3], with white lines between."""
    factor = max(1, -(-_FRAME_PX // config.crop_px))
    gap = 2 * factor
    lines = []
    for row in rows:
        frames = (row.permute(1, 2, 3, 0) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()  # [t, S, S, 3]
        frames = frames.repeat(factor, axis=1).repeat(factor, axis=2)
        padded = np.pad(frames, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
        lines.append(np.concatenate(list(padded), axis=1))
    picture: NDArray[np.uint8] = np.concatenate(lines, axis=0)[:-gap, :-gap]
    return picture


def _write_png(path: Path, pixels: NDArray[np.uint8], caption: str) -> None:
    facts = PngImagePlugin.PngInfo()
    facts.add_itxt("Description", caption)
    with io.BytesIO() as out:
        Image.fromarray(pixels).save(out, "PNG", pnginfo=facts)
        data = out.getvalue()
    with commit(path) as stream:
        stream.write(data)
