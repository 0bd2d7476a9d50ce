"""Writing our weights for others: published names, transformers' folders, timm's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stmae_train.checkpoint import Weights, save_tensors, save_weights
from stmae_train.config import ModelConfig, Recipe, to_toml
from stmae_train.convert.facts import PUBLISHED_EPS, TRANSFORMERS_LAST_EPS
from stmae_train.convert.inflate import deflate
from stmae_train.convert.read import RECIPE_KEY
from stmae_train.errors import ModelError
from stmae_train.model import published_names
from stmae_train.runlog import commit
from stmae_train.targets import target_size

__all__ = ["FORMATS", "write_weights"]

FORMATS = ("stmae", "safetensors", "transformers", "timm")

_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_VIDEOMAE = {
    "encoder.embed.": "videomae.embeddings.patch_embeddings.projection.",
    "encoder.norm.": "videomae.layernorm.",
    "decoder.embed.": "encoder_to_decoder.",
    "decoder.norm.": "decoder.norm.",
    "decoder.head.": "decoder.head.",
    "mask_token": "mask_token",
    "fresh_norm.": "fc_norm.",
    "head.": "classifier.",
}
_VITMAE = {
    "encoder.embed.": "vit.embeddings.patch_embeddings.projection.",
    "encoder.class_token": "vit.embeddings.cls_token",
    "encoder.positions.joint": "vit.embeddings.position_embeddings",
    "encoder.norm.": "vit.layernorm.",
    "decoder.embed.": "decoder.decoder_embed.",
    "decoder.positions.joint": "decoder.decoder_pos_embed",
    "decoder.norm.": "decoder.decoder_norm.",
    "decoder.head.": "decoder.decoder_pred.",
    "mask_token": "decoder.mask_token",
    "head.": "classifier.",
}


def write_weights(weights: Weights, target: Path, *, form: str, source: Path | None = None) -> Path:
    """Write weights in a form others read; returns the path of the file.

    Args:
        weights: by our names.
        target: a file; for transformers a folder.
        form: "stmae" (ours), "safetensors" (names of the lineage's codebase), "transformers" or "timm".
        source: the file they were read from; it is never written over.

    Raises:
        ModelError: that library has no such model, or the target is the source.
    """
    if source is not None and (
        target.resolve() == source.resolve() or (target / "model.safetensors").resolve() == source.resolve()
    ):
        raise ModelError(f"{target} is the file that is read; name another place with --out.")
    if form == "stmae":
        save_weights(target, weights.tensors, recipe=weights.recipe, facts=_facts(weights))
        return target
    if form == "safetensors":
        save_tensors(target, _published(weights), {**_facts(weights), RECIPE_KEY: to_toml(weights.recipe)})
        return target
    if form == "timm":
        named, arguments, recipe = _timm(weights)
        kind = "finetune" if "head.weight" in named else "encoder"
        facts = {**_facts(weights), "kind": kind, "lineage": recipe.model.lineage, RECIPE_KEY: to_toml(recipe)}
        save_tensors(target, named, facts | {"timm": json.dumps(arguments, sort_keys=True)})
        return target
    if form == "transformers":
        named, settings = _transformers(weights)
        save_tensors(target / "model.safetensors", named)
        for name, table in (("config.json", settings), ("preprocessor_config.json", _processor(weights.model))):
            with commit(target / name) as stream:
                stream.write((json.dumps(table, indent=2, sort_keys=True) + "\n").encode())
        return target / "model.safetensors"
    raise ModelError(f"There is no form '{form}'; choose one of {', '.join(FORMATS)}.")


def _facts(weights: Weights) -> dict[str, str]:
    """Metadata without what describes our file format itself."""
    own = ("recipe", "format", RECIPE_KEY, "preprocessing", "target", "schema_version")
    return {key: value for key, value in weights.metadata.items() if key not in own}


def _published(weights: Weights) -> dict[str, Tensor]:
    """Tensors by the names, and in the shapes, of the lineage's own codebase."""
    config = weights.model
    names = published_names(weights.tensors, config)
    named = {theirs: weights.tensors[ours] for ours, theirs in names.items()}
    kernel = "patch_embed.proj.weight"
    if config.lineage == "mae" and kernel in named and named[kernel].shape[2] == 1:
        named[kernel] = named[kernel].squeeze(2)
    return named


def _transformers(weights: Weights) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Names and config.json of `VideoMAEFor…` or `ViTMAEForPreTraining`, in the layout both transformers 4 and 5 read."""
    config, tensors = weights.model, weights.tensors
    is_video = config.lineage == "videomae"
    has_decoder, has_head = "decoder.head.weight" in tensors, "head.weight" in tensors
    if config.lineage not in ("videomae", "mae") or (config.num_frames > 1 and not is_video):
        raise ModelError(
            f"transformers has no {config.lineage} model (separable learned positions, class token in video); write --to safetensors, or "
            f"--to timm for its image form."
        )
    _check_plain(weights, is_video=is_video, has_head=has_head)
    table = _VIDEOMAE if is_video else _VITMAE
    if not is_video:
        tensors = {**tensors, "encoder.embed.weight": tensors["encoder.embed.weight"].squeeze(2)}
    named: dict[str, Tensor] = {}
    for name, each in tensors.items():
        if ".blocks." in name:
            named |= _block(name, each, is_video=is_video)
        else:
            start = next(begin for begin in sorted(table, key=len, reverse=True) if name.startswith(begin))
            named[table[start] + name.removeprefix(start)] = each
    return named, _settings(weights, is_video=is_video, has_decoder=has_decoder, has_head=has_head)


def _check_plain(weights: Weights, *, is_video: bool, has_head: bool) -> None:
    """Refuse what transformers' model of the lineage cannot compute, or would be read back as something else."""
    config, pooling = weights.model, weights.recipe.finetune.pooling
    wrong = ""
    if is_video and (config.class_token or config.positions != "sincos-1d"):
        wrong = f"positions '{config.positions}'{' and a class token' if config.class_token else ''}"
    elif is_video and config.qkv_bias == "all":
        wrong = "biases on keys"
    elif is_video and config.end_eps not in (PUBLISHED_EPS, TRANSFORMERS_LAST_EPS):
        wrong = f"a last norm of eps {config.end_eps:g}"
    elif not is_video and (not config.class_token or config.positions not in ("sincos-2d", "joint")):
        wrong = f"positions '{config.positions}' or no class token"
    elif not is_video and config.qkv_bias == "qv":
        wrong = "biases on queries and values alone"
    elif not is_video and "encoder.norm.weight" not in weights.tensors:
        wrong = "no norm after the encoder"
    elif has_head and pooling not in (("mean-fresh-norm", "norm-first") if is_video else ("norm-first",)):
        wrong = f"pooling '{pooling}'"
    elif has_head and _drops_first_token(weights):
        wrong = "a mean that leaves out the first patch"
    elif "decoder.head.weight" in weights.tensors:
        wrong = _wrong_decoder(config, is_video=is_video)
    if wrong:
        raise ModelError(
            f"transformers' {'VideoMAE' if is_video else 'ViTMAE'} has no model with {wrong}; write --to safetensors."
        )


def _drops_first_token(weights: Weights) -> bool:
    """Whether a classifier without a class token loses its first patch (mae_st's habit)."""
    return weights.metadata.get("drops_first_token") == "true" and not weights.model.class_token


def _wrong_decoder(config: ModelConfig, *, is_video: bool) -> str:
    """What in a decoder transformers has no model for; empty where it has one."""
    positions = ("sincos-1d",) if is_video else ("sincos-2d", "joint")
    targets = ("pixels", "normalized-per-color" if is_video else "normalized-pixels")
    if config.decoder_input != "projected" or config.dense_encoder:
        return "another decoder"
    if config.decoder_attention != "self":
        return f"decoder_attention '{config.decoder_attention}'"
    if config.decoder_positions not in positions:
        return f"decoder_positions '{config.decoder_positions}'"
    if config.class_token and config.decoder_class != "encoder":
        return f"decoder_class '{config.decoder_class}'"
    if config.decoder_embed_bias is is_video:
        return f"decoder_embed_bias {str(config.decoder_embed_bias).lower()}"
    if not is_video and config.end_eps != config.layer_norm_eps:
        return f"a last norm of eps {config.end_eps:g}"
    return "" if config.target in targets else f"target '{config.target}'"


def _block(name: str, each: Tensor, *, is_video: bool) -> dict[str, Tensor]:
    """One tensor of a block under transformers 4's names; fused ones are cut into thirds."""
    place, _, rest = name.partition(".blocks.")
    number, _, inner = rest.partition(".")
    stem = f"{'videomae' if is_video else 'vit'}.encoder.layer" if place == "encoder" else "decoder.decoder_layers"
    start = f"{stem}.{number}."
    if inner.startswith("attn.qkv."):
        last = inner.rpartition(".")[2]
        parts = zip(("query", "key", "value"), each.chunk(3), strict=True)
        return {f"{start}attention.attention.{part}.{last}": third for part, third in parts}
    if inner in ("attn.q_bias", "attn.v_bias"):
        return {f"{start}attention.{inner.replace('attn', 'attention')}": each}
    if inner.startswith(("attn.q.", "attn.k.", "attn.v.")):
        part = {"q": "query", "k": "key", "v": "value"}[inner.split(".")[1]]
        return {f"{start}attention.attention.{part}.{inner.rpartition('.')[2]}": each}
    module, _, last = inner.rpartition(".")
    return {f"{start}{_BLOCK[module]}.{last}": each}


def _settings(weights: Weights, *, is_video: bool, has_decoder: bool, has_head: bool) -> dict[str, Any]:
    """config.json: everything that weights do not tell."""
    config, pooling = weights.model, weights.recipe.finetune.pooling
    family = "VideoMAE" if is_video else "ViTMAE"
    kind = "ForPreTraining" if has_decoder else "Model"
    if has_head:
        family, kind = ("VideoMAE", "ForVideoClassification") if is_video else ("ViT", "ForImageClassification")
    found: dict[str, Any] = {
        "architectures": [family + kind],
        "model_type": "videomae" if is_video else "vit" if has_head else "vit_mae",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": int(config.width * config.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.layer_norm_eps,
        "image_size": config.crop_px,
        "patch_size": config.patch_px,
        "num_channels": 3,
        "qkv_bias": config.qkv_bias != "none",
    }
    if is_video:
        found |= {"num_frames": config.num_frames, "tubelet_size": config.tubelet_frames}
        # Published pre-training keeps the encoder's last norm; fine-tuning with a fresh norm does not (SPEC-models A3.8).
        found["use_mean_pooling"] = pooling == "mean-fresh-norm" if has_head else not config.encoder_norm
    if has_decoder:
        found |= {
            "decoder_hidden_size": config.decoder_width,
            "decoder_num_hidden_layers": config.decoder_depth,
            "decoder_num_attention_heads": config.decoder_heads,
            "decoder_intermediate_size": int(config.decoder_width * config.mlp_ratio),
            "norm_pix_loss": config.target != "pixels",
            "mask_ratio": config.mask_ratio,
        }
        values = 3 * config.tubelet_frames * config.patch_px**2
        if target_size(config) != values:
            raise ModelError(
                f"transformers' {family} predicts all {values} values of a tubelet, these weights {target_size(config)}; write --to safetensors."
            )
    if has_head:
        found["id2label"] = {str(each): f"LABEL_{each}" for each in range(len(weights.tensors["head.weight"]))}
    return found


def _processor(config: ModelConfig) -> dict[str, Any]:
    """preprocessor_config.json: how pixels enter, which no weight and no config.json tells."""
    size = {"height": config.crop_px, "width": config.crop_px}
    found: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": {"bilinear": 2, "bicubic": 3}[config.resize],  # PIL's numbers
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }
    if config.lineage == "videomae":
        short_side = {"shortest_edge": round(config.crop_px / config.test_crop)}
        found |= {"image_processor_type": "VideoMAEImageProcessor", "size": short_side}
        found |= {"do_center_crop": True, "crop_size": size}
    return found


