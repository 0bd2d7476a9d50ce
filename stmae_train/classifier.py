"""Classifiers over an encoder: the fine-tuned one, and the probes that read frozen features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stmae_train.config import ModelConfig
from stmae_train.errors import ModelError
from stmae_train.model import Block, Encoder, initialise
from stmae_train.tokens import Grid, interpolate_positions

__all__ = ["AttentiveProbe", "Classifier", "LinearProbe", "start_encoder"]

POOLINGS = ("mean-norm", "mean-fresh-norm", "norm-mean", "norm-first")


class Classifier(nn.Module):
    """An encoder without masking, pooled, and a linear head.

    Args:
        config: the model the encoder was pre-trained as.
        num_classes: size of the head.
        pooling: how tokens become one vector (SPEC-models A1.13, A2, A3.6):
            "mean-norm": mean of the patch tokens, then the pre-trained final norm (MAE-ST);
            "mean-fresh-norm": the same with a new norm (image MAE, VideoMAE);
            "norm-mean": final norm, then the mean; "norm-first": final norm, then the first token of the sequence,
            which is the class token where there is one.
        drop_path: rate of the last block, growing from 0.
        dropout: before the head.
        head_init_std: of the head's weights (truncated normal); its bias starts at 0.
        drops_first_token: leave the first token out of the mean even without a class token. mae_st does so, which
            loses one real patch; only reading such a published model needs it.
        seed: of the initial weights; None draws none, for a model that is only counted or named.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        *,
        pooling: str = "mean-norm",
        drop_path: float = 0.0,
        dropout: float = 0.0,
        head_init_std: float = 2e-5,
        drops_first_token: bool = False,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ModelError(f"There is no pooling '{pooling}'; choose one of {', '.join(POOLINGS)}.")
        self.config, self.pooling = config, pooling
        self.skipped = int(config.class_token or drops_first_token)
        is_fresh = pooling == "mean-fresh-norm"
        # Image MAE's fixed table is an ordinary parameter while fine-tuning (SPEC-models A2).
        self.encoder = Encoder(
            config, drop_path=drop_path, final_norm=not is_fresh, trains_positions=config.positions == "sincos-2d"
        )
        self.fresh_norm = nn.LayerNorm(config.width, eps=config.end_eps) if is_fresh else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(config.width, num_classes)
        if seed is None:
            return
        generator = torch.Generator().manual_seed(seed)
        initialise(self, lineage=config.lineage, generator=generator)
        nn.init.trunc_normal_(self.head.weight, std=head_init_std, generator=generator)
        nn.init.zeros_(self.head.bias)

    def features(self, clips: Tensor) -> Tensor:
        """Normalised clips [B, C, T, H, W] -> the vectors [B, D] that enter the head."""
        pools_first = self.pooling.startswith("mean")
        tokens: Tensor = self.encoder(clips, skips_norm=pools_first)  # [B, (1 +) L, D]
        if self.pooling == "norm-first":
            return tokens[:, 0]
        pooled = tokens[:, self.skipped :].mean(dim=1)  # [B, D]
        if pools_first:
            pooled = self.fresh_norm(pooled) if self.pooling == "mean-fresh-norm" else self.encoder.norm(pooled)
        return pooled

    def forward(self, clips: Tensor) -> Tensor:
        """Normalised clips [B, C, T, H, W] -> logits [B, num_classes]."""
        logits: Tensor = self.head(self.dropout(self.features(clips)))
        return logits

    def start_from(self, weights: Mapping[str, Tensor], *, grid: tuple[int, int, int] | None = None) -> None:
        """Take the encoder of a masked autoencoder or classifier (`start_encoder`); the head stays as it is."""
        start_encoder(self.encoder, weights, grid=grid)


