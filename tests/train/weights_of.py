"""Tiny random weights in the layouts of the published codebases, made from our models under their names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stmae_train.classifier import Classifier
from stmae_train.config import ModelConfig
from stmae_train.model import MaskedAutoencoder, upstream_state
from stmae_train.recipes import lineage_options


def tiny(lineage: str = "mae_st", **options: Any) -> ModelConfig:
    """A config of a lineage that computes in milliseconds."""
    frames = 1 if lineage == "mae" else 8
    sizes = {"width": 32, "depth": 2, "heads": 4, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    clip = {"num_frames": frames, "crop_px": 32, "patch_px": 8, "mask_ratio": 0.75, "num_target_frames": 4}
    return ModelConfig(**(lineage_options(lineage) | sizes | clip | options))


def shaken(model: nn.Module, *, seed: int = 1) -> Any:
    """The model with noise on every parameter, so that nothing that starts at zero can hide an error."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def pretrained(lineage: str, **options: Any) -> tuple[MaskedAutoencoder, dict[str, Tensor]]:
    """A masked autoencoder and its weights under published names."""
    config = tiny(lineage, **options)
    model = shaken(MaskedAutoencoder(config))
    return model, upstream_state(model, config)


def finetuned(
    lineage: str, *, pooling: str, num_classes: int = 5, **options: Any
) -> tuple[Classifier, dict[str, Tensor]]:
    """A classifier and its weights under published names."""
    config = tiny(lineage, **options)
    drops = lineage == "mae_st" and not config.class_token
    model = shaken(Classifier(config, num_classes, pooling=pooling, drops_first_token=drops))
    return model, upstream_state(model, config)


def clips_for(config: ModelConfig, *, count: int = 2) -> Tensor:
    """Random normalised pixels."""
    size = (count, 3, config.clip_frames, config.crop_px, config.crop_px)
    return torch.randn(size, generator=torch.Generator().manual_seed(3))
