"""The masked autoencoder: clips and a mask in, a loss and a prediction out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stmae_train.config import ModelConfig
from stmae_train.errors import ModelError
from stmae_train.masks import keep_count, split_noise
from stmae_train.model.encoder import Decoder, Encoder
from stmae_train.model.initial import initialise
from stmae_train.targets import Teacher, reconstruction_loss, target_size, target_vectors
from stmae_train.tokens import split_tokens

__all__ = ["MaskedAutoencoder", "Reconstruction"]


# A named tuple, not a dataclass: wrappers such as FSDP2 look for tensors in the outputs they know as trees.
class Reconstruction(NamedTuple):
    """One forward pass. V visible and M hidden tokens, U values per target."""

    loss: Tensor  # scalar, float32
    prediction: Tensor  # [B, M, U] of the hidden tokens, in the order of `hidden`
    target: Tensor  # [B, M, U], or words int64 [B, M]
    mask: Tensor  # bool [B, L], True means hidden
    visible: Tensor  # int64 [B, V] token numbers
    hidden: Tensor  # int64 [B, M] token numbers; with a decoded share below 1 those that were decoded
    latent: Tensor  # [B, (1 +) V, D]; [B, (1 +) L, D] in token order with a dense encoder
    every_prediction: Tensor | None = None  # [B, L, U] in token order, when asked for


class MaskedAutoencoder(nn.Module):
    """Encode visible tokens, decode all, compare the hidden ones with their target.

    Args:
        config: shape, mask, target and the habits of a codebase.
        seed: of the initial weights (rules per lineage, SPEC-models A1.8, A2, A3.5); None draws none, for a model that is only counted
            or named (`model.outline`).
    """

    def __init__(self, config: ModelConfig, *, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        # The basis or tokenizer behind a "pca" or "tokens" target; no part of the model, so it is in no checkpoint.
        self.teacher: Teacher | None = None
        # A plain decoder goes on from the last block: MaskFeat's pre-training model has no encoder norm.
        self.encoder = Encoder(config, final_norm=config.encoder_norm and config.decoder_input == "projected")
        self.mask_token = nn.Parameter(
            torch.zeros(1, 1, config.width if config.dense_encoder else config.decoder_width)
        )
        self.decoder = Decoder(config, target_size=target_size(config))
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            initialise(self, lineage=config.lineage, generator=generator, kind=config.init)

    def forward(
        self,
        clips: Tensor,
        *,
        mask: Tensor | None = None,
        noise: Tensor | None = None,
        decode_noise: Tensor | None = None,
        predicts_all: bool = False,
    ) -> Reconstruction:
        """Reconstruct hidden tokens.

        Args:
            clips: normalised pixels [B, C, T, H, W], float, with `config.clip_frames` frames.
            mask: bool [B, L], True means hidden, equally many per row (`masks.draw_masks`). A mask on the CPU is
                best: a mask on the device costs a wait for its count.
            noise: [B, L] in place of a mask: the floor(L * (1 - mask_ratio)) smallest are visible.
            decode_noise: [B, L] where only a share of the hidden tokens is decoded: those with the smallest values are.
            predicts_all: also predict visible tokens; costs time, changes no loss.

        Raises:
            ModelError: neither or both of mask and noise, or shapes that do not fit the clips.
        """
        inputs = clips[:, :, :: self.config.input_stride]  # [B, C, T, H, W]
        grid = self.encoder.grid(inputs)
        given = mask if mask is not None else noise
        if given is None or (mask is not None and noise is not None):
            raise ModelError("Reconstruction needs either a mask or noise; draw one with masks.draw_masks.")
        if given.shape != (len(clips), grid.length):
            raise ModelError(
                f"The mask or noise has shape {list(given.shape)}, the clips have {len(clips)} x {grid.length} tokens; "
                f"draw it for this batch and grid."
            )
        if mask is not None:
            visible, hidden = split_tokens(mask)
        else:
            visible, hidden = split_noise(given, keep=keep_count(grid.length, self.config.mask_ratio))
        visible = visible.to(clips.device, non_blocking=True)
        hidden = hidden.to(clips.device, non_blocking=True)
        is_hidden = torch.zeros(given.shape, dtype=torch.bool, device=clips.device).scatter_(1, hidden, True)
        if self.config.decoded_share < 1 and not predicts_all:
            hidden = self._decoded(hidden, decode_noise)

        if self.config.dense_encoder:
            ids = torch.arange(grid.length, device=clips.device).expand(len(clips), -1)
            latent = self.encoder(inputs, mask=is_hidden, mask_token=self.mask_token)  # [B, (1 +) L, D]
            decoded = self.decoder(latent, ids=ids, grid=grid, mask_token=None)  # [B, L, d]
            wanted = decoded.gather(1, hidden[..., None].expand(-1, -1, decoded.shape[-1]))  # [B, M, d]
        else:
            ids = torch.cat([visible, hidden], dim=1)
            latent = self.encoder(inputs, ids=visible)  # [B, (1 +) V, D]
            decoded = self.decoder(
                latent, ids=ids, grid=grid, mask_token=self.mask_token, skips_visible=not predicts_all
            )  # [B, N, d], hidden tokens last
            wanted = decoded[:, decoded.shape[1] - hidden.shape[1] :]  # [B, M, d]

        target = target_vectors(clips, self.config, ids=hidden, teacher=self.teacher)  # [B, M, U]
        every = None
        if predicts_all:
            everything = self.decoder.predict(decoded)
            every = torch.empty_like(everything).scatter_(1, ids[..., None].expand_as(everything), everything)
            prediction = everything.gather(1, _places(ids, hidden)[..., None].expand(-1, -1, everything.shape[-1]))
        else:
            prediction = self.decoder.predict(wanted)  # [B, M, U]
        loss = reconstruction_loss(prediction, target, kind=self.config.loss)
        return Reconstruction(loss, prediction, target, is_hidden, visible, hidden, latent, every)

    def _decoded(self, hidden: Tensor, noise: Tensor | None) -> Tensor:
        """The share of hidden token numbers [B, M] that is decoded, drawn by noise."""
        if noise is None:
            raise ModelError(
                f"A decoder of {self.config.decoded_share:.0%} of the hidden tokens needs noise to draw them; give decode_noise [B, L]."
            )
        drawn = noise.to(hidden.device, non_blocking=True).gather(1, hidden)
        count = max(1, round(hidden.shape[1] * self.config.decoded_share))
        return hidden.gather(1, torch.argsort(drawn, dim=1, stable=True)[:, :count])

    def encode(self, clips: Tensor, *, with_class: bool = False) -> Tensor:
        """Features of unmasked clips [B, C, T, H, W] after the final norm.

        Args:
            clips: normalised pixels; another grid than the trained one gets interpolated positions.
            with_class: keep the class token, first, where the model has one.

        Returns:
            Tokens [B, L, D], or [B, 1 + L, D].
        """
        tokens: Tensor = self.encoder(clips)
        return tokens if with_class or not self.config.class_token else tokens[:, 1:]


def _places(ids: Tensor, wanted: Tensor) -> Tensor:
    """Where each wanted token number stands in `ids` [B, L]."""
    return torch.argsort(ids, dim=1).gather(1, wanted)
