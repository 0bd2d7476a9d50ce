"""stmae_train.targets: what hidden tokens should become."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from stmae_train.checkpoint import save_tensors
from stmae_train.config import ModelConfig, override
from stmae_train.errors import ConfigError, ModelError
from stmae_train.masks import draw_masks
from stmae_train.model import MaskedAutoencoder
from stmae_train.recipes import recipe
from stmae_train.targets import (
    fit_pca,
    hog,
    normalise_all_colours,
    normalise_per_colour,
    pixel_vectors,
    read_teacher,
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


def test_center_gives_every_slice_the_middle_frame() -> None:
    """SPEC-models C3: the centre frame as the only target."""
    config = replace(CONFIG, target_frames="center")
    assert target_frame_index(config) == [2, 2] and target_size(config) == 3 * 8 * 8
    found = target_vectors(CLIPS, config).reshape(2, 2, 4, -1)
    middle = target_vectors(CLIPS[:, :, 2:3].expand(-1, -1, 4, -1, -1), replace(CONFIG, target_frames="first"))
    assert torch.equal(found[:, 0], found[:, 1]) and torch.equal(found, middle.reshape(found.shape))


def test_double_predicts_frames_the_model_does_not_see() -> None:
    """SPEC-models C3: 2T frames are the target, every other one is the input."""
    config = replace(CONFIG, target_frames="double", target="normalized-per-color")
    assert (config.clip_frames, config.input_stride) == (8, 2) and target_frame_index(config) == list(range(8))
    assert target_size(config) == 4 * 8 * 8 * 3
    clips = torch.randn(2, 3, 8, 16, 16, generator=torch.Generator().manual_seed(2))
    model = MaskedAutoencoder(replace(config, width=32, heads=4, depth=1, decoder_width=16, decoder_heads=2))
    mask = draw_masks(replace(config, mask_ratio=0.5), seed=0, sample_numbers=[0, 1])
    first = model(clips, mask=mask)
    assert first.prediction.shape == first.target.shape == (2, 4, target_size(config))
    between = clips.clone()
    between[:, :, 1::2] = 0
    again = model(between, mask=mask)
    assert torch.equal(again.prediction, first.prediction) and not torch.equal(again.target, first.target)


def test_components_are_orthonormal_ordered_and_keep_what_varies() -> None:
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(400, 3, generator=generator) @ torch.randn(3, 20, generator=generator) + 1.5
    basis = fit_pca(vectors, count=3)
    assert torch.allclose(basis.components @ basis.components.T, torch.eye(3), atol=1e-5)
    found = basis.coefficients(vectors)
    assert torch.allclose(found @ basis.components + basis.mean, vectors, atol=1e-3)  # rank 3 is all there is
    assert bool((found.var(0).diff() < 0).all())
    assert torch.equal(fit_pca(vectors, count=3).components, basis.components)
    with pytest.raises(ModelError, match="have no 21 principal components"):
        fit_pca(vectors, count=21)


def test_a_basis_and_a_tokenizer_are_read_from_files(tmp_path: Path) -> None:
    basis = fit_pca(torch.randn(300, 192, generator=torch.Generator().manual_seed(0)), count=5)
    save_tensors(tmp_path / "pca.safetensors", {"mean": basis.mean, "components": basis.components})
    config = replace(CONFIG, target="pca", target_values=5)
    teacher = read_teacher(tmp_path / "pca.safetensors", target="pca", values=5)
    found = target_vectors(CLIPS, config, teacher=teacher)
    assert found.shape == (2, 8, 5) and target_size(config) == 5
    assert torch.equal(found, basis.coefficients(pixel_vectors(CLIPS, config)))
    with pytest.raises(ModelError, match=r"has 5 components, the recipe says 6; set model\.target_values=5"):
        read_teacher(tmp_path / "pca.safetensors", target="pca", values=6)
    with pytest.raises(ModelError, match="is no tokenizer"):
        read_teacher(tmp_path / "pca.safetensors", target="tokens", values=5)
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        read_teacher(tmp_path / "missing.safetensors", target="pca", values=5)
    with pytest.raises(ModelError, match="needs its basis"):
        target_vectors(CLIPS, config)


def published_tokenizer(*, width: int = 8, blocks: int = 2, words: int = 11) -> dict[str, torch.Tensor]:
    """Random weights under the published names, written out here on their own: the reference for the reader."""
    generator = torch.Generator().manual_seed(9)

    def pair(name: str, outward: int, inward: int, size: int) -> dict[str, torch.Tensor]:
        weight = torch.randn(outward, inward, size, size, generator=generator) / (inward * size * size) ** 0.5
        return {f"{name}.w": weight, f"{name}.b": 0.1 * torch.randn(outward, generator=generator)}

    found = pair("blocks.input", width, 3, 7)
    inward = width
    for group in range(1, 5):
        outward = width * 2 ** (group - 1)
        for block in range(1, blocks + 1):
            stem = f"blocks.group_{group}.block_{block}"
            if inward != outward:
                found |= pair(f"{stem}.id_path", outward, inward, 1)
            channels = [inward, outward // 4, outward // 4, outward // 4, outward]
            for number, size in enumerate((3, 3, 3, 1), start=1):
                found |= pair(f"{stem}.res_path.conv_{number}", channels[number], channels[number - 1], size)
            inward = outward
    return found | pair("blocks.output.conv", words, inward, 1)


def words_by_hand(weights: dict[str, torch.Tensor], images: torch.Tensor, *, blocks: int = 2) -> torch.Tensor:
    """The published computation, step by step."""

    def convolve(name: str, planes: torch.Tensor) -> torch.Tensor:
        weight = weights[f"{name}.w"]
        return functional.conv2d(planes, weight, weights[f"{name}.b"], padding=weight.shape[-1] // 2)

    planes = convolve("blocks.input", 0.8 * images + 0.1)
    for group in range(1, 5):
        for block in range(1, blocks + 1):
            stem, inner = f"blocks.group_{group}.block_{block}", planes
            for number in range(1, 5):
                inner = convolve(f"{stem}.res_path.conv_{number}", inner.clamp(min=0))
            straight = convolve(f"{stem}.id_path", planes) if f"{stem}.id_path.w" in weights else planes
            planes = straight + inner / (4 * blocks) ** 2
        if group < 4:
            planes = functional.max_pool2d(planes, 2)
    return convolve("blocks.output.conv", planes.clamp(min=0)).argmax(1)


def test_words_are_those_of_the_published_architecture(tmp_path: Path) -> None:
    weights = published_tokenizer()
    save_tensors(tmp_path / "dvae.safetensors", weights)
    config = replace(CONFIG, target="tokens", loss="cross-entropy", target_values=11, target_frames="first")
    teacher = read_teacher(tmp_path / "dvae.safetensors", target="tokens", values=11)
    ids = torch.tensor([[5, 0, 2], [7, 1, 3]])
    words = target_vectors(CLIPS, config, teacher=teacher)
    std, mean = (torch.tensor(each).view(1, 3, 1, 1) for each in (config.std, config.mean))
    for slice_number in range(2):
        image = (CLIPS[:, :, 2 * slice_number] * std + mean).clamp(0, 1)  # 16 px: one word per 8 px needs no resizing
        wanted = words_by_hand(weights, image).flatten(1)
        assert torch.equal(words[:, 4 * slice_number : 4 * slice_number + 4], wanted)
    assert torch.equal(target_vectors(CLIPS, config, ids=ids, teacher=teacher), words.gather(1, ids))
    model = MaskedAutoencoder(replace(config, width=32, heads=4, depth=1, decoder_width=16, decoder_heads=2))
    model.teacher = teacher
    assert not [name for name in model.state_dict() if "teacher" in name]
    mask = draw_masks(replace(config, mask_ratio=0.5), seed=0, sample_numbers=[0, 1])
    result = model(CLIPS, mask=mask)
    result.loss.backward()
    wanted_loss = functional.cross_entropy(result.prediction.flatten(0, 1), result.target.flatten())
    assert result.prediction.shape == (2, 4, 11) and result.loss.item() == pytest.approx(wanted_loss.item())
    assert model.decoder.head.weight.grad is not None
    with pytest.raises(ModelError, match="needs its tokenizer"):
        MaskedAutoencoder(model.config)(CLIPS, mask=mask)
    with pytest.raises(ModelError, match="missing, unknown or of another shape"):
        read_wrong = weights | {"blocks.group_1.block_1.extra.w": torch.zeros(1)}
        save_tensors(tmp_path / "wrong.safetensors", read_wrong)
        read_teacher(tmp_path / "wrong.safetensors", target="tokens", values=11)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"target": "tokens"}, "words take cross-entropy"),
        ({"loss": "cross-entropy"}, "words take cross-entropy"),
        ({"target": "pca"}, "target_values is 0 for the target 'pca'"),
        ({"target_values": 5}, "and 0 for other targets"),
        (
            {"target": "tokens", "loss": "cross-entropy", "target_values": 9, "target_frames": "all"},
            "cannot be of the frames 'all'",
        ),
        ({"target": "hog", "target_frames": "center"}, "cannot be of the frames 'center'"),
        ({"decoded_share": 0.0}, r"wanted a share in \(0, 1\]"),
        ({"decoder_attention": "cross", "dense_encoder": True}, "needs an encoder of visible tokens"),
    ],
)
def test_combinations_without_a_meaning_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(CONFIG, **changes)


def test_a_recipe_feeds_twice_the_frames_to_a_double_target() -> None:
    base = recipe("demo")
    with pytest.raises(ConfigError, match=r"set data\.num_frames=16 or model\.num_frames=4"):
        override(base, ["model.target_frames=double"])
    found = override(base, ["model.target_frames=double", "data.num_frames=16", "data.frame_stride=2"])
    assert found.model.clip_frames == 16 and found.model.grid_shape == (4, 4, 4)