def start_encoder(encoder: Encoder, weights: Mapping[str, Tensor], *, grid: tuple[int, int, int] | None = None) -> None:
    """Load pre-trained weights into an encoder.

    Args:
        encoder: without a final norm (a fresh one replaces it) the pre-trained norm is left out.
        weights: by our names; entries outside `encoder.` are not used. Positions of another grid are interpolated.
        grid: token counts (t, h, w) the weights were trained on, `ModelConfig.grid_shape`. A joint table of another
            size needs it, for its rows split into times and places in many ways.

    Raises:
        ModelError: an encoder weight is missing, unknown or has another shape, or a joint table's grid is not given.
    """
    state = encoder.state_dict()
    given = {name.removeprefix("encoder."): each for name, each in weights.items() if name.startswith("encoder.")}
    if isinstance(encoder.norm, nn.Identity):
        given = {name: each for name, each in given.items() if not name.startswith("norm.")}
    missing, unused = sorted(set(state) - set(given)), sorted(set(given) - set(state))
    if missing or unused:
        raise ModelError(
            f"The encoder weights do not fit: missing {', '.join(missing) or 'none'}; unused "
            f"{', '.join(unused) or 'none'}. Build the model from the config saved with the weights."
        )
    for name, wanted in state.items():
        found = given[name]
        if name.startswith("positions.") and not name.endswith("class_row"):
            found = _resized(encoder, name, found, grid=grid)
        if found.shape != wanted.shape:
            raise ModelError(
                f"Weight 'encoder.{name}' has shape {list(found.shape)}, the model wants {list(wanted.shape)}; "
                f"build it from the config saved with the weights."
            )
        state[name] = found
    encoder.load_state_dict(state)


def _resized(encoder: Encoder, name: str, rows: Tensor, *, grid: tuple[int, int, int] | None) -> Tensor:
    """Position rows [1, (1 +) L, D] of the grid (t, h, w) brought to the encoder's."""
    here, kind = encoder.positions.grid, name.rpartition(".")[2]
    first = int(encoder.class_token is not None and kind == "joint")
    length = rows.shape[1] - first
    if grid is None:
        if kind == "joint" and length != here.length:
            raise ModelError(
                f"Weight 'encoder.{name}' has rows for {length} tokens, the model for {here.t} x {here.h} x {here.w}, and rows do not tell how "
                f"they split into times and places; give the grid the weights were trained on."
            )
        side = round(length**0.5)  # separable rows tell their grid, where places fill a square
        grid = (here.t, here.h, here.w) if kind == "joint" else (length, side, side)
    t, h, w = grid
    source, target = {
        "temporal": (Grid(t, 1, 1), Grid(here.t, 1, 1)),
        "spatial": (Grid(1, h, w), Grid(1, here.h, here.w)),
        "joint": (Grid(t, h, w), Grid(here.t, here.h, here.w)),
    }[kind]
    if source == target or length != source.length:  # other lengths are no tables of that grid; their shape is refused
        return rows
    return torch.cat([rows[:, :first], interpolate_positions(rows[:, first:], source=source, target=target)], dim=1)


class LinearProbe(nn.Module):
    """Batch norm without affine, then a linear layer, on pooled features (image MAE main_linprobe.py).

    Args:
        width: D of the features.
        num_classes: size of the head.
        seed: of the initial weights, truncated normal 0.01.
    """

    def __init__(self, width: int, num_classes: int, *, seed: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, D] -> logits [B, num_classes]."""
        logits: Tensor = self.linear(self.norm(features))
        return logits


class AttentiveProbe(nn.Module):
    """A learned query that attends to all tokens of a frozen encoder, then a linear layer (after V-JEPA's probe).

    Args:
        width: D of the tokens.
        num_classes: size of the head.
        heads: attention heads, a divisor of width.
        blocks: the last is the cross-attention block; each one before it is a self-attention block over the tokens.
        seed: of the initial weights, truncated normal 0.02.
    """

    def __init__(self, width: int, num_classes: int, *, heads: int = 12, blocks: int = 1, seed: int = 0) -> None:
        super().__init__()
        if width % heads:
            raise ModelError(f"An attentive probe of width {width} cannot have {heads} heads; choose a divisor.")
        self.heads = heads
        self.self_blocks = nn.ModuleList(Block(width, heads, layout="fused") for _ in range(blocks - 1))
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1 = nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.linear = nn.Linear(width, num_classes)
        generator = torch.Generator().manual_seed(seed)
        for parameter in (self.query, *(each.weight for each in self.modules() if isinstance(each, nn.Linear))):
            nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L, D] -> logits [B, num_classes]."""
        for block in self.self_blocks:
            tokens = block(tokens)
        query = self.query.expand(len(tokens), -1, -1)  # [B, 1, D]
        key, value = self.kv(self.norm1(tokens)).chunk(2, dim=-1)
        split = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (self.q(query), key, value))
        mixed = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)  # [B, 1, D]
        query = query + mixed
        query = query + self.mlp(self.norm2(query))
        logits: Tensor = self.linear(query[:, 0])
        return logits
