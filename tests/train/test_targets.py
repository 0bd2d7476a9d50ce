"""stmae_train.targets: what hidden tokens should become."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stmae_train.config import ModelConfig
from stmae_train.errors import ModelError
from stmae_train.targets import (
    hog,
    normalise_all_colours,
    normalise_per_colour,
    reconstruction_loss,
    target_frame_index,
    target_size,
    target_vectors,
)

torch.set_num_threads(1)
CONFIG = ModelConfig(crop_px=16, patch_px=8, num_frames=4, num_target_frames=2, target="pixels")
CLIPS = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("count", "frames"), [(8, [0, 2, 4, 6, 8, 10, 12, 15]), (16, list(range(16)))])
def test_mae_st_takes_truncated_even_spacing(count: int, frames: list[int]) -> None:
    """SPEC-models A1.7: the last slice comes from frame 15, not 14."""
    assert target_frame_index(ModelConfig(num_target_frames=count)) == frames


def test_other_frame_choices() -> None:
    assert target_frame_index(ModelConfig(target_frames="first")) == list(range(0, 16, 2))
    assert target_frame_index(ModelConfig(target_frames="all")) == list(range(16))
    assert target_frame_index(ModelConfig(target="hog")) == list(range(0, 16, 2))


@pytest.mark.parametrize("target", ["pixels", "normalized-pixels", "normalized-per-color", "hog"])
@pytest.mark.parametrize("frames", ["linspace", "first", "all"])
def test_targets_of_some_tokens_are_those_of_all(target: str, frames: str) -> None:
    config = replace(CONFIG, target=target, target_frames=frames)  # type: ignore[arg-type]
    ids = torch.tensor([[7, 1], [0, 4]])
    everything = target_vectors(CLIPS, config)
    assert everything.shape == (2, 8, target_size(config))
    wanted = everything.gather(1, ids[..., None].expand(-1, -1, everything.shape[-1]))
    assert torch.equal(target_vectors(CLIPS, config, ids=ids), wanted)


def test_unit_range_undoes_mean_and_deviation() -> None:
    config = replace(CONFIG, target_frames="all", target_range="unit", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    unit = CLIPS * torch.tensor(config.std).view(1, 3, 1, 1, 1) + torch.tensor(config.mean).view(1, 3, 1, 1, 1)
    wanted = target_vectors(unit, replace(config, target_range="input"))
    assert torch.allclose(target_vectors(CLIPS, config), wanted, atol=1e-6)


def test_the_two_normalisations_differ_in_what_they_average() -> None:
    vectors = torch.randn(3, 4, 48, generator=torch.Generator().manual_seed(1)) * 3 + 2
    together, apart = normalise_all_colours(vectors), normalise_per_colour(vectors)
    assert torch.allclose(together.mean(-1), torch.zeros(3, 4), atol=1e-6)
    assert torch.allclose(together.var(-1), torch.ones(3, 4), atol=1e-4)
    for colour in range(3):
        assert torch.allclose(apart[..., colour::3].var(-1), torch.ones(3, 4), atol=1e-4)


def test_hog_of_a_flat_image_is_zero_and_of_an_edge_is_one_bin() -> None:
    assert not hog(torch.ones(1, 3, 16, 16)).any()
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 4:] = 1
    votes = hog(edge)[0, 0, :, 0, 0]
    assert votes.max() == pytest.approx(1.0)
    assert int((votes > 0).sum()) == 1


def test_hog_needs_whole_cells() -> None:
    with pytest.raises(ModelError, match="HOG cells of 8 px do not fill patches of 4 px"):
        target_size(replace(CONFIG, target="hog", patch_px=4))


@pytest.mark.parametrize(("kind", "loss"), [("mse", 4.0), ("l1", 2.0), ("smooth-l1", 1.5)])
def test_losses_are_means_in_float32(kind: str, loss: float) -> None:
    value = reconstruction_loss(torch.full((1, 2, 3), 2.0, dtype=torch.bfloat16), torch.zeros(1, 2, 3), kind=kind)
    assert value.dtype == torch.float32
    assert float(value) == loss
