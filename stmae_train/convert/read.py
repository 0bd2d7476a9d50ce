"""Reading weights of any known layout as ours: what `--init` takes, and what `convert` and `inspect` start from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stmae_train.checkpoint import Weights, load_weights
from stmae_train.classifier import Classifier
from stmae_train.config import ModelConfig, Recipe, from_toml, override_values
from stmae_train.convert.facts import model_config, stated_options
from stmae_train.convert.files import Opened, open_file
from stmae_train.convert.layouts import LINEAGES, plain_names, recognise, to_upstream
from stmae_train.convert.shapes import HEADS, seen_options
from stmae_train.errors import CheckpointError, ModelError
from stmae_train.model import Encoder, from_upstream, outline, published_names
from stmae_train.recipes import names, recipe

__all__ = ["OURS", "RECIPE_KEY", "is_ours", "read_weights", "sha256_of"]

OURS = "stmae"
RECIPE_KEY = "stmae_recipe"
"""Metadata key under which our exports keep the recipe, for the way back."""


class _EncoderAlone(nn.Module):
    """What a file without decoder and head holds."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config, final_norm=config.encoder_norm)


def is_ours(opened: Opened) -> bool:
    """Whether a file was written by `save_weights`."""
    return "recipe" in opened.metadata


def read_weights(path: Path, *, base: Recipe | None = None, asked: Mapping[str, Any] | None = None) -> Weights:
    """Weights by our names, with the recipe they fit.

    Args:
        path: a weights file or export of ours, or one of the layouts of `layouts.LINEAGES`.
        base: recipe whose settings beside the model are kept, or the lineage's own for the size; a file of ours has its own.
        asked: dotted recipe values the user states, such as {"model.heads": 12}; a clash with the file is an error.

    Returns:
        Tensors, recipe and metadata; the metadata of foreign files says `layout`, `kind` (pretrain, encoder, finetune), `notes` and the
        file's sha256.

    Raises:
        CheckpointError: the file cannot be read.
        ModelError: an unknown layout, or a head count, eps, target, patch size or token count that does not fit; an export of ours whose
            weights are not those of the model its recipe names.
    """
    opened, asked = open_file(path), dict(asked or {})
    if is_ours(opened):
        weights = load_weights(path)
        _check_ours(weights.recipe, asked, where=path.name)
        return weights
    if RECIPE_KEY in opened.metadata:
        return _read_export(path, opened, asked)
    tensors = plain_names(opened.tensors)
    layout = recognise(tensors, where=path.name)
    upstream = to_upstream(tensors, layout)
    seen = seen_options(upstream, layout)
    stated = stated_options(layout, args=opened.args, settings=opened.settings, preprocessing=opened.preprocessing)
    wanted = {
        key.removeprefix("model."): tuple(value) if isinstance(value, list) else value
        for key, value in asked.items()
        if key.startswith("model.")
    }
    facts = model_config(layout, seen=seen, stated=stated, asked=wanted, where=path.name)
    num_classes = len(upstream[_head(upstream)]) if _head(upstream) else 0
    kind = "pretrain" if "decoder_width" in seen else "finetune" if num_classes else "encoder"
    pooling: str | None = None
    notes: list[str] = []
    if kind == "finetune":
        pooling, notes = _pooling(layout, facts.config, upstream, opened.settings)
        if "finetune.pooling" in asked:
            pooling, notes = asked["finetune.pooling"], []
    model = _model(kind, facts.config, num_classes=num_classes, pooling=pooling)
    ours = from_upstream(model, facts.config, {name: each.float() for name, each in upstream.items()})
    found = _recipe(facts.config, base, pooling=pooling, name=path.stem)
    found = override_values(found, {key: value for key, value in asked.items() if not key.startswith("model.")})
    metadata = {
        "schema_version": "1",
        "kind": kind,
        "lineage": LINEAGES[layout],
        "layout": layout,
        "data": "{}",
        "converted_from": path.name,
        "converted_sha256": sha256_of(path),
        "notes": json.dumps([*facts.notes, *notes, *_warnings(layout, upstream, opened)]),
    }
    if kind == "finetune":
        metadata["num_classes"] = str(num_classes)
        metadata["drops_first_token"] = json.dumps(layout == "mae_st" and not facts.config.class_token)
    return Weights(ours, found, metadata)


def _read_export(path: Path, opened: Opened, asked: Mapping[str, Any]) -> Weights:
    """An export of ours: the recipe in its metadata says what its weights are, names and shapes may only agree with it.

    Many models share their names and shapes, such as all that differ in pooling or in fixed positions.
    """
    recipe = from_toml(opened.metadata[RECIPE_KEY], where=f"the metadata of {path.name}")
    _check_ours(recipe, asked, where=path.name)
    found = override_values(recipe, {key: value for key, value in asked.items() if not key.startswith("model.")})
    config, pooling = recipe.model, recipe.finetune.pooling
    head = opened.tensors.get(published_names(["head.weight"], config)["head.weight"])
    has_decoder = published_names(["decoder.head.weight"], config)["decoder.head.weight"] in opened.tensors
    kind = "pretrain" if has_decoder else "encoder" if head is None else "finetune"
    if kind == "finetune" and found.finetune.pooling != pooling:
        raise ModelError(
            f"{path.name}: pooling is '{found.finetune.pooling}' by --set, but its own recipe says '{pooling}', which its head was trained "
            f"with; leave the change out."
        )
    model = _model(kind, config, num_classes=0 if head is None else len(head), pooling=pooling)
    ours = from_upstream(model, config, {name: each.float() for name, each in opened.tensors.items()})
    kept = {key: value for key, value in opened.metadata.items() if key not in (RECIPE_KEY, "format", "timm")}
    own = {
        "schema_version": "1",
        "kind": kind,
        "lineage": config.lineage,
        "layout": "timm" if "timm" in opened.metadata else config.lineage,
        "converted_from": path.name,
        "converted_sha256": sha256_of(path),
    }
    if head is not None:
        own["num_classes"] = str(len(head))
    return Weights(ours, found, {"data": "{}", "notes": "[]", **kept, **own})


