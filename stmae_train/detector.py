"""Action detection on boxes (AVA): an encoder, RoIAlign over its time-averaged tokens, one score per class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from stmae_train.classifier import start_encoder
from stmae_train.config import ModelConfig
from stmae_train.model import Encoder, initialise
from stmae_train.tokens import Grid

__all__ = ["Detector", "RoiHead"]

ROI_CELLS = 7


class RoiHead(nn.Module):
    """PySlowFast's head (SPEC-models A1.15): mean over time, RoIAlign 7x7, maximum over space, dropout, linear.

    Args:
        width: D of the tokens.
        num_classes: 80 in AVA.
        patch_px: pixels behind one grid cell; boxes are in pixels of the clip.
        is_aligned: RoIAlign's half-pixel shift, on in published runs.
        sampling_ratio: samples per cell; 0 means as many as the box is wide in grid cells.
        dropout: before the linear layer.
    """

    def __init__(
        self,
        width: int,
        num_classes: int = 80,
        *,
        patch_px: int = 16,
        is_aligned: bool = True,
        sampling_ratio: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_px, self.is_aligned, self.sampling_ratio = patch_px, is_aligned, sampling_ratio
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(width, num_classes)

    def regions(self, tokens: Tensor, boxes: Tensor, grid: Grid) -> Tensor:
        """Tokens [B, L, D] and boxes [N, 5] -> [N, D, 7, 7].

        A box is (clip number in the batch, x1, y1, x2, y2) in pixels.
        """
        cube = tokens.reshape(len(tokens), grid.t, grid.h, grid.w, -1)
        planes = cube.mean(dim=1).permute(0, 3, 1, 2)  # [B, D, h, w]
        pooled: Tensor = roi_align(
            planes.float(),
            boxes.float(),
            output_size=ROI_CELLS,
            spatial_scale=1 / self.patch_px,
            sampling_ratio=self.sampling_ratio,
            aligned=self.is_aligned,
        )
        return pooled

    def forward(self, tokens: Tensor, boxes: Tensor, grid: Grid) -> Tensor:
        """Logits [N, num_classes]; PySlowFast's own output is their sigmoid, in training too."""
        pooled = self.regions(tokens, boxes, grid).amax(dim=(2, 3))  # [N, D]
        logits: Tensor = self.projection(self.dropout(pooled))
        return logits


class Detector(nn.Module):
    """An encoder with a RoI head; train it with binary cross-entropy on its logits.

    Args:
        config: the model the encoder was pre-trained as.
        num_classes: 80 in AVA.
        drop_path: rate of the last block, growing from 0.
        dropout: before the linear layer.
        seed: of the initial weights.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int = 80,
        *,
        drop_path: float = 0.0,
        dropout: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, drop_path=drop_path, trains_positions=config.positions == "sincos-2d")
        self.head = RoiHead(config.width, num_classes, patch_px=config.patch_px, dropout=dropout)
        initialise(self, lineage=config.lineage, generator=torch.Generator().manual_seed(seed))

    def forward(self, clips: Tensor, boxes: Tensor) -> Tensor:
        """Clips [B, C, T, H, W] of any size that fills the grid, and boxes [N, 5] in their pixels -> logits [N, classes]."""
        tokens: Tensor = self.encoder(clips)
        logits: Tensor = self.head(tokens[:, int(self.config.class_token) :], boxes, self.encoder.grid(clips))
        return logits

    def start_from(self, weights: Mapping[str, Tensor], *, grid: tuple[int, int, int] | None = None) -> None:
        """Take the encoder of a masked autoencoder or classifier (`start_encoder`); the head stays as it is."""
        start_encoder(self.encoder, weights, grid=grid)
