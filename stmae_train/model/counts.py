"""What a config comes to, without drawing a weight: the names and shapes of its model, and its parameters."""

from __future__ import annotations

import torch

from stmae_train.config import ModelConfig
from stmae_train.model.autoencoder import MaskedAutoencoder

__all__ = ["outline", "parameter_counts"]


def outline(config: ModelConfig) -> MaskedAutoencoder:
    """The masked autoencoder of a config on the meta device: every name and shape, no memory, no weights."""
    with torch.device("meta"):
        return MaskedAutoencoder(config, seed=None)


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Learned parameters of `encoder`, `decoder` (its projection, mask token and head included) and `total`."""
    model = outline(config)
    encoder = sum(each.numel() for each in model.encoder.parameters())
    total = sum(each.numel() for each in model.parameters())
    return {"encoder": encoder, "decoder": total - encoder, "total": total}
