"""Targets that come from outside the clip: a basis of principal components, and the words of a discrete tokenizer.

Neither is part of the model: their weights are in no checkpoint, a run names their file and its sha256.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from stmae_train.errors import ModelError
from stmae_train.tokens import Grid

__all__ = ["PcaTarget", "Teacher", "TokenTarget", "Tokenizer", "fit_pca", "read_teacher"]

# Published: pixels are squeezed away from 0 and 1 before the tokenizer sees them (Ramesh et al. 2021).
PIXEL_MARGIN = 0.1
PX_PER_WORD = 8  # the tokenizer halves a picture three times


class PcaTarget:
    """Coefficients of pixel vectors in a fixed basis (image MAE, Table 1d: the largest 96).

    Args:
        mean: of the vectors, [U].
        components: orthonormal rows [K, U], largest first.
    """

    def __init__(self, mean: Tensor, components: Tensor) -> None:
        self.mean, self.components = mean, components

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        self.mean, self.components = self.mean.to(device), self.components.to(device)
        return self

    def coefficients(self, vectors: Tensor) -> Tensor:
        """Pixel vectors [..., U] -> coefficients [..., K]."""
        return (vectors - self.mean) @ self.components.T


def fit_pca(vectors: Tensor, *, count: int) -> PcaTarget:
    """The basis of the `count` directions in which vectors [N, U] vary most; signs are fixed, so equal vectors give one basis.

    Raises:
        ModelError: fewer vectors or values than directions.
    """
    if min(vectors.shape) < count:
        raise ModelError(
            f"{len(vectors)} vectors of {vectors.shape[1]} values have no {count} principal components; lower model.target_values or give more clips."
        )
    exact = vectors.double()
    mean = exact.mean(dim=0)
    _, directions = torch.linalg.eigh((exact - mean).T @ (exact - mean))
    rows = directions.flip(1)[:, :count].T  # the largest first
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return PcaTarget(mean.float(), (rows * largest.sign()).float())


class _TokenizerBlock(nn.Module):
    """Three 3x3 and one 1x1 convolution, each after a ReLU, added with a small gain to a path straight through."""

    def __init__(self, inward: int, outward: int, *, gain: float) -> None:
        super().__init__()
        inner = outward // 4
        widths = (inward, inner, inner, inner, outward)
        self.gain = gain
        self.convolutions = nn.ModuleList(
            nn.Conv2d(first, second, size, padding=size // 2)
            for first, second, size in zip(widths, widths[1:], (3, 3, 3, 1), strict=False)
        )
        self.straight = nn.Conv2d(inward, outward, 1) if inward != outward else nn.Identity()

    def forward(self, planes: Tensor) -> Tensor:
        out = planes
        for convolution in self.convolutions:
            out = convolution(F.relu(out))
        summed: Tensor = self.straight(planes) + self.gain * out
        return summed


class Tokenizer(nn.Module):
    """The encoder of DALL-E's discrete VAE: a 7x7 convolution, four groups of blocks with halving between, words by a 1x1 convolution.

    Args:
        width: channels after the first convolution; groups have 1, 2, 4 and 8 times as many.
        blocks: per group.
        words: size of the vocabulary.
    """

    def __init__(self, width: int = 256, *, blocks: int = 2, words: int = 8192) -> None:
        super().__init__()
        self.words = words
        self.first = nn.Conv2d(3, width, 7, padding=3)
        gain = 1 / (4 * blocks) ** 2
        self.groups = nn.ModuleList()
        inward = width
        for group in range(4):
            outward = width * 2**group
            made = [_TokenizerBlock(inward if number == 0 else outward, outward, gain=gain) for number in range(blocks)]
            self.groups.append(nn.Sequential(*made))
            inward = outward
        self.last = nn.Conv2d(inward, words, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] -> logits over words [N, words, H / 8, W / 8]."""
        planes: Tensor = self.first((1 - 2 * PIXEL_MARGIN) * images + PIXEL_MARGIN)
        for number, group in enumerate(self.groups):
            planes = group(planes)
            if number < 3:
                planes = F.max_pool2d(planes, 2)
        logits: Tensor = self.last(F.relu(planes))
        return logits

    @classmethod
    def of(cls, weights: Mapping[str, Tensor], *, where: str) -> Tokenizer:
        """The tokenizer of published weights: `blocks.group_1.block_1.res_path.conv_1.w`, `.b` and so on.

        Raises:
            ModelError: other names or shapes.
        """
        first, last = weights.get("blocks.input.w"), weights.get("blocks.output.conv.w")
        if first is None or last is None:
            raise ModelError(
                f"{where} is no tokenizer: it has no blocks.input.w and blocks.output.conv.w; give the encoder of the published discrete VAE as "
                f"safetensors."
            )
        count = len({name.split(".")[2] for name in weights if name.startswith("blocks.group_1.block_")})
        made = cls(len(first), blocks=max(count, 1), words=len(last))
        named = {_ours(name): each.float() for name, each in weights.items()}
        state = made.state_dict()
        wrong = sorted(set(state) ^ set(named)) or [n for n in state if state[n].shape != named[n].shape]
        if wrong:
            raise ModelError(
                f"{where} is no tokenizer of the published architecture: {wrong[0]} is missing, unknown or of another shape; give the encoder of "
                f"the published discrete VAE as safetensors."
            )
        made.load_state_dict(named)
        return made.eval().requires_grad_(False)


