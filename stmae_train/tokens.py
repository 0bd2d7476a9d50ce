"""Tokens: how a clip becomes a sequence, and where each token stands.

Token order is time-major, then row, then column. Pixels are [B, C, T, H, W], tokens [B, L, D] with L = t*h*w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmae_train.errors import ModelError

__all__ = [
    "Grid",
    "Positions",
    "TubeletEmbedding",
    "interpolate_positions",
    "patchify",
    "sincos_1d",
    "sincos_2d",
    "sincos_3d",
    "split_tokens",
    "unpatchify",
]

Order = Literal["colour-first", "colour-last"]


@dataclass(frozen=True, slots=True)
class Grid:
    """Token counts (t, h, w) and the tubelet behind one token."""

    t: int
    h: int
    w: int
    tubelet_frames: int = 1
    patch_px: int = 1

    def __post_init__(self) -> None:
        if min(self.t, self.h, self.w, self.tubelet_frames, self.patch_px) < 1:
            raise ModelError(f"A grid needs counts of at least 1, found {self}; check the clip and tubelet sizes.")

    @property
    def length(self) -> int:
        """L = t*h*w."""
        return self.t * self.h * self.w

    @property
    def places(self) -> int:
        """Tokens in one time slice, h*w."""
        return self.h * self.w

    @staticmethod
    def of(clips: Tensor, *, tubelet_frames: int, patch_px: int) -> Grid:
        """The grid of clips [B, C, T, H, W].

        Raises:
            ModelError: the clips have another rank, or frames and pixels do not divide into tubelets.
        """
        if clips.ndim != 5:
            raise ModelError(f"Clips have shape {list(clips.shape)}, wanted [B, C, T, H, W]; add the missing axes.")
        frames, height, width = clips.shape[2:]
        if frames % tubelet_frames or height % patch_px or width % patch_px:
            raise ModelError(
                f"A clip of {frames} frames x {height} x {width} px does not divide into tubelets of "
                f"{tubelet_frames} frames x {patch_px} px; crop it to a multiple."
            )
        return Grid(frames // tubelet_frames, height // patch_px, width // patch_px, tubelet_frames, patch_px)


def patchify(clips: Tensor, grid: Grid, *, ids: Tensor | None = None, order: Order = "colour-last") -> Tensor:
    """The pixels behind each token as a vector.

    Args:
        clips: pixels [B, C, T, H, W].
        grid: the grid of the clips.
        ids: token numbers [B, N]; only these tokens are cut out, in this order. None means all, in token order.
        order: "colour-last" is (frame in tubelet, row, column, colour), as every published target has it;
            "colour-first" is (colour, frame, row, column), as a convolution kernel has it.

    Returns:
        Vectors [B, N, tubelet_frames * patch_px * patch_px * C].
    """
    batch, colours = clips.shape[:2]
    u, p = grid.tubelet_frames, grid.patch_px
    cut = clips.reshape(batch, colours, grid.t, u, grid.h, p, grid.w, p)
    permuted = cut.permute(0, 2, 4, 6, 1, 3, 5, 7) if order == "colour-first" else cut.permute(0, 2, 4, 6, 3, 5, 7, 1)
    if ids is None:
        return permuted.reshape(batch, grid.length, -1)
    clip_numbers = torch.arange(batch, device=clips.device)[:, None]
    # Few tokens: index the strided view, so the clip is never copied. Many: one dense copy and whole rows of it.
    if 2 * ids.shape[1] < grid.length:
        return permuted[clip_numbers, ids // grid.places, ids // grid.w % grid.h, ids % grid.w].flatten(2)
    rows = permuted.reshape(batch * grid.length, -1)
    return rows.index_select(0, (clip_numbers * grid.length + ids).flatten()).reshape(batch, ids.shape[1], -1)


def unpatchify(vectors: Tensor, grid: Grid, *, colours: int = 3) -> Tensor:
    """Pixels [B, C, T, H, W] from colour-last vectors [B, L, u*p*p*C] of all tokens; u follows from the vectors.

    Raises:
        ModelError: the vectors do not fill whole frames of the grid.
    """
    batch, length, size = vectors.shape
    p = grid.patch_px
    u, rest = divmod(size, p * p * colours)
    if rest or length != grid.length or not u:
        raise ModelError(
            f"Vectors {list(vectors.shape)} do not fill a grid of {grid.t} x {grid.h} x {grid.w} tokens of {p} px and "
            f"{colours} colours; give the prediction of all tokens of a pixel target."
        )
    cut = vectors.reshape(batch, grid.t, grid.h, grid.w, u, p, p, colours)
    return cut.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, colours, grid.t * u, grid.h * p, grid.w * p)


def split_tokens(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of the visible and of the hidden tokens, both in token order.

    Args:
        mask: bool [B, L], True means hidden; every row must hide equally many.

    Returns:
        Visible [B, V] and hidden [B, M] token numbers, int64.

    Raises:
        ModelError: rows hide different counts, or hide everything.
    """
    counts = mask.sum(dim=1)
    hidden = int(counts[0])
    if not bool((counts == hidden).all()):
        raise ModelError(
            f"Rows of the mask hide {int(counts.min())} to {int(counts.max())} tokens, wanted one count for the batch; "
            f"even them out with masks.even_out."
        )
    if hidden == mask.shape[1]:
        raise ModelError(f"The mask hides all {hidden} tokens, wanted at least one visible; lower the mask ratio.")
    order = torch.argsort(mask.to(torch.uint8), dim=1, stable=True)
    return order[:, : mask.shape[1] - hidden], order[:, mask.shape[1] - hidden :]