def _timm(weights: Weights) -> tuple[dict[str, Tensor], dict[str, Any], Recipe]:
    """Names of `timm.models.VisionTransformer`, the arguments that make one, and the recipe of that image model.

    Video encoders are deflated first.
    """
    if weights.model.num_frames > 1:
        weights = deflate(weights)
    config, tensors = weights.model, weights.tensors
    pooling = weights.recipe.finetune.pooling if "head.weight" in tensors else ""
    wrong = _wrong_for_timm(weights)
    if wrong:
        raise ModelError(f"timm's ViT has no {wrong}; write --to safetensors.")
    named: dict[str, Tensor] = {}
    for name, each in tensors.items():
        if name.startswith("decoder.") or name == "mask_token":
            continue
        for begin, theirs in (
            ("encoder.embed.", "patch_embed.proj."),
            ("encoder.class_token", "cls_token"),
            ("encoder.positions.joint", "pos_embed"),
            ("encoder.", ""),
            ("fresh_norm.", "fc_norm."),
            ("", ""),
        ):
            if name.startswith(begin):
                named[theirs + name.removeprefix(begin)] = each
                break
    named["patch_embed.proj.weight"] = named["patch_embed.proj.weight"].squeeze(2)
    named = _fused(named, config)
    averages = pooling.startswith("mean")
    if averages and "norm.weight" in named:  # mae_st pools, then uses the pre-trained norm: timm's fc_norm
        named = {
            name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: each
            for name, each in named.items()
        }
    arguments = {
        "img_size": config.crop_px,
        "patch_size": config.patch_px,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_ratio,
        "qkv_bias": config.qkv_bias != "none",
        "class_token": config.class_token,
        "global_pool": "avg" if averages or pooling == "norm-mean" or not config.class_token else "token",
        "fc_norm": averages,
        "num_classes": len(tensors["head.weight"]) if "head.weight" in tensors else 0,
        "norm_eps": config.layer_norm_eps,
        "mean": list(config.mean),
        "std": list(config.std),
    }
    # timm's names and layout are image MAE's, and so is its norm after the mean; the way back goes by this recipe.
    image = replace(config, lineage="mae", qkv="fused", qkv_bias="none" if config.qkv_bias == "none" else "all")
    recipe = replace(weights.recipe, model=replace(image, last_norm_eps=0.0))
    if averages:
        recipe = replace(recipe, finetune=replace(recipe.finetune, pooling="mean-fresh-norm"))
    return named, arguments, recipe


