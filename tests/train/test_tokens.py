"""stmae_train.tokens: from clips to sequences and back."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from stmae_train.errors import ModelError
from stmae_train.tokens import (
    Grid,
    Positions,
    TubeletEmbedding,
    interpolate_positions,
    patchify,
    split_tokens,
    unpatchify,
)
from stmae_train.tokens import sincos_3d as sincos_3d_table

torch.set_num_threads(1)
CLIPS = torch.randn(2, 3, 4, 16, 24, generator=torch.Generator().manual_seed(0))
GRID = Grid(2, 2, 3, tubelet_frames=2, patch_px=8)


def test_token_vectors_run_frame_row_column_colour() -> None:
    vectors = patchify(CLIPS, GRID)
    token = 1 * 6 + 1 * 3 + 2  # time 1, row 1, column 2
    wanted = CLIPS[0, :, 2:4, 8:16, 16:24].permute(1, 2, 3, 0).flatten()
    assert torch.equal(vectors[0, token], wanted)


def test_unpatchify_undoes_patchify() -> None:
    assert torch.equal(unpatchify(patchify(CLIPS, GRID), GRID), CLIPS)
    with pytest.raises(ModelError, match="do not fill a grid"):
        unpatchify(torch.zeros(1, 5, 12), GRID)


@pytest.mark.parametrize("order", ["colour-first", "colour-last"])
def test_cutting_some_tokens_equals_cutting_all_and_picking(order: str) -> None:
    ids = torch.tensor([[11, 0, 7], [3, 3, 5]])
    everything = patchify(CLIPS, GRID, order=order)  # type: ignore[arg-type]
    wanted = everything.gather(1, ids[..., None].expand(-1, -1, everything.shape[-1]))
    assert torch.equal(patchify(CLIPS, GRID, ids=ids, order=order), wanted)  # type: ignore[arg-type]


def test_embedding_is_the_convolution() -> None:
    embedding = TubeletEmbedding(5, tubelet_frames=2, patch_px=8)
    torch.nn.init.normal_(embedding.weight, std=0.1)
    torch.nn.init.normal_(embedding.bias)
    wanted = F.conv3d(CLIPS, embedding.weight, embedding.bias, stride=(2, 8, 8)).flatten(2).transpose(1, 2)
    assert torch.allclose(embedding(CLIPS, GRID), wanted, atol=1e-5)
    ids = torch.tensor([[1, 11], [0, 5]])
    some = embedding(CLIPS, GRID, ids=ids)
    assert torch.allclose(some, wanted.gather(1, ids[..., None].expand(-1, -1, 5)), atol=1e-5)


def test_other_channel_counts_fail_in_one_sentence() -> None:
    embedding = TubeletEmbedding(5, tubelet_frames=2, patch_px=8)
    with pytest.raises(ModelError, match="have 1 colour channels, this model wants 3"):
        embedding(CLIPS[:, :1], GRID)


@pytest.mark.parametrize(("shape", "message"), [((3, 4, 16, 16), "wanted"), ((1, 3, 3, 16, 16), "does not divide")])
def test_clips_that_fit_no_grid_fail(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Grid.of(torch.zeros(shape), tubelet_frames=2, patch_px=8)


def test_separable_positions_add_space_and_time() -> None:
    positions = Positions("separable", width=4, grid=GRID, class_token=True)
    torch.nn.init.normal_(positions.spatial)
    torch.nn.init.normal_(positions.temporal)
    rows = positions.take(torch.tensor([[8]]), GRID)  # time 1, place 2
    assert torch.equal(rows[0, 0], positions.temporal[0, 1] + positions.spatial[0, 2])
    assert positions.of_class().shape == (1, 1, 4)


def test_fixed_positions_are_stored_by_image_mae_alone() -> None:
    for kind, stored in (("sincos-1d", 0), ("sincos-2d", 1), ("sincos-3d", 0)):
        positions = Positions(kind, width=32, grid=GRID, class_token=True)
        assert len(positions.state_dict()) == stored
        assert not list(positions.parameters())
        assert positions.joint.shape == (1, 13, 32)
        assert not positions.joint[0, 0].any()
    with pytest.raises(ModelError, match="divisible by 16, found 24"):
        Positions("sincos-3d", width=24, grid=GRID, class_token=False)


def test_three_dimensional_sines_put_time_first() -> None:
    table = sincos_3d_table(GRID, width=32)
    assert (table[:6, :8] == table[0, :8]).all()
    assert (table[:6, 8:] == table[6:, 8:]).all()


def test_interpolation_keeps_a_grid_that_is_already_there() -> None:
    rows = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(interpolate_positions(rows, source=GRID, target=GRID), rows)
    bigger = interpolate_positions(rows, source=GRID, target=Grid(4, 4, 6))
    assert bigger.shape == (1, 96, 4)
    # Constant rows stay constant, in space and time.
    flat = interpolate_positions(torch.ones(1, 12, 4), source=GRID, target=Grid(3, 5, 5))
    assert torch.allclose(flat, torch.ones(1, 75, 4), atol=1e-5)


def test_split_tokens_needs_equal_counts_and_something_visible() -> None:
    visible, hidden = split_tokens(torch.tensor([[True, False, True, False], [False, True, True, False]]))
    assert visible.tolist() == [[1, 3], [0, 3]]
    assert hidden.tolist() == [[0, 2], [1, 2]]
    with pytest.raises(ModelError, match="hide 1 to 2 tokens"):
        split_tokens(torch.tensor([[True, False], [True, True]]))
    with pytest.raises(ModelError, match="hides all 2"):
        split_tokens(torch.ones(1, 2, dtype=torch.bool))
