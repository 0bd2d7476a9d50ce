"""stmae_train.model: one family for four lineages."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from stmae_train.config import ModelConfig
from stmae_train.errors import ModelError
from stmae_train.masks import DECODE_STREAM, draw_masks, noise_for
from stmae_train.model import (
    MaskedAutoencoder,
    blocks,
    deflate_kernel,
    inflate_kernel,
    load_upstream,
    outline,
    upstream_names,
    upstream_state,
)
from stmae_train.recipes import lineage_options
from stmae_train.targets import target_vectors

torch.set_num_threads(1)
LINEAGES = ["mae_st", "pyslowfast", "videomae", "mae"]


def tiny(lineage: str = "mae_st", **options: Any) -> ModelConfig:
    frames = 1 if lineage == "mae" else 8
    sizes = {"width": 32, "depth": 2, "heads": 4, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    clip = {"num_frames": frames, "crop_px": 32, "patch_px": 8, "mask_ratio": 0.75, "num_target_frames": 4}
    return ModelConfig(**(lineage_options(lineage) | sizes | clip | options))


def clips_for(config: ModelConfig, *, count: int = 2, seed: int = 0) -> torch.Tensor:
    """Smooth random colours, so that hidden tokens can be told from visible ones."""
    coarse = torch.randn(count, 3, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    size = (config.num_frames, config.crop_px, config.crop_px)
    return torch.nn.functional.interpolate(coarse, size=size, mode="trilinear")


def train(config: ModelConfig, *, steps: int, rate: float = 1e-3) -> list[float]:
    model, clips = MaskedAutoencoder(config, seed=1), clips_for(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    mask = draw_masks(config, seed=0, sample_numbers=range(len(clips)))
    losses = []
    for _ in range(steps):
        loss = model(clips, mask=mask).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("lineage", LINEAGES)
def test_same_seeds_give_the_same_losses(lineage: str) -> None:
    assert train(tiny(lineage), steps=3) == train(tiny(lineage), steps=3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dense_encoder": True},
        {"target": "pixels", "loss": "l1"},
        {"decoder_attention": "cross", "target": "pixels", "loss": "smooth-l1"},
    ],
)
def test_one_batch_overfits(options: dict[str, Any]) -> None:
    losses = train(tiny(target_frames="first", **options), steps=50, rate=3e-3)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("lineage", LINEAGES)
def test_every_parameter_learns(lineage: str) -> None:
    config = tiny(lineage)
    model = MaskedAutoencoder(config)
    model(clips_for(config), mask=draw_masks(config, seed=0, sample_numbers=[0, 1])).loss.backward()
    assert [name for name, each in model.named_parameters() if each.grad is None] == []


@pytest.mark.parametrize("dense", [False, True])
def test_visible_tokens_add_nothing_to_the_loss(dense: bool) -> None:
    config = tiny(dense_encoder=dense)
    model, clips = MaskedAutoencoder(config), clips_for(config)
    plain = model(clips, noise=noise_for(0, [0, 1], 64))
    full = model(clips, noise=noise_for(0, [0, 1], 64), predicts_all=True)
    assert torch.allclose(plain.loss, full.loss, rtol=1e-6)
    hidden = full.every_prediction[full.mask].reshape(2, 48, -1)
    order = plain.hidden.argsort(1)[..., None].expand_as(hidden)
    assert torch.allclose(hidden, plain.prediction.gather(1, order), atol=1e-6)


def test_a_sparse_encoder_never_sees_hidden_pixels() -> None:
    config = tiny()
    model, clips = MaskedAutoencoder(config), clips_for(config)
    mask = draw_masks(config, seed=0, sample_numbers=[0, 1])
    first = model(clips, mask=mask)
    cube = mask.reshape(2, 4, 4, 4).repeat_interleave(2, 1).repeat_interleave(8, 2).repeat_interleave(8, 3)
    changed = torch.where(cube[:, None], torch.full_like(clips, 99.0), clips)
    assert torch.equal(model(changed, mask=mask).prediction, first.prediction)


def test_mask_and_noise_are_two_ways_to_say_the_same() -> None:
    config = tiny()
    model, clips = MaskedAutoencoder(config), clips_for(config)
    by_noise = model(clips, noise=noise_for(0, [4, 5], 64))
    by_mask = model(clips, mask=draw_masks(config, seed=0, sample_numbers=[4, 5]))
    assert torch.equal(by_noise.mask, by_mask.mask)
    assert torch.allclose(by_noise.loss, by_mask.loss, rtol=1e-5)


def test_a_wrong_mask_fails_in_one_sentence() -> None:
    config = tiny()
    model, clips = MaskedAutoencoder(config), clips_for(config)
    with pytest.raises(ModelError, match="either a mask or noise"):
        model(clips)
    with pytest.raises(ModelError, match="clips have 2 x 64 tokens"):
        model(clips, noise=torch.rand(2, 63))


@pytest.mark.parametrize("lineage", LINEAGES)
def test_features_of_unmasked_clips(lineage: str) -> None:
    config = tiny(lineage)
    model, clips = MaskedAutoencoder(config).eval(), clips_for(config)
    t, h, w = config.grid_shape
    assert model.encode(clips).shape == (2, t * h * w, 32)
    assert model.encode(clips, with_class=True).shape == (2, t * h * w + config.class_token, 32)
    # Another size gets interpolated positions.
    wider = clips_for(replace(config, crop_px=40))
    assert model.encode(wider).shape == (2, t * 25, 32)


def test_features_do_not_depend_on_the_batch() -> None:
    config = tiny()
    model, clips = MaskedAutoencoder(config).eval(), clips_for(config, count=3)
    assert torch.allclose(model.encode(clips)[1:2], model.encode(clips[1:2]), atol=1e-5)


def test_initial_weights_follow_the_lineage() -> None:
    """SPEC-models A1.8, A2, A3.5."""
    states = {lineage: MaskedAutoencoder(tiny(lineage)).state_dict() for lineage in LINEAGES}
    assert not states["mae_st"]["decoder.class_token"].any()
    assert (states["pyslowfast"]["encoder.norm.bias"] == 0.02).all()
    assert not states["pyslowfast"]["decoder.head.bias"].any()
    assert states["pyslowfast"]["decoder.embed.bias"].any()
    assert states["videomae"]["mask_token"].abs().max() <= 0.02
    assert not states["videomae"]["encoder.blocks.0.attn.q_bias"].any()
    # Xavier's bound: separate matrices have a fan-out of 32, a fused one of 96.
    assert states["mae_st"]["encoder.blocks.0.attn.q.weight"].abs().max() == pytest.approx((6 / 64) ** 0.5, rel=0.02)
    assert states["mae"]["encoder.blocks.0.attn.qkv.weight"].abs().max() == pytest.approx((6 / 128) ** 0.5, rel=0.02)
    assert states["mae_st"]["encoder.embed.bias"].any()


def test_truncated_weights_are_an_option_and_the_kernel_is_one_of_them() -> None:
    """SPEC-models A1.8: trunc_init, without upstream's kernel of deviation 1."""
    model = MaskedAutoencoder(tiny(width=128, init="truncated"))
    for weight in (model.encoder.blocks[0].attn.q.weight, model.encoder.embed.weight, model.decoder.embed.weight):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not model.encoder.blocks[0].attn.q.bias.any() and model.encoder.embed.bias.any()


