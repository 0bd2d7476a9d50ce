"""The encoder, which sees visible tokens, and the light decoder, which predicts hidden ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stmae_train.config import ModelConfig
from stmae_train.model.blocks import Block, CrossBlock
from stmae_train.tokens import Grid, Positions, TubeletEmbedding

__all__ = ["Decoder", "Encoder", "grid_of"]


def grid_of(config: ModelConfig) -> Grid:
    """The grid a config is trained on."""
    return Grid(*config.grid_shape, config.tubelet_frames, config.patch_px)


class Encoder(nn.Module):
    """Tubelet embedding, positions, class token, blocks, final norm.

    Args:
        config: the model.
        drop_path: rate of the last block; it grows linearly from 0 at the first.
        final_norm: without it the tokens of the last block come out as they are.
        trains_positions: fixed positions become ordinary parameters (image MAE fine-tuning).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        drop_path: float = 0.0,
        final_norm: bool = True,
        trains_positions: bool = False,
    ) -> None:
        super().__init__()
        self.tubelet_frames, self.patch_px = config.tubelet_frames, config.patch_px
        self.embed = TubeletEmbedding(config.width, tubelet_frames=config.tubelet_frames, patch_px=config.patch_px)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width)) if config.class_token else None
        self.positions = Positions(
            config.positions,
            width=config.width,
            grid=grid_of(config),
            class_token=config.class_token,
            is_trained=trains_positions,
        )
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.heads,
                mlp_ratio=config.mlp_ratio,
                eps=config.layer_norm_eps,
                layout=config.qkv,
                bias=config.qkv_bias,
                drop_path=drop_path * number / max(config.depth - 1, 1),
            )
            for number in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps) if final_norm else nn.Identity()

    def grid(self, clips: Tensor) -> Grid:
        """The token grid of clips [B, C, T, H, W]."""
        return Grid.of(clips, tubelet_frames=self.tubelet_frames, patch_px=self.patch_px)

    def forward(
        self,
        clips: Tensor,
        *,
        ids: Tensor | None = None,
        mask: Tensor | None = None,
        mask_token: Tensor | None = None,
        skips_norm: bool = False,
    ) -> Tensor:
        """Encode all tokens, or only some.

        Args:
            clips: normalised pixels [B, C, T, H, W].
            ids: token numbers [B, V]: only these are embedded and encoded, in this order.
            mask: bool [B, L]: with `mask_token` [1, 1, D], hidden tokens are replaced by it before positions are
                added (the encoder "with mask tokens", MAE-ST Table 1).
            skips_norm: give the tokens of the last block as they are, for a head that pools before the norm.

        Returns:
            Tokens [B, (1 +) V or L, D], the class token first where there is one.
        """
        grid = self.grid(clips)
        tokens = self.embed(clips, grid, ids=ids)  # [B, V, D]
        if mask is not None and mask_token is not None:
            tokens = torch.where(mask[..., None], mask_token.to(tokens.dtype), tokens)
        tokens = tokens + (self.positions.table(grid) if ids is None else self.positions.take(ids, grid))
        if self.class_token is not None:
            first = self.class_token + self.positions.of_class()
            tokens = torch.cat([first.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)  # [B, 1 + V, D]
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = tokens if skips_norm else self.norm(tokens)
        return out


class Decoder(nn.Module):
    """Brings encoded tokens to its width, adds mask tokens and positions, runs its blocks, predicts target vectors.

    The order of its sequence is free (positions are added by token number), so visible tokens come first and hidden
    ones last: nothing is unshuffled, and the head runs on the last M tokens alone.
    """

    def __init__(self, config: ModelConfig, *, target_size: int) -> None:
        super().__init__()
        width = config.decoder_width
        self.has_class = config.class_token
        self.class_token: nn.Parameter | None = None
        self.positions: Positions | None = None
        self.embed: nn.Module = nn.Identity()
        if config.decoder_input == "projected":
            self.embed = nn.Linear(config.width, width, bias=config.decoder_embed_bias)
            if config.class_token and config.decoder_class == "own":
                self.class_token = nn.Parameter(torch.zeros(1, 1, width))
            self.positions = Positions(
                config.decoder_positions, width=width, grid=grid_of(config), class_token=config.class_token
            )
        self.is_cross = config.decoder_attention == "cross"
        self.blocks = nn.ModuleList(_decoder_block(config) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=config.end_eps)
        self.head = nn.Linear(width, target_size)

    def forward(
        self, latent: Tensor, *, ids: Tensor, grid: Grid, mask_token: Tensor | None, skips_visible: bool = False
    ) -> Tensor:
        """Decode.

        Args:
            latent: encoded tokens [B, (1 +) V, D], the class token first where the model has one.
            ids: token numbers [B, N]; the first V are those of the latent, the others get the mask token.
            grid: the grid of the clips.
            mask_token: [1, 1, d], or None where the latent already holds all tokens.
            skips_visible: only hidden tokens are wanted; a cross-attention decoder then makes no others.

        Returns:
            Tokens [B, N, d] in the order of `ids`, before the final norm; the class token is dropped.
        """
        if self.is_cross:
            assert mask_token is not None
            return self._look(latent, ids=ids, grid=grid, mask_token=mask_token, skips_visible=skips_visible)
        tokens: Tensor = self.embed(latent)  # [B, (1 +) V, d]
        first = tokens[:, : int(self.has_class)]
        tokens = tokens[:, int(self.has_class) :]
        if mask_token is not None:
            hidden = mask_token.to(tokens.dtype).expand(len(tokens), ids.shape[1] - tokens.shape[1], -1)
            tokens = torch.cat([tokens, hidden], dim=1)  # [B, L, d]
        if self.positions is not None:
            tokens = tokens + self.positions.take(ids, grid)
            if self.has_class:
                # mae_st throws the encoder's class output away and starts from a token of its own.
                first = first if self.class_token is None else self.class_token.expand(len(tokens), -1, -1)
                first = first + self.positions.of_class()
        tokens = torch.cat([first.to(tokens.dtype), tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens[:, int(self.has_class) :]

    def _look(self, latent: Tensor, *, ids: Tensor, grid: Grid, mask_token: Tensor, skips_visible: bool) -> Tensor:
        """Mask tokens look at the latent, each on its own; what stands at visible places changes nothing."""
        assert self.positions is not None
        memory: Tensor = self.embed(latent)  # [B, (1 +) V, d]
        first, seen = memory[:, : int(self.has_class)], memory[:, int(self.has_class) :]
        seen = seen + self.positions.take(ids[:, : seen.shape[1]], grid)
        if self.has_class:
            first = first if self.class_token is None else self.class_token.expand(len(memory), -1, -1)
            first = first + self.positions.of_class()
        memory = torch.cat([first.to(seen.dtype), seen], dim=1)
        wanted = ids[:, seen.shape[1] :] if skips_visible else ids
        tokens = mask_token + self.positions.take(wanted, grid)  # [B, N or M, d]
        for block in self.blocks:
            tokens = block(tokens, memory)
        return tokens

    def predict(self, tokens: Tensor) -> Tensor:
        """Decoded tokens [B, N, d] -> target vectors [B, N, U]."""
        out: Tensor = self.head(self.norm(tokens))
        return out


def _decoder_block(config: ModelConfig) -> nn.Module:
    width, heads, eps = config.decoder_width, config.decoder_heads, config.layer_norm_eps
    if config.decoder_attention == "cross":
        return CrossBlock(width, heads, mlp_ratio=config.mlp_ratio, eps=eps, bias=config.qkv_bias)
    layout, bias = config.decoder_qkv, config.qkv_bias
    return Block(width, heads, mlp_ratio=config.mlp_ratio, eps=eps, layout=layout, bias=bias)