class TubeletEmbedding(nn.Module):
    """A convolution with kernel = stride, computed as one matrix product over the tokens that are asked for."""

    def __init__(self, width: int, *, tubelet_frames: int, patch_px: int, colours: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, colours, tubelet_frames, patch_px, patch_px))
        self.bias = nn.Parameter(torch.empty(width))
        self.colours = colours

    def forward(self, clips: Tensor, grid: Grid, *, ids: Tensor | None = None) -> Tensor:
        """Embed clips [B, C, T, H, W] -> [B, N, D], all tokens or those in `ids` [B, N]."""
        if clips.shape[1] != self.colours:
            raise ModelError(
                f"Clips have {clips.shape[1]} colour channels, this model wants {self.colours}; convert the clips."
            )
        vectors = patchify(clips, grid, ids=ids, order="colour-first")
        return F.linear(vectors, self.weight.flatten(1), self.bias)


class Positions(nn.Module):
    """Position embeddings of one width: learned (separable or joint) or fixed (sine and cosine), with a class row.

    `take` gives the rows of any tokens, so positions are added after masking by gathering the kept rows.
    """

    def __init__(self, kind: str, *, width: int, grid: Grid, class_token: bool, is_trained: bool = False) -> None:
        """`is_trained` makes a fixed table an ordinary parameter that starts from it."""
        super().__init__()
        self.kind, self.grid, self.class_token = kind, grid, class_token
        if kind == "separable":
            self.spatial = nn.Parameter(torch.zeros(1, grid.places, width))
            self.temporal = nn.Parameter(torch.zeros(1, grid.t, width))
            if class_token:
                self.class_row = nn.Parameter(torch.zeros(1, 1, width))
        elif kind == "joint":
            self.joint = nn.Parameter(torch.zeros(1, class_token + grid.length, width))
        else:
            table = torch.from_numpy(_fixed_table(kind, width=width, grid=grid)).float()
            if class_token:
                table = torch.cat([table.new_zeros(1, width), table])  # the class row is zero in every codebase
            if is_trained:
                self.joint = nn.Parameter(table[None])
            else:  # only image MAE stores its table with the weights
                self.register_buffer("joint", table[None], persistent=kind == "sincos-2d")

    def learned(self) -> list[nn.Parameter]:
        """The parameters that start from random values; a table that starts from sines is none of them."""
        return [] if self.kind.startswith("sincos") else list(self.parameters())

    def table(self, grid: Grid) -> Tensor:
        """Rows of all tokens [1, L, D] of a grid; another size than the trained one is interpolated."""
        if self.kind == "separable":
            rows = (self.temporal[:, :, None] + self.spatial[:, None]).flatten(1, 2)
        else:
            rows = self.joint[:, int(self.class_token) :]
        same = (grid.t, grid.h, grid.w) == (self.grid.t, self.grid.h, self.grid.w)
        return rows if same else interpolate_positions(rows, source=self.grid, target=grid)

    def take(self, ids: Tensor, grid: Grid) -> Tensor:
        """Rows [B, N, D] of the tokens `ids` [B, N]."""
        return F.embedding(ids, self.table(grid)[0])  # its gradient is cheaper than that of plain indexing

    def of_class(self) -> Tensor:
        """The class token's row [1, 1, D]."""
        return self.class_row if self.kind == "separable" else self.joint[:, :1]