def _check_ours(found: Recipe, asked: Mapping[str, Any], *, where: str) -> None:
    for key, value in asked.items():
        name = key.removeprefix("model.")
        known = getattr(found.model, name) if key.startswith("model.") else None
        if known is not None and (tuple(value) if isinstance(value, list) else value) != known:
            raise ModelError(
                f"{where}: {name} is {value} by --set, but its own recipe says {known}, which it was trained with; leave the change out."
            )


def _head(tensors: Mapping[str, Tensor]) -> str:
    """Name of the classifier's weight; empty where there is none."""
    return next((name for name in HEADS if name in tensors), "")


def _model(kind: str, config: ModelConfig, *, num_classes: int, pooling: str | None) -> nn.Module:
    """The model a file fills, on the meta device."""
    if kind == "pretrain":
        return outline(config)
    with torch.device("meta"):
        if kind == "encoder":
            return _EncoderAlone(config)
        return Classifier(config, num_classes, pooling=pooling or "", seed=None)


def _pooling(
    layout: str, config: ModelConfig, upstream: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[str, list[str]]:
    """How a fine-tuned file pools (SPEC-models A1.13, A2, A3.6), and what was assumed for that."""
    is_fresh = "fc_norm.weight" in upstream
    if layout == "timm" and "global_pool" in settings:
        return _stated_pooling(settings["global_pool"], is_fresh=is_fresh), []
    if is_fresh:
        return "mean-fresh-norm", []
    if layout == "timm" and not config.class_token:
        return "norm-mean", [
            "Pooling 'norm-mean', as timm's models without a class token have it, for the file does not say."
        ]
    if layout == "timm":
        return "norm-first", [
            "Pooling 'norm-first', the class token, for the file does not say; a timm model with global_pool='avg' and fc_norm=False needs "
            "--set finetune.pooling=norm-mean."
        ]
    if config.lineage in ("mae", "videomae"):
        return "norm-first", []
    if config.lineage == "mae_st":
        return "mean-norm", []
    if not config.class_token:
        return "norm-mean", [
            "Pooling 'norm-mean', PySlowFast's default without a class token, for the file does not say."
        ]
    return "mean-norm", ["Pooling 'mean-norm', as released MAE-ST classifiers have it, for the file does not say."]


def _stated_pooling(pool: object, *, is_fresh: bool) -> str:
    """The pooling of timm's `global_pool`.

    Raises:
        ModelError: a model that pools in another way.
    """
    known = {("avg", True): "mean-fresh-norm", ("avg", False): "norm-mean", ("token", False): "norm-first"}
    found = known.get((str(pool), is_fresh))
    if found is None:
        raise ModelError(
            f"config.json beside the weights says global_pool {pool!r}{' with fc_norm' if is_fresh else ''}, wanted 'avg' or 'token'; a classifier "
            f"that pools in another way cannot be used here."
        )
    return found


def _warnings(layout: str, upstream: Mapping[str, Tensor], opened: Opened) -> list[str]:
    notes = []
    if layout == "transformers-videomae":
        biases = [each for name, each in upstream.items() if name.endswith(("attn.q_bias", "attn.v_bias"))]
        if biases and not any(bool(each.any()) for each in biases):
            notes.append(
                "Every query and value bias is exactly zero, as in files that transformers 5 wrote before it read q_bias and v_bias; trained "
                "models have other values."
            )
        notes.append(
            "transformers' decoder norm and fc_norm have eps 1e-5 whatever config.json says, and so they have here; VideoMAE's own have 1e-6, so "
            "for its published weights say --set model.last_norm_eps=1e-6."
        )
    if any(each.dtype != torch.float32 for each in opened.tensors.values()):
        notes.append("Weights were stored in another type than float32 and are read as float32.")
    return notes


def _recipe(config: ModelConfig, base: Recipe | None, *, pooling: str | None, name: str) -> Recipe:
    """A whole recipe around a model: the given one's settings, or those of the lineage's recipe of that size."""
    if base is None:
        family = {"pyslowfast": "mae-st", "mae_st": "mae-st"}.get(config.lineage, config.lineage)
        known = [each for each in names() if each.startswith(f"{family}-") and each.count("-") == family.count("-") + 1]
        base = recipe(next((each for each in known if each.endswith(f"-{config.size}")), known[0]))
        base = replace(base, name=name, source=f"Read from {name}; settings beside the model are those of {base.name}.")
    stride = 1 if config.num_frames == 1 else base.data.frame_stride
    data = replace(base.data, num_frames=config.clip_frames, crop_px=config.crop_px, frame_stride=stride)
    found = replace(base, model=config, data=data)
    return found if pooling is None else override_values(found, {"finetune.pooling": pooling})


def sha256_of(path: Path) -> str:
    """sha256 of a weights file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); look at its rights.") from error