def _wrong_for_timm(weights: Weights) -> str:
    """What in an image model timm's ViT cannot compute; empty where it can."""
    config, pooling, has_head = weights.model, weights.recipe.finetune.pooling, "head.weight" in weights.tensors
    if config.positions not in ("joint", "sincos-2d"):
        return f"positions '{config.positions}'"
    if not has_head:
        return "" if "encoder.norm.weight" in weights.tensors else "encoder without a norm at its end"
    if pooling == "norm-first" and not config.class_token:
        return "pooling 'norm-first' without a class token"
    if _drops_first_token(weights):
        return "mean that leaves out the first patch"
    if pooling == "mean-fresh-norm" and config.end_eps != config.layer_norm_eps:
        return f"norm of eps {config.end_eps:g} beside norms of eps {config.layer_norm_eps:g}"
    return ""


def _fused(named: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Query, key and value as one `qkv`; missing key biases are zeros, which change nothing."""
    if config.qkv == "fused" and config.qkv_bias != "qv":
        return dict(named)
    found = {
        name: each for name, each in named.items() if not any(f".attn.{part}" in name for part in ("q", "k.", "v"))
    }
    for block in range(config.depth):
        stem = f"blocks.{block}.attn."
        if config.qkv == "fused":
            found[f"{stem}qkv.weight"] = named[f"{stem}qkv.weight"]
            query, value = named[f"{stem}q_bias"], named[f"{stem}v_bias"]
        else:
            found[f"{stem}qkv.weight"] = torch.cat([named[f"{stem}{part}.weight"] for part in "qkv"])
            if config.qkv_bias == "none":
                continue
            query, value = named[f"{stem}q.bias"], named[f"{stem}v.bias"]
        found[f"{stem}qkv.bias"] = torch.cat([query, named.get(f"{stem}k.bias", torch.zeros_like(query)), value])
    return found
