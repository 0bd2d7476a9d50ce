"""Weight names of published codebases: ours to theirs and back, and the patch kernel between images and video."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from stmae_train.config import ModelConfig
from stmae_train.errors import ModelError

__all__ = [
    "deflate_kernel",
    "from_upstream",
    "inflate_kernel",
    "load_upstream",
    "published_names",
    "upstream_names",
    "upstream_state",
]

# Beginnings of our names and what mae_st, PySlowFast and image MAE call them (SPEC-models A1.9, A2).
_MAE_STYLE = {
    "encoder.embed.": "patch_embed.proj.",
    "encoder.class_token": "cls_token",
    "encoder.positions.joint": "pos_embed",
    "encoder.positions.class_row": "pos_embed_class",
    "encoder.positions.": "pos_embed_",
    "encoder.": "",
    "decoder.embed.": "decoder_embed.",
    "decoder.class_token": "decoder_cls_token",
    "decoder.positions.joint": "decoder_pos_embed",
    "decoder.positions.class_row": "decoder_pos_embed_class",
    "decoder.positions.": "decoder_pos_embed_",
    "decoder.blocks.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.head.": "decoder_pred.",
    "fresh_norm.": "fc_norm.",
}
# PySlowFast keeps the decoder in one list: blocks 0 to depth-1, then the norm.
_PYSLOWFAST = {
    "decoder.blocks.": "pred_head.transforms.0.",
    "decoder.norm.": "pred_head.transforms.0.{decoder_depth}.",
    "decoder.head.": "pred_head.projections.0.",
    "head.": "head.projection.",
}
_VIDEOMAE = {
    "encoder.embed.": "encoder.patch_embed.proj.",
    "decoder.embed.": "encoder_to_decoder.",
    "fresh_norm.": "fc_norm.",
}


def upstream_names(model: nn.Module, config: ModelConfig) -> dict[str, str]:
    """Our name to the published name, for every entry of the model's state dict, by the config's lineage."""
    return published_names(model.state_dict(), config)


def published_names(names: Iterable[str], config: ModelConfig) -> dict[str, str]:
    """Our names to the published ones; names without a decoder's are those of an encoder or a classifier."""
    names = list(names)
    is_classifier = not any(name.startswith("decoder.") for name in names)
    if config.lineage == "videomae":
        beginnings = dict(_VIDEOMAE)
        if is_classifier:  # fine-tuned VideoMAE files have no "encoder."
            beginnings |= {"encoder.embed.": "patch_embed.proj.", "encoder.": ""}
    else:
        beginnings = _MAE_STYLE | (_PYSLOWFAST if config.lineage == "pyslowfast" else {})
    return {name: _renamed(name, beginnings, config) for name in names}


def _renamed(name: str, beginnings: Mapping[str, str], config: ModelConfig) -> str:
    fitting = [beginning for beginning in beginnings if name.startswith(beginning)]
    if not fitting:
        return name
    longest = max(fitting, key=len)
    return beginnings[longest].format(decoder_depth=config.decoder_depth) + name.removeprefix(longest)


def upstream_state(model: nn.Module, config: ModelConfig) -> dict[str, Tensor]:
    """The model's weights under published names and shapes (image MAE's kernels are two-dimensional)."""
    state = model.state_dict()
    named = {theirs: state[ours] for ours, theirs in upstream_names(model, config).items()}
    kernel = "patch_embed.proj.weight"
    if config.lineage == "mae" and named[kernel].shape[2] == 1:
        named[kernel] = named[kernel].squeeze(2)
    return named


def from_upstream(model: nn.Module, config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under our names and shapes; every entry of the model must be given, and nothing else.

    Args:
        model: what they must fill; its own values are not looked at, so it may lie on the meta device.
        config: the model's config; its lineage decides the names.
        weights: by published names.

    Raises:
        ModelError: a missing or unused name, or a shape that does not fit.
    """
    names = upstream_names(model, config)
    missing = sorted(set(names.values()) - set(weights))
    unused = sorted(set(weights) - set(names.values()))
    if missing or unused:
        raise ModelError(
            f"Weights do not fit a {config.lineage} model of size {config.size}: missing {_some(missing)}; "
            f"unused {_some(unused)}. Check the lineage and the options of the model."
        )
    state, ours_named = model.state_dict(), {}
    for ours, theirs in names.items():
        found, wanted = weights[theirs], state[ours].shape
        # Image MAE's kernel [D, C, p, p] is a video kernel of one frame.
        if found.ndim == 4 and len(wanted) == 5 and wanted[2] == 1:
            found = found.unsqueeze(2)
        if found.shape != wanted:
            raise ModelError(
                f"Weight '{theirs}' has shape {list(found.shape)}, the model wants {list(wanted)}; "
                f"check sizes, patch and frame counts of the config."
            )
        ours_named[ours] = found
    return ours_named


def load_upstream(model: nn.Module, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Load published weights; every entry of the model must be given, and nothing else.

    Raises:
        ModelError: a missing or unused name, or a shape that does not fit.
    """
    model.load_state_dict(from_upstream(model, config, weights))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown or "none"


def inflate_kernel(kernel: Tensor, *, frames: int, divides: bool = True) -> Tensor:
    """A 2-D patch kernel [D, C, p, p] over time: [D, C, frames, p, p].

    I3D's rule repeats and divides, so a still clip gives the image's tokens; PySlowFast's "image_init" path repeats
    without dividing (SPEC-models A1.14).
    """
    repeated = kernel[:, :, None].expand(-1, -1, frames, -1, -1)
    return repeated / frames if divides else repeated.clone(memory_format=torch.contiguous_format)


def deflate_kernel(kernel: Tensor) -> Tensor:
    """A 3-D patch kernel [D, C, t, p, p] for images: the sum over time, [D, C, p, p]."""
    return kernel.sum(dim=2)
