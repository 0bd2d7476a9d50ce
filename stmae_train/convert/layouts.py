"""Which codebase wrote a file, told by its keys, and transformers' names brought to those of the codebases it ported."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from stmae_train.errors import ModelError

__all__ = ["LINEAGES", "plain_names", "recognise", "to_upstream"]

LINEAGES = {
    "mae_st": "mae_st",
    "pyslowfast": "pyslowfast",
    "videomae": "videomae",
    "mae": "mae",
    "timm": "mae",
    "transformers-videomae": "videomae",
    "transformers-vitmae": "mae",
}
"""Layout to the lineage whose names and habits it shares."""

WRAPPERS = ("module.", "_orig_mod.", "backbone.")
# Constants that PySlowFast's HOG model keeps in its state dict.
CONSTANTS = re.compile(r"hogs\.\d+\.(weight_[xy]|gaussian_kernel)")

# Inside a block: names of transformers 4 and 5, and the codebases' own.
_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "attention.attention.query": "attn.query",
    "attention.attention.key": "attn.key",
    "attention.attention.value": "attn.value",
    "attention.q_proj": "attn.query",
    "attention.k_proj": "attn.key",
    "attention.v_proj": "attn.value",
    "attention.attention.q_bias": "attn.q_bias",
    "attention.attention.v_bias": "attn.v_bias",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_OUTSIDE = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "layernorm": "norm",
    "classifier": "head",
    "decoder.decoder_embed": "decoder_embed",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_norm": "decoder_norm",
    "decoder.decoder_pred": "decoder_pred",
}
# transformers 5.23 saves ViTMAE's decoder as `decoder_encoder.layer`, every other version as `decoder_layers`.
_LAYER = re.compile(r"(?:encoder\.layer|layers|(decoder)\.decoder_(?:layers|encoder\.layer))\.(\d+)\.(.+)")


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what wrappers (DDP, compile, a detector's backbone) put before every name."""
    named = dict(tensors)
    for wrapper in WRAPPERS * 2:
        if named and all(name.startswith(wrapper) for name in named):
            named = {name.removeprefix(wrapper): each for name, each in named.items()}
    # VideoMAE's own fine-tuned files may carry `backbone.` on the encoder alone.
    return {name.removeprefix("backbone."): each for name, each in named.items() if not CONSTANTS.fullmatch(name)}


def recognise(tensors: Mapping[str, Tensor], *, where: str) -> str:
    """The layout of `plain_names`: a key of `LINEAGES`.

    Raises:
        ModelError: no layout that is known here.
    """
    names = set(tensors)
    kernels = [
        name for name in names if name.endswith(("patch_embed.proj.weight", "patch_embeddings.projection.weight"))
    ]
    if len(kernels) != 1 or tensors[kernels[0]].ndim not in (4, 5):
        shown = ", ".join(sorted(names)[:3]) or "none"
        raise ModelError(
            f"{where} holds no model that is known here (its names: {shown} …); wanted mae_st, PySlowFast, VideoMAE, image MAE, "
            f"timm ViT, or transformers' VideoMAE or ViTMAE."
        )
    is_video = tensors[kernels[0]].ndim == 5
    if kernels[0].endswith("patch_embeddings.projection.weight"):
        return "transformers-videomae" if is_video else "transformers-vitmae"
    if any(name.startswith("pred_head.") for name in names) or "head.projection.weight" in names:
        return "pyslowfast"
    if kernels[0].startswith("encoder.") or any(name.endswith("attn.q_bias") for name in names):
        return "videomae"
    if is_video:  # VideoMAE alone keeps its positions outside the file
        return "mae_st" if any(name.startswith("pos_embed") for name in names) else "videomae"
    return "mae" if "decoder_pred.weight" in names or "mask_token" in names else "timm"


def to_upstream(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Names and tensors as the lineage's own codebase stores them; layouts of the codebases themselves come back as they are."""
    if layout == "videomae":
        has_decoder = any(name.startswith("decoder.") for name in tensors)
        return {name if has_decoder else name.removeprefix("encoder."): each for name, each in tensors.items()}
    if not layout.startswith("transformers-"):
        return dict(tensors)
    is_video = layout == "transformers-videomae"
    renamed = {_renamed(name, is_video=is_video): each for name, each in tensors.items()}
    fused = _fuse(renamed)
    if is_video and any(name.startswith("decoder.") for name in fused):
        outer = ("decoder.", "encoder_to_decoder.", "mask_token")
        return {name if name.startswith(outer) else f"encoder.{name}": each for name, each in fused.items()}
    return fused


def _renamed(name: str, *, is_video: bool) -> str:
    inner = name.removeprefix("videomae." if is_video else "vit.")
    layer = _LAYER.fullmatch(inner)
    if layer:
        decoder, number, rest = layer.groups()
        blocks = ("decoder.blocks" if is_video else "decoder_blocks") if decoder else "blocks"
        return f"{blocks}.{number}.{_replaced(rest, _BLOCK)}"
    return _replaced(inner, _OUTSIDE)


def _replaced(name: str, table: Mapping[str, str]) -> str:
    stem, dot, last = name.rpartition(".")
    if name in table:
        return table[name]
    return f"{table[stem]}{dot}{last}" if stem in table else name


def _fuse(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value joined to one `qkv`, as VideoMAE and image MAE store them.

    transformers 5 keeps VideoMAE's biases as `query.bias` and `value.bias`; keys have none.
    """
    fused = {name: each for name, each in named.items() if not re.search(r"attn\.(query|key|value)\.", name)}
    for name, query in named.items():
        if not name.endswith("attn.query.weight"):
            continue
        stem = name.removesuffix("query.weight")
        parts = [
            query,
            *(named[f"{stem}{part}.weight"] for part in ("key", "value") if f"{stem}{part}.weight" in named),
        ]
        if len(parts) != 3:
            raise ModelError(f"The weights have '{name}' but not the key or value beside it; fetch the file again.")
        fused[f"{stem}qkv.weight"] = torch.cat(parts)
        biases = [named.get(f"{stem}{part}.bias") for part in ("query", "key", "value")]
        given = [each for each in biases if each is not None]
        if len(given) == 3:
            fused[f"{stem}qkv.bias"] = torch.cat(given)
        elif biases[0] is not None and biases[2] is not None:
            fused[f"{stem}q_bias"], fused[f"{stem}v_bias"] = biases[0], biases[2]
        elif given:
            raise ModelError(
                f"The weights have biases on some of query, key and value of '{stem}' alone; fetch the file again."
            )
    return fused
