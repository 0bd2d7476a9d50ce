"""Pre-norm ViT blocks: x += attention(norm1(x)); x += mlp(norm2(x))."""

from __future__ import annotations

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Attention", "Block", "CrossBlock", "attend"]

# Plain products win in bf16 only where the CPU multiplies bf16 itself; elsewhere they are up to four times slower.
_CPU = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {"amx_bf16": True}
_CPU_MULTIPLIES_BF16 = bool(_CPU.get("amx_bf16") or _CPU.get("avx512_bf16"))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over [B, heads, N, head width]; scale is head width ** -0.5.

    The way is chosen by device and dtype: on a CPU with bf16 products the fused kernel loses to plain ones in bf16 and
    wins in fp32 (by 1.4-1.5 at 224 px).
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and _CPU_MULTIPLIES_BF16:
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        mixed: Tensor = scores.softmax(dim=-1) @ value
        return mixed
    return F.scaled_dot_product_attention(query, key, value)


class Attention(nn.Module):
    """Multi-head self-attention whose weights lie as a codebase stores them.

    Args:
        width: D.
        heads: number of heads, a divisor of width.
        layout: "separate" has three linear layers q, k, v; "fused" has one, qkv.
        bias: "all", "qv" (keys have none) or "none".
    """

    def __init__(self, width: int, heads: int, *, layout: str = "separate", bias: str = "all") -> None:
        super().__init__()
        self.heads, self.layout = heads, layout
        if layout == "separate":
            self.q = nn.Linear(width, width, bias=bias != "none")
            self.k = nn.Linear(width, width, bias=bias == "all")
            self.v = nn.Linear(width, width, bias=bias != "none")
        else:
            self.qkv = nn.Linear(width, 3 * width, bias=bias == "all")
        self.q_bias: nn.Parameter | None = None
        self.v_bias: nn.Parameter | None = None
        if layout == "fused" and bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, D] -> [B, N, D]."""
        if self.layout == "separate":
            query, key, value = self.q(tokens), self.k(tokens), self.v(tokens)
        else:
            bias: Tensor | None = self.qkv.bias
            if self.q_bias is not None and self.v_bias is not None:
                bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
            query, key, value = F.linear(tokens, self.qkv.weight, bias).chunk(3, dim=-1)
        query, key, value = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in (query, key, value))
        mixed = attend(query, key, value)  # [B, heads, N, D / heads]
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """One pre-norm block with exact GELU and optional drop path."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        layout: str = "separate",
        bias: str = "all",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads, layout=layout, bias=bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, D] -> [B, N, D]."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        out: Tensor = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return out


class CrossBlock(nn.Module):
    """A pre-norm block whose tokens look at a memory and not at each other (CrossMAE, Fu et al. 2024)."""

    def __init__(self, width: int, heads: int, *, mlp_ratio: float = 4.0, eps: float = 1e-6, bias: str = "all") -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.norm_memory = nn.LayerNorm(width, eps=eps)
        self.q = nn.Linear(width, width, bias=bias != "none")
        self.k = nn.Linear(width, width, bias=bias == "all")
        self.v = nn.Linear(width, width, bias=bias != "none")
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Tokens [B, N, D] and memory [B, V, D] -> tokens [B, N, D]."""
        seen = self.norm_memory(memory)
        split = (self.q(self.norm1(tokens)), self.k(seen), self.v(seen))
        query, key, value = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in split)
        tokens = tokens + self.proj(attend(query, key, value).transpose(1, 2).flatten(2))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out