def interpolate_positions(rows: Tensor, *, source: Grid, target: Grid) -> Tensor:
    """Rows [1, L, D] of one grid resized to another: bicubic in space, linear in time (image MAE, util/pos_embed.py)."""
    width = rows.shape[-1]
    cube = rows.float().reshape(source.t, source.h, source.w, width).permute(0, 3, 1, 2)  # [t, D, h, w]
    if (source.h, source.w) != (target.h, target.w):
        cube = F.interpolate(cube, size=(target.h, target.w), mode="bicubic", align_corners=False)
    if source.t != target.t:
        lines = cube.permute(2, 3, 1, 0).flatten(0, 1)  # [h*w, D, t]
        lines = F.interpolate(lines, size=target.t, mode="linear", align_corners=False)
        cube = lines.reshape(target.h, target.w, width, target.t).permute(3, 2, 0, 1)
    return cube.permute(0, 2, 3, 1).reshape(1, target.length, width).to(rows.dtype)


def sincos_1d(length: int, *, width: int) -> np.ndarray:
    """VideoMAE's table [length, width] over flattened token numbers: sine at even, cosine at odd channels, float64."""
    channel = np.arange(width)
    angles = np.arange(length)[:, None] / 10000 ** (2 * (channel // 2) / width)
    return np.where(channel % 2 == 0, np.sin(angles), np.cos(angles))


def sincos_2d(height: int, columns: int, *, width: int) -> np.ndarray:
    """Image MAE's table [height * columns, width]: the first half of the channels is the column, the second the row."""
    row, column = np.divmod(np.arange(height * columns), columns)
    return np.concatenate([_axis(column, width // 2), _axis(row, width // 2)], axis=1)


def sincos_3d(grid: Grid, *, width: int) -> np.ndarray:
    """PySlowFast's table [L, width]: a quarter of the channels for time first, then the 2-D table of space."""
    time = np.repeat(_axis(np.arange(grid.t), width // 4), grid.places, axis=0)
    space = np.tile(sincos_2d(grid.h, grid.w, width=width - width // 4), (grid.t, 1))
    return np.concatenate([time, space], axis=1)


def _axis(position: np.ndarray, width: int) -> np.ndarray:
    """One axis as [sines, cosines] of `width` channels with frequencies 10000^(-i / (width / 2)), float64."""
    frequency = 10000.0 ** -(np.arange(width // 2) / (width / 2))
    angles = position[:, None] * frequency
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _fixed_table(kind: str, *, width: int, grid: Grid) -> np.ndarray:
    """The fixed table [L, width] of a kind."""
    if kind == "sincos-1d":
        return sincos_1d(grid.length, width=width)
    needed = {"sincos-2d": 4, "sincos-3d": 16}.get(kind)
    if needed is None:
        raise ModelError(f"There are no positions '{kind}'; choose separable, joint or sincos-1d, -2d, -3d.")
    if width % needed:
        raise ModelError(f"Positions '{kind}' need a width divisible by {needed}, found {width}; change the width.")
    if kind == "sincos-3d":
        return sincos_3d(grid, width=width)
    return np.tile(sincos_2d(grid.h, grid.w, width=width), (grid.t, 1))
