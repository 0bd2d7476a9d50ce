"""stmae_train.optim: which parameter decays, how fast each layer learns, LARS."""

from __future__ import annotations

import pytest
import torch

from stmae_train.classifier import Classifier
from stmae_train.config import ModelConfig
from stmae_train.model import MaskedAutoencoder
from stmae_train.optim import Lars, adamw, parameter_groups, set_learning_rate, sgd

torch.set_num_threads(1)
SIZES = {"width": 32, "depth": 2, "heads": 4, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
CONFIG = ModelConfig(**SIZES, num_frames=8, crop_px=32, patch_px=8, num_target_frames=4)


@pytest.mark.parametrize("rule", ["not-1d", "not-1d-nor-tokens"])
def test_every_parameter_is_in_one_group(rule: str) -> None:
    model = MaskedAutoencoder(CONFIG)
    groups = parameter_groups(model, weight_decay=0.05, decay_rule=rule)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    decaying = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert ("mask_token" in decaying) == (rule == "not-1d")
    assert ("encoder.positions.spatial" in decaying) == (rule == "not-1d")
    assert not any(name.endswith(".bias") or "norm" in name for name in decaying)


def test_layer_decay_counts_from_the_head() -> None:
    model = Classifier(CONFIG, 5)
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.5, depth=2)
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scales["head.weight"] == scales["encoder.norm.weight"] == 1.0
    assert scales["encoder.blocks.1.attn.q.weight"] == 0.5
    assert scales["encoder.blocks.0.attn.q.weight"] == 0.25
    assert scales["encoder.embed.weight"] == scales["encoder.class_token"] == 0.125


def test_rates_are_scaled_per_group_and_frozen_parameters_left_out() -> None:
    model = Classifier(CONFIG, 5)
    model.encoder.embed.requires_grad_(False)
    optimizer = adamw(parameter_groups(model, weight_decay=0.0, layer_decay=0.5, depth=2), betas=(0.9, 0.999))
    set_learning_rate(optimizer, 1e-2)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-2, 5e-3, 2.5e-3, 1.25e-3}
    assert not any("embed" in name for group in optimizer.param_groups for name in group["names"])


def test_lars_steps_in_proportion_to_the_weight() -> None:
    weight = torch.nn.Parameter(torch.full((2, 2), 2.0))
    bias = torch.nn.Parameter(torch.zeros(2))
    optimizer = Lars([weight, bias], lr=1.0, momentum=0.0, trust=0.1)
    (1000 * weight.sum() + bias.sum()).backward()
    optimizer.step()
    assert torch.allclose(weight, torch.full((2, 2), 1.8))  # |weight| 4, trust 0.1: a step of length 0.4
    assert torch.allclose(bias, torch.full((2,), -1.0))


def test_sgd_takes_its_own_steps_and_a_skipped_first_one_leaves_nothing_behind() -> None:
    ours, theirs = (torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2))
    group = {"params": [ours], "weight_decay": 0.1, "lr_scale": 0.5, "names": ["head.weight"]}
    optimizer = sgd([group], momentum=0.9)
    set_learning_rate(optimizer, 0.2)
    ours.grad = torch.full((3, 2), float("nan"))
    optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    optimizer.step()
    assert torch.equal(ours, torch.ones(3, 2)) and not optimizer.state[ours]["momentum_buffer"].any()
    plain = torch.optim.SGD([theirs], lr=0.1, momentum=0.9, weight_decay=0.1)
    optimizer.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    for number in range(3):
        ours.grad, theirs.grad = (torch.full((3, 2), 0.5 + number) for _ in range(2))
        optimizer.step()
        plain.step()
    assert torch.allclose(ours, theirs, atol=1e-6)
