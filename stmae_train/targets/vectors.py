"""Target vectors, frames and losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stmae_train.config import ModelConfig
from stmae_train.errors import ModelError
from stmae_train.targets.teachers import PcaTarget, Teacher, TokenTarget
from stmae_train.tokens import Grid, patchify

__all__ = [
    "HOG_BINS",
    "HOG_CELL_PX",
    "hog",
    "normalise_all_colours",
    "normalise_per_colour",
    "pixel_vectors",
    "reconstruction_loss",
    "target_frame_index",
    "target_size",
    "target_vectors",
]

# MaskFeat's operator (SPEC-models A1.11).
HOG_BINS, HOG_CELL_PX = 9, 8
COLOURS = 3


def target_frame_index(config: ModelConfig, *, num_frames: int | None = None) -> list[int]:
    """Which frames of a clip form the target.

    "linspace" truncates evenly spaced positions, first and last included, as mae_st does: 8 of 16 frames are
    0, 2, 4, 6, 8, 10, 12, 15. "first" is the first frame of each tubelet (PySlowFast), "all" is every frame. "center" is
    the middle frame for every time slice, "double" every frame of a clip of twice the frames, whose even ones the model
    sees (VideoMAE's ablation of targets; SPEC-models C3).
    """
    frames = num_frames or config.clip_frames
    tubelet_frames = config.tubelet_frames * config.input_stride
    if config.target != "hog":
        if config.target_frames in ("all", "double"):
            return list(range(frames))
        if config.target_frames == "center":
            return [frames // 2] * (frames // tubelet_frames)
        if config.target_frames == "linspace":
            # torch.linspace in float32, because the published code truncates exactly these values.
            return [int(each) for each in torch.linspace(0, frames - 1, config.num_target_frames, device="cpu").long()]
    return list(range(0, frames, tubelet_frames))


def _grid(clips: Tensor, config: ModelConfig) -> Grid:
    """The token grid behind clips, which may have more frames than the model sees."""
    return Grid.of(clips, tubelet_frames=config.tubelet_frames * config.input_stride, patch_px=config.patch_px)


def target_size(config: ModelConfig) -> int:
    """U: values per target vector.

    Raises:
        ModelError: a HOG target on patches that hold no whole number of cells.
    """
    if config.target == "hog":
        cells, rest = divmod(config.patch_px, HOG_CELL_PX)
        if rest:
            raise ModelError(
                f"HOG cells of {HOG_CELL_PX} px do not fill patches of {config.patch_px} px; use 8, 16, 24."
            )
        return COLOURS * HOG_BINS * cells * cells
    if config.target in ("pca", "tokens"):
        return config.target_values
    return config.frames_per_token * config.patch_px**2 * COLOURS


@torch.no_grad()
def target_vectors(
    clips: Tensor, config: ModelConfig, *, ids: Tensor | None = None, teacher: Teacher | None = None
) -> Tensor:
    """Target vectors of tokens.

    Args:
        clips: normalised pixels [B, C, T, H, W].
        config: which target.
        ids: token numbers [B, M]; None means all, in token order.
        teacher: the basis or tokenizer of a "pca" or "tokens" target.

    Returns:
        float32 [B, M, U], or words int64 [B, M] of a tokenizer. Pixel vectors run (frame in tubelet, row, column,
        colour), HOG vectors (colour, bin, cell row, cell column).

    Raises:
        ModelError: a target that needs a teacher and got none.
    """
    grid = _grid(clips, config)
    if config.target == "hog":
        return _hog_vectors(clips[:, :, :: config.tubelet_frames].float(), grid, ids=ids)
    if config.target == "tokens":
        if not isinstance(teacher, TokenTarget):
            raise ModelError(
                "The target 'tokens' needs its tokenizer; set model.target_file to a file of it and train again."
            )
        frames = clips[:, :, target_frame_index(config, num_frames=clips.shape[2])]  # [B, C, t, H, W]
        words = teacher.words(_unit(frames, config), grid)  # [B, L]
        return words if ids is None else words.gather(1, ids)
    vectors = pixel_vectors(clips, config, ids=ids)
    if config.target == "pca":
        if not isinstance(teacher, PcaTarget):
            raise ModelError(
                "The target 'pca' needs its basis; set model.target_file to a file of it, or train again without one."
            )
        return teacher.coefficients(vectors)
    if config.target == "normalized-pixels":
        return normalise_all_colours(vectors)
    if config.target == "normalized-per-color":
        return normalise_per_colour(vectors)
    return vectors


def pixel_vectors(clips: Tensor, config: ModelConfig, *, ids: Tensor | None = None) -> Tensor:
    """The pixels of the target's frames as vectors [B, M, U], before any normalisation, float32."""
    grid, frames = _grid(clips, config), target_frame_index(config, num_frames=clips.shape[2])
    if config.target_frames == "first":
        clips = clips[:, :, :: config.tubelet_frames]  # a view, not a copy
    elif config.target_frames == "center":
        clips = clips[:, :, frames[:1]].expand(-1, -1, len(frames), -1, -1)
    elif config.target_frames == "linspace" and len(frames) < clips.shape[2]:
        clips = clips[:, :, frames]
    chosen = Grid(grid.t, grid.h, grid.w, len(frames) // grid.t, grid.patch_px)
    vectors = patchify(clips, chosen, ids=ids).float()  # [B, M, u * p * p * C]
    if config.target_range == "unit":
        vectors = _colours(vectors) * vectors.new_tensor(config.std) + vectors.new_tensor(config.mean)
        vectors = vectors.flatten(-2)
    return vectors


def _unit(clips: Tensor, config: ModelConfig) -> Tensor:
    """Normalised pixels [B, C, T, H, W] back in [0, 1]."""
    std, mean = (clips.new_tensor(each)[:, None, None, None] for each in (config.std, config.mean))
    return (clips * std + mean).float().clamp(0, 1)


def normalise_all_colours(vectors: Tensor) -> Tensor:
    """MAE's formula over a whole vector [..., U]: unbiased variance, 1e-6 inside the root."""
    variance, mean = torch.var_mean(vectors, dim=-1, keepdim=True)
    return (vectors - mean) / (variance + 1e-6).sqrt()


def normalise_per_colour(vectors: Tensor) -> Tensor:
    """VideoMAE's formula for every colour of [..., U] on its own: unbiased variance, 1e-6 outside the root."""
    variance, mean = torch.var_mean(_colours(vectors), dim=-2, keepdim=True)
    return ((_colours(vectors) - mean) / (variance.sqrt() + 1e-6)).flatten(-2)


def _colours(vectors: Tensor) -> Tensor:
    """[..., U] -> [..., U / 3, 3]."""
    return vectors.reshape(*vectors.shape[:-1], -1, COLOURS)


def hog(images: Tensor, *, bins: int = HOG_BINS, cell_px: int = HOG_CELL_PX) -> Tensor:
    """Histograms of oriented gradients [B, C, bins, H / cell, W / cell] of images [B, C, H, W].

    Sobel gradients per colour over a reflected border; the angle counts modulo pi in hard bins; magnitudes are summed
    in square cells and every cell's bins are scaled to length 1.
    """
    batch, colours, height, width = images.shape
    sobel = images.new_tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect").reshape(-1, 1, height + 2, width + 2)
    across = F.conv2d(padded, sobel[None, None])
    down = F.conv2d(padded, sobel.T[None, None])
    magnitude = torch.stack([across, down], dim=-1).norm(dim=-1)
    # The published operator swaps the arguments; bins are counted from its angle.
    angle = torch.atan2(across, down)
    chosen = (angle / torch.pi * bins).floor().long() % bins
    votes = magnitude.new_zeros(len(padded), bins, height, width).scatter_(1, chosen, magnitude)
    cells = F.avg_pool2d(votes, cell_px) * cell_px**2
    return F.normalize(cells, dim=1, eps=1e-12).reshape(batch, colours, bins, *cells.shape[2:])


def _hog_vectors(frames: Tensor, grid: Grid, *, ids: Tensor | None) -> Tensor:
    """HOG vectors [B, M, C * 9 * cells * cells] of frames [B, C, t, H, W], one frame per time step."""
    batch = len(frames)
    images = frames.transpose(1, 2).flatten(0, 1)  # [B * t, C, H, W]
    cells = grid.patch_px // HOG_CELL_PX
    histograms = hog(images).reshape(batch, grid.t, COLOURS * HOG_BINS, grid.h * cells, grid.w * cells)
    volume = histograms.transpose(1, 2)  # [B, C * 9, t, H / 8, W / 8]
    return patchify(volume, Grid(grid.t, grid.h, grid.w, 1, cells), ids=ids, order="colour-first")


def reconstruction_loss(prediction: Tensor, target: Tensor, *, kind: str = "mse") -> Tensor:
    """Mean over the values of hidden tokens [B, M, U] in float32: "mse", "l1", "smooth-l1", or "cross-entropy" over U words.

    Every clip hides equally many tokens, so this is also the mean over the batch's hidden tokens.
    """
    if kind == "cross-entropy":
        return F.cross_entropy(prediction.float().flatten(0, 1), target.flatten())
    losses = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth-l1": F.smooth_l1_loss}
    return losses[kind](prediction.float(), target)
