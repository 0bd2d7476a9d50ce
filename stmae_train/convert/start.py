"""Starting from weights: what must be the same, and what may differ."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from stmae_train.checkpoint import Weights, load_model, weights_path
from stmae_train.classifier import start_encoder
from stmae_train.config import Recipe
from stmae_train.convert.read import read_weights, sha256_of
from stmae_train.errors import ModelError
from stmae_train.model import MaskedAutoencoder

__all__ = ["Start", "start_model"]

# What changes the meaning of an encoder's weights without changing a shape, or changes shapes.
ENCODER = [
    "width",
    "depth",
    "heads",
    "mlp_ratio",
    "layer_norm_eps",
    "qkv",
    "qkv_bias",
    "patch_px",
    "tubelet_frames",
    "class_token",
    "positions",
    "mean",
    "std",
]
DECODER = [
    "decoder_width",
    "decoder_depth",
    "decoder_heads",
    "decoder_qkv",
    "decoder_class",
    "decoder_positions",
    "decoder_input",
    "decoder_embed_bias",
    "encoder_norm",
    "decoder_attention",
    "last_norm_eps",
    "dense_encoder",
    "num_frames",
    "crop_px",
    "target",
    "target_range",
    "target_frames",
    "num_target_frames",
    "target_values",
]


def start_model(model: MaskedAutoencoder, init: str, *, workspace: Path) -> dict[str, Any]:
    """Fill a masked autoencoder with weights; returns what was loaded, for the run's record.

    Weights with a decoder must fit decoder and target too; weights without one start the encoder alone, and positions of another grid are
    interpolated.

    Raises:
        CheckpointError: nothing stands there, or it cannot be read.
        ModelError: the weights and the recipe differ in what decides the meaning of a weight.
    """
    path = weights_path(init, workspace=workspace)
    weights = read_weights(path)
    has_decoder = "decoder.head.weight" in weights.tensors
    _check(model, weights, ENCODER + (DECODER if has_decoder else []), where=path.name)
    if has_decoder:
        load_model(model, weights.tensors, where=str(path))
    else:
        start_encoder(model.encoder, weights.tensors, grid=weights.model.grid_shape)
    return {
        "name": init,
        "layout": weights.metadata.get("layout", "stmae"),
        "parts": "all" if has_decoder else "encoder",
        "data": json.loads(weights.metadata.get("data", "{}")),
    }


def _check(model: MaskedAutoencoder, weights: Weights, names: list[str], *, where: str) -> None:
    for name in names:
        wanted, found = getattr(model.config, name), getattr(weights.model, name)
        if wanted == found:
            continue
        if name == "num_target_frames" and model.config.target_frames != "linspace":
            continue
        step = f"set model.{name}={_text(found)}"
        if name.startswith("decoder_") or name in DECODER:
            step += ", or leave the decoder behind: stmae-train convert FILE --to stmae --encoder-only"
        if weights.model.num_frames == 1 < model.config.num_frames:
            step = "inflate them first: stmae-train convert FILE --to stmae --inflate divide"
        raise ModelError(f"{where} has {name} {_text(found)}, the recipe {_text(wanted)}; {step}.")


def _text(value: object) -> str:
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, slots=True)
class Start:
    """What a task starts from: weights or nothing, the recipe to go on with, and what to write down about it."""

    recipe: Recipe
    tensors: dict[str, Tensor] | None
    facts: dict[str, Any]
    seed: int
    grid: tuple[int, int, int] | None = None  # token counts (t, h, w) the weights were trained on

    @staticmethod
    def of(init: str, *, workspace: Path, recipe: Recipe, seed: int) -> Start:
        """Read a weights file of any known layout (`convert.read_weights`), a run's weights, or nothing for `random`.

        The model and its clips are those of the weights: no task has a second default for them (SPEC-models D3).

        Raises:
            CheckpointError: nothing stands there, or it cannot be read.
            ModelError: weights of another codebase whose heads, eps, target or tokens are in doubt.
        """
        if init == "random":
            return Start(recipe, None, {"name": "random", "sha256": None, "data": {}}, seed)
        path = weights_path(init, workspace=workspace)
        weights = read_weights(path, base=recipe)
        data = json.loads(weights.metadata.get("data", "{}"))
        # The digests of what pre-training read travel with every score, for the leak guard.
        facts = {"name": init, "sha256": sha256_of(path), "data": data}
        if "layout" in weights.metadata:
            facts |= {"layout": weights.metadata["layout"], "notes": json.loads(weights.metadata["notes"])}
        model, clips = weights.model, weights.recipe.data
        if model.input_stride > 1:
            # Only the pre-training target had the frames between: the encoder sees every other one.
            clips = replace(clips, num_frames=model.num_frames, frame_stride=clips.frame_stride * model.input_stride)
            model = replace(model, target_frames="all")
        return Start(replace(recipe, model=model, data=clips), weights.tensors, facts, seed, weights.model.grid_shape)

    def autoencoder(self) -> MaskedAutoencoder:
        """The model whose encoder is frozen; without weights, as the seed makes it. A decoder that the weights lack stays random."""
        model = MaskedAutoencoder(self.recipe.model, seed=self.seed)
        if self.tensors is None:
            return model
        state = model.state_dict()
        is_same_grid = self.grid in (None, self.recipe.model.grid_shape)
        if is_same_grid and {name: each.shape for name, each in self.tensors.items()} == {
            name: each.shape for name, each in state.items()
        }:
            load_model(model, self.tensors, where=str(self.facts["name"]))
        else:
            start_encoder(model.encoder, self.tensors, grid=self.grid)
        return model
