"""stmae_train.classifier: pooling, pre-trained encoders, probes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stmae_train.classifier import AttentiveProbe, Classifier, LinearProbe
from stmae_train.config import ModelConfig
from stmae_train.errors import ModelError
from stmae_train.model import MaskedAutoencoder
from stmae_train.recipes import lineage_options

torch.set_num_threads(1)
SIZES = {"width": 32, "depth": 2, "heads": 4, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
CONFIG = ModelConfig(**SIZES, num_frames=8, crop_px=32, patch_px=8, num_target_frames=4)
CLIPS = torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pooling", ["mean-norm", "mean-fresh-norm", "norm-mean", "norm-first"])
@pytest.mark.parametrize("class_token", [True, False])
def test_every_pooling_starts_from_pre_trained_weights(pooling: str, class_token: bool) -> None:
    config = replace(CONFIG, class_token=class_token)
    pretrained = MaskedAutoencoder(config, seed=3).eval()
    model = Classifier(config, 5, pooling=pooling, seed=4).eval()
    model.start_from(pretrained.state_dict())
    assert model(CLIPS).shape == (2, 5)
    features = pretrained.encode(CLIPS, with_class=True)
    if pooling == "norm-mean":
        assert torch.allclose(model.features(CLIPS), features[:, int(class_token) :].mean(1), atol=1e-6)
    if pooling == "norm-first":
        assert torch.allclose(model.features(CLIPS), features[:, 0], atol=1e-6)


def test_a_bigger_clip_gets_interpolated_positions() -> None:
    pretrained = MaskedAutoencoder(CONFIG, seed=3)
    for positions in ("separable", "joint"):
        small = replace(CONFIG, positions=positions)  # type: ignore[arg-type]
        pretrained = MaskedAutoencoder(small, seed=3)
        big = replace(small, crop_px=48, num_frames=8)
        model = Classifier(big, 5)
        model.start_from(pretrained.state_dict(), grid=small.grid_shape)
        assert model.encoder.positions.table(model.encoder.positions.grid).shape == (1, 4 * 36, 32)
    longer = replace(CONFIG, num_frames=16, num_target_frames=8)
    model = Classifier(longer, 5)
    model.start_from(MaskedAutoencoder(CONFIG, seed=3).state_dict())
    assert model.encoder.positions.temporal.shape == (1, 8, 32)


@pytest.mark.parametrize(
    ("frames", "other_frames", "crop_px"), [(16, 4, 32), (4, 16, 32), (16, 8, 32), (8, 4, 32), (8, 32, 32), (16, 4, 64)]
)
@pytest.mark.parametrize("class_token", [True, False])
def test_joint_positions_of_other_clips_keep_times_and_places_apart(
    frames: int, other_frames: int, crop_px: int, class_token: bool
) -> None:
    """Rows that rise over time alone still do so, and in every place alike; 8 x 4 x 4 rows are as many as 2 x 8 x 8."""
    options = {"positions": "joint", "class_token": class_token, "target_frames": "first"}
    config = replace(CONFIG, num_frames=frames, **options)
    weights = dict(MaskedAutoencoder(config).state_dict())
    first, (t, h, w) = int(class_token), config.grid_shape
    rising = torch.arange(t, dtype=torch.float32)[:, None].expand(t, h * w).reshape(1, -1, 1)
    table = weights["encoder.positions.joint"]
    weights["encoder.positions.joint"] = torch.cat([table[:, :first], rising.expand(-1, -1, 32)], dim=1)
    model = Classifier(replace(config, num_frames=other_frames, crop_px=crop_px), 5)
    model.start_from(weights, grid=config.grid_shape)
    found = model.encoder.positions.joint.detach()
    assert torch.equal(found[:, :first], table[:, :first])
    slices = found[0, first:].unflatten(0, (other_frames // 2, -1))  # [t, h * w, D]
    assert torch.allclose(slices, slices[:, :1, :1].expand_as(slices), atol=1e-5)
    assert (slices[1:, 0, 0] > slices[:-1, 0, 0] - 1e-5).all() and slices[-1, 0, 0] > slices[0, 0, 0]


def test_a_joint_table_of_unknown_grid_is_not_guessed_at() -> None:
    config = replace(CONFIG, positions="joint", target_frames="first")
    weights = MaskedAutoencoder(replace(config, num_frames=16)).state_dict()
    with pytest.raises(ModelError, match="rows for 128 tokens, the model for 4 x 4 x 4"):
        Classifier(config, 5).start_from(weights)
    with pytest.raises(ModelError, match=r"'encoder\.positions\.joint' has shape \[1, 129, 32\]"):
        Classifier(config, 5).start_from(weights, grid=(3, 4, 4))


def test_fixed_image_positions_become_trainable() -> None:
    config = ModelConfig(**(lineage_options("mae") | SIZES | {"crop_px": 32, "patch_px": 8}))
    model = Classifier(config, 5)
    before = model.encoder.positions.joint.detach().clone()
    model.start_from(MaskedAutoencoder(config).state_dict())
    assert model.encoder.positions.joint.requires_grad
    assert torch.equal(model.encoder.positions.joint, before)


def test_foreign_weights_are_refused_by_name() -> None:
    model = Classifier(CONFIG, 5)
    weights = dict(MaskedAutoencoder(CONFIG).state_dict())
    with pytest.raises(ModelError, match=r"missing blocks\.0\.norm1\.bias"):
        model.start_from({name: each for name, each in weights.items() if not name.endswith("blocks.0.norm1.bias")})
    with pytest.raises(ModelError, match=r"'encoder\.embed\.bias' has shape \[31\]"):
        model.start_from(weights | {"encoder.embed.bias": torch.zeros(31)})
    with pytest.raises(ModelError, match="no pooling 'max'"):
        Classifier(CONFIG, 5, pooling="max")


def test_drop_path_grows_from_zero() -> None:
    model = Classifier(replace(CONFIG, depth=3), 5, drop_path=0.2)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.encoder.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_a_linear_probe_forgets_scale_and_shift() -> None:
    probe = LinearProbe(8, 3)
    features = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    assert (probe.norm.eps, probe.norm.momentum) == (1e-6, 0.1)  # SPEC-models A2
    assert torch.allclose(probe(features), probe(features * 7 + 3), atol=1e-4)


@pytest.mark.parametrize("blocks", [1, 2])
def test_an_attentive_probe_learns_which_token_matters(blocks: int) -> None:
    """The class is written on one token at a random place: a mean over tokens would bury it."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(64, 12, 16, generator=generator)
    labels = torch.arange(64) % 2
    places = torch.randint(0, 12, (64,), generator=generator)
    tokens[torch.arange(64), places, 0] = 6.0
    tokens[torch.arange(64), places, 1] = 6.0 * (2 * labels - 1).float()
    probe = AttentiveProbe(16, 2, heads=4, blocks=blocks)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=3e-3)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(probe(tokens), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((probe(tokens).argmax(1) == labels).float().mean()) > 0.95


def test_an_attentive_probe_needs_heads_that_divide() -> None:
    with pytest.raises(ModelError, match="width 16 cannot have 5 heads"):
        AttentiveProbe(16, 2, heads=5)