def test_seeds_decide_all_weights() -> None:
    first, same, other = (MaskedAutoencoder(tiny(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    drawn = ("encoder.embed.weight", "encoder.embed.bias", "mask_token", "encoder.positions.spatial")
    assert not any(torch.equal(first[name], other[name]) for name in drawn)


@pytest.mark.parametrize("lineage", LINEAGES)
def test_weights_travel_under_published_names(lineage: str) -> None:
    config = tiny(lineage)
    source, copy = MaskedAutoencoder(config, seed=1), MaskedAutoencoder(config, seed=2)
    weights = upstream_state(source, config)
    load_upstream(copy, config, weights)
    noise = noise_for(0, [0, 1], 16 if lineage == "mae" else 64)
    clips = clips_for(config)
    assert torch.equal(source(clips, noise=noise).loss, copy(clips, noise=noise).loss)
    assert len(set(upstream_names(source, config).values())) == len(source.state_dict())


def test_weights_that_do_not_fit_are_named() -> None:
    config = tiny()
    model = MaskedAutoencoder(config)
    weights = upstream_state(model, config)
    del weights["decoder_norm.bias"]
    weights["fc_norm.bias"] = torch.zeros(32)
    with pytest.raises(ModelError, match=r"missing decoder_norm\.bias; unused fc_norm\.bias"):
        load_upstream(model, config, weights)
    weights = upstream_state(model, config) | {"norm.bias": torch.zeros(31)}
    with pytest.raises(ModelError, match=r"'norm\.bias' has shape \[31\], the model wants \[32\]"):
        load_upstream(model, config, weights)


@pytest.mark.parametrize("has_products", [False, True])
def test_attention_is_the_same_either_way(has_products: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_CPU_MULTIPLIES_BF16", has_products)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, 10, 8, generator=generator) for _ in range(3))
    half = blocks.attend(query.bfloat16(), key.bfloat16(), value.bfloat16())
    assert torch.allclose(half.float(), blocks.attend(query, key, value), atol=0.05)


def test_bf16_autocast_trains_in_float32() -> None:
    config = tiny()
    model, clips = MaskedAutoencoder(config), clips_for(config)
    exact = model(clips, noise=noise_for(0, [0, 1], 64)).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(clips, noise=noise_for(0, [0, 1], 64), predicts_all=True)
    assert result.loss.dtype == torch.float32
    assert result.loss.item() == pytest.approx(exact.item(), rel=0.02)


def test_inflated_kernels_keep_a_still_picture_and_deflate_to_it() -> None:
    kernel = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(deflate_kernel(inflate_kernel(kernel, frames=2)), kernel)
    assert torch.equal(inflate_kernel(kernel, frames=2, divides=False)[:, :, 1], kernel)


def test_a_half_decoded_model_gives_its_tokens_the_same_meaning() -> None:
    config = tiny(decoded_share=0.5)
    model, clips = MaskedAutoencoder(config), clips_for(config)
    noise, drawn = noise_for(0, [0, 1], 64), noise_for(0, [0, 1], 64, stream=DECODE_STREAM)
    result = model(clips, noise=noise, decode_noise=drawn)
    assert result.hidden.shape == (2, 24) and int(result.mask.sum()) == 2 * 48
    assert bool(result.mask.gather(1, result.hidden).all())  # only hidden tokens are decoded
    last = drawn.gather(1, result.hidden).amax(1)
    assert torch.equal((drawn.masked_fill(~result.mask, 2) <= last[:, None]).sum(1), torch.tensor([24, 24]))
    assert torch.equal(result.target, target_vectors(clips, config, ids=result.hidden))
    assert model(clips, noise=noise, predicts_all=True).every_prediction.shape[:2] == (2, 64)
    with pytest.raises(ModelError, match="needs noise to draw them"):
        model(clips, noise=noise)


def test_tokens_of_a_cross_attention_decoder_do_not_see_each_other() -> None:
    """So half of them predict the same as all of them do."""
    config = tiny(decoder_attention="cross")
    model, clips = MaskedAutoencoder(config, seed=3).eval(), clips_for(config)
    noise = noise_for(0, [0, 1], 64)
    full = model(clips, noise=noise, predicts_all=True)
    half = MaskedAutoencoder(replace(config, decoded_share=0.5)).eval()
    half.load_state_dict(model.state_dict())
    part = half(clips, noise=noise, decode_noise=noise_for(0, [0, 1], 64, stream=DECODE_STREAM))
    wanted = full.every_prediction.gather(1, part.hidden[..., None].expand_as(part.prediction))
    assert torch.allclose(part.prediction, wanted, atol=1e-5)
    assert torch.allclose(full.prediction, model(clips, noise=noise).prediction, atol=1e-5)


def test_an_outline_has_every_name_and_shape_and_no_weights() -> None:
    for lineage in LINEAGES:
        config = tiny(lineage)
        real, sketch = MaskedAutoencoder(config).state_dict(), outline(config).state_dict()
        assert {name: each.shape for name, each in real.items()} == {name: each.shape for name, each in sketch.items()}
        assert all(each.device.type == "meta" for name, each in sketch.items() if "positions" not in name)