def _ours(name: str) -> str:
    """A published tokenizer name as ours."""
    name = re.sub(r"\.w$", ".weight", re.sub(r"\.b$", ".bias", name.removeprefix("blocks.")))
    name = re.sub(r"^input\.", "first.", re.sub(r"^output\.conv\.", "last.", name))

    def numbered(match: re.Match[str]) -> str:
        return f"groups.{int(match[1]) - 1}.{int(match[2]) - 1}."

    name = re.sub(r"^group_(\d+)\.block_(\d+)\.", numbered, name).replace(".id_path.", ".straight.")
    return re.sub(r"res_path\.conv_(\d+)", lambda match: f"convolutions.{int(match[1]) - 1}", name)


class TokenTarget:
    """Words of every token's frame patch (as in BEiT): the frame is resized so that a patch becomes one word."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        self.tokenizer.to(device)
        return self

    @torch.no_grad()
    def words(self, images: Tensor, grid: Grid) -> Tensor:
        """Frames [B, 3, t, H, W] in [0, 1], one per time slice -> words int64 [B, L]."""
        batch, _, times = images.shape[:3]
        flat = images.transpose(1, 2).flatten(0, 1)  # [B * t, 3, H, W]
        size = (grid.h * PX_PER_WORD, grid.w * PX_PER_WORD)
        if flat.shape[2:] != size:
            flat = F.interpolate(flat, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        with torch.autocast(images.device.type, enabled=False):  # words must not depend on the precision of training
            words: Tensor = self.tokenizer(flat.float()).argmax(dim=1)  # [B * t, h, w]
        return words.reshape(batch, times * grid.places)


Teacher = PcaTarget | TokenTarget


def read_teacher(path: Path, *, target: str, values: int) -> Teacher:
    """Read the basis (`mean`, `components`) or the tokenizer of a target.

    Args:
        path: a safetensors file.
        target: "pca" or "tokens".
        values: components or words that the model predicts.

    Raises:
        ModelError: the file is missing, something else, or of another size.
    """
    try:
        weights = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read as safetensors ({error}); set model.target_file to a file of the {target} target."
        ) from error
    if target == "tokens":
        tokenizer = Tokenizer.of(weights, where=str(path))
        found: Teacher = TokenTarget(tokenizer)
        size = tokenizer.words
    else:
        if set(weights) != {"mean", "components"}:
            raise ModelError(
                f"{path} holds {', '.join(sorted(weights)[:3])}, wanted mean and components of a basis; give such a file."
            )
        found, size = PcaTarget(weights["mean"], weights["components"]), len(weights["components"])
    if size != values:
        raise ModelError(
            f"{path} has {size} {'words' if target == 'tokens' else 'components'}, the recipe says {values}; set model.target_values={size}."
        )
    return found
