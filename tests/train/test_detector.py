"""stmae_train.detector: scores for boxes."""

from __future__ import annotations

import torch

from stmae_train.config import ModelConfig
from stmae_train.detector import Detector, RoiHead
from stmae_train.model import MaskedAutoencoder
from stmae_train.tokens import Grid

torch.set_num_threads(1)
SIZES = {"width": 32, "depth": 2, "heads": 4, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
CONFIG = ModelConfig(**SIZES, num_frames=8, crop_px=64, patch_px=16, num_target_frames=4)


def test_a_box_sees_its_own_place() -> None:
    tokens = torch.zeros(1, 2, 4, 4, 8)
    tokens[:, :, :2, :2] = 1.0
    head = RoiHead(8, 3).eval()
    boxes = torch.tensor([[0, 0.0, 0.0, 24.0, 24.0], [0, 48.0, 48.0, 63.0, 63.0]])
    pooled = head.regions(tokens.flatten(1, 3), boxes, Grid(2, 4, 4)).amax(dim=(2, 3))
    assert torch.allclose(pooled[0], torch.ones(8), atol=1e-5)
    assert not pooled[1].any()


def test_boxes_are_scored_on_any_frame_size_from_pre_trained_weights() -> None:
    model = Detector(CONFIG, 4).eval()
    model.start_from(MaskedAutoencoder(CONFIG, seed=1).state_dict())
    boxes = torch.tensor([[0, 1.0, 1.0, 40.0, 50.0], [1, 5.0, 5.0, 60.0, 60.0], [1, 0.0, 0.0, 9.0, 9.0]])
    for height, columns in ((64, 64), (64, 96)):
        clips = torch.randn(2, 3, 8, height, columns, generator=torch.Generator().manual_seed(0))
        assert model(clips, boxes).shape == (3, 4)
    assert model(clips, boxes[:0]).shape == (0, 4)
