"""What a file says about its model: read off shapes, stated beside the weights, asked for by the user, or assumed; and where they clash.

Heads, LayerNorm eps, the target's normalisation and the pixels' mean leave no trace in a weight. They are taken from what stands beside the
weights or from the rule of the published sizes, and a clash is an error: a wrong head count gives wrong pictures and no message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stmae_train.config import ModelConfig
from stmae_train.convert.layouts import LINEAGES
from stmae_train.convert.shapes import FRAMES, ROWS, VALUES
from stmae_train.errors import ModelError
from stmae_train.recipes import lineage_options

__all__ = ["PUBLISHED_EPS", "TRANSFORMERS_LAST_EPS", "Facts", "model_config", "stated_options"]

# Encoder width to heads; S is VideoMAE's, 192 is timm's tiny (SPEC-models A0).
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
VIDEOMAE_DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
SIZES = {(384, 12): "s", (768, 12): "b", (1024, 24): "l", (1280, 32): "h"}
UNSAID_PIXELS = (
    "timm",
    "transformers-videomae",
    "transformers-vitmae",
)  # libraries whose models differ in their pixels
PUBLISHED_EPS = 1e-6
TRANSFORMERS_LAST_EPS = 1e-5  # of VideoMAE's decoder norm and fc_norm there, whatever config.json says


@dataclass(frozen=True, slots=True)
class Facts:
    """A model's config and where its values come from."""

    config: ModelConfig
    notes: tuple[str, ...]


def stated_options(
    layout: str,
    *,
    args: Mapping[str, Any],
    settings: Mapping[str, Any],
    preprocessing: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Options that stand beside the weights: the script's arguments, or the JSON files of transformers and timm.

    Args:
        layout: of the file.
        args: of the published training script.
        settings: `config.json` of transformers or timm.
        preprocessing: `preprocessor_config.json` of transformers.

    Raises:
        ModelError: a config.json of another kind of model, or one of a model that is not built here; a mean or deviation that is none.
    """
    if layout.startswith("transformers-"):
        return _of_transformers(layout, settings) | _of_processor(preprocessing or {})
    found: dict[str, Any] = {}
    if layout == "timm":
        pixels = settings.get("pretrained_cfg")
        pixels = pixels if isinstance(pixels, dict) else {}
        found |= _pixels(pixels.get("mean"), pixels.get("std"), where="config.json")
    for name, key in (("input_size", "crop_px"), ("num_frames", "num_frames"), ("mask_ratio", "mask_ratio")):
        if name in args and not (layout in ("mae", "timm") and key == "num_frames"):
            found[key] = args[name]
    if "decoder_num_heads" in args:
        found["decoder_heads"] = args["decoder_num_heads"]
    if "norm_pix_loss" in args:
        found["target"] = "normalized-pixels" if args["norm_pix_loss"] else "pixels"
    if layout == "videomae" and "normlize_target" in args:
        found["target"] = "normalized-per-color" if args["normlize_target"] else "pixels"
    if layout == "mae_st" and "pred_t_dim" in args:
        found["num_target_frames"] = args["pred_t_dim"]
    return found


def _of_transformers(layout: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    if not settings:
        return {}
    wanted = ("videomae",) if layout == "transformers-videomae" else ("vit_mae", "vit")
    kind, act = settings.get("model_type"), settings.get("hidden_act", "gelu")
    if kind not in wanted:
        raise ModelError(
            f"config.json beside the weights says model_type '{kind}', the weights are {layout}; put the right config.json there."
        )
    if act != "gelu":
        raise ModelError(
            f"config.json says hidden_act '{act}', wanted 'gelu'; a model with another activation cannot be used here."
        )
    image = settings.get("image_size", 224)
    names = {
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "heads": "num_attention_heads",
        "decoder_width": "decoder_hidden_size",
        "decoder_depth": "decoder_num_hidden_layers",
        "decoder_heads": "decoder_num_attention_heads",
        "tubelet_frames": "tubelet_size",
        "num_frames": "num_frames",
        "patch_px": "patch_size",
        "mask_ratio": "mask_ratio",
    }
    found = {ours: settings[theirs] for ours, theirs in names.items() if theirs in settings}
    found["crop_px"] = image if isinstance(image, int) else image[0]
    # What transformers takes where its config.json says nothing.
    found["layer_norm_eps"] = settings.get("layer_norm_eps", 1e-12)
    if kind == "videomae":
        found["last_norm_eps"] = TRANSFORMERS_LAST_EPS
    if kind != "vit":
        is_normal = settings.get("norm_pix_loss", kind == "videomae")
        found["target"] = (
            "pixels" if not is_normal else "normalized-per-color" if kind == "videomae" else "normalized-pixels"
        )
    return found


def _of_processor(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and deviation of pixels in [0, 1]; a processor that scales them otherwise says nothing that can be used."""
    is_plain = settings.get("do_rescale", True) and abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-3
    if not is_plain or not settings.get("do_normalize", True):
        return {}
    return _pixels(settings.get("image_mean"), settings.get("image_std"), where="preprocessor_config.json")


def _pixels(mean: Any, std: Any, *, where: str) -> dict[str, Any]:
    """Both as options, where both are given."""
    if mean is None or std is None:
        return {}
    for each in (mean, std):
        if not isinstance(each, list) or len(each) != 3 or not all(isinstance(value, int | float) for value in each):
            raise ModelError(
                f"{where} beside the weights has {each!r} for the pixels, wanted three numbers; correct it."
            )
    return {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}


def model_config(
    layout: str, *, seen: Mapping[str, Any], stated: Mapping[str, Any], asked: Mapping[str, Any], where: str
) -> Facts:
    """Join what is known; the lineage's own habits fill the rest.

    Args:
        layout: of the file.
        seen: `seen_options`; nothing may contradict them.
        stated: `stated_options`.
        asked: by the user, as options of `ModelConfig`.
        where: the file, for messages.

    Raises:
        ModelError: two of them contradict each other, or heads, eps or the grid are told by none.
    """
    notes: list[str] = []
    has_decoder = "decoder_width" in seen
    stated = {key: value for key, value in stated.items() if has_decoder or not _of_decoder(key)}
    lineage, rows, values, frames = LINEAGES[layout], seen.get(ROWS), seen.get(VALUES), seen.get(FRAMES, 1)
    seen = {key: value for key, value in seen.items() if key not in (ROWS, VALUES, FRAMES)}
    told_target = {**stated, **asked}
    if values is not None and "target" not in told_target:
        raise ModelError(
            f"{where}: the decoder predicts {values} values per token, which are neither whole frames of its patches nor HOG; say what they are: "
            f"stmae-train convert {where} --set model.target=…"
        )
    if "target_frames" in told_target:  # several choices of frames have one shape
        seen.pop("target_frames", None)
    _check_clash(where, "the config beside the weights", stated, seen)
    _check_clash(where, "--set", asked, seen)
    heads = {"heads", "decoder_heads", "last_norm_eps"}  # those the user may know better
    _check_clash(
        where,
        "--set",
        {k: v for k, v in asked.items() if k not in heads},
        stated,
        other="the config beside the weights",
    )
    options = lineage_options(lineage) | dict(stated) | dict(seen) | dict(asked)
    options["heads"] = _heads("heads", seen["width"], HEADS.get(seen["width"]), stated, asked, where, notes)
    if has_decoder:
        width = seen["decoder_width"]
        options["decoder_heads"] = _heads(
            "decoder_heads", width, _decoder_heads(lineage, width), stated, asked, where, notes
        )
    else:
        # A config has a decoder in any case; nobody builds this one.
        options |= {"decoder_heads": 1, "decoder_width": seen["width"], "decoder_depth": 1, "target_frames": "all"}
    options |= _eps(layout, stated, asked, where, notes)
    options |= _clip(seen, options, {**stated, **asked}, rows, notes)
    options |= _target_options(seen, stated, asked, options, lineage, frames, notes)
    if layout in UNSAID_PIXELS and not {"mean", "std"} & {*stated, *asked}:
        notes.append(
            f"Pixels of mean {list(options['mean'])} and deviation {list(options['std'])}, ImageNet's, for nothing beside the weights says; else "
            f"say --set model.mean=[…] --set model.std=[…]."
        )
    size = SIZES.get((seen["width"], seen["depth"]))
    options["size"] = f"{size}{seen['patch_px']}" if size else "own"
    config = ModelConfig(**options)
    return Facts(config, tuple(notes))


def _of_decoder(key: str) -> bool:
    return key.startswith(("decoder_", "target")) or key == "mask_ratio"


def _check_clash(
    where: str, source: str, options: Mapping[str, Any], known: Mapping[str, Any], *, other: str = "the weights"
) -> None:
    wrong = [key for key, value in options.items() if key in known and known[key] != value]
    if wrong:
        key = wrong[0]
        raise ModelError(
            f"{where}: {key} is {options[key]} by {source}, but {known[key]} by {other}; a model built that way would be silently wrong, so "
            f"correct or leave out the one that is not true."
        )


def _heads(
    key: str,
    width: int,
    rule: int | None,
    stated: Mapping[str, Any],
    asked: Mapping[str, Any],
    where: str,
    notes: list[str],
) -> int:
    """The head count: asked for, stated, or of the published size. Weights of one shape fit any count, so doubt is an error."""
    told, wanted = stated.get(key), asked.get(key)
    if wanted is not None:
        if told is not None and wanted not in (told, rule):
            raise ModelError(
                f"{where}: --set model.{key}={wanted}, but the config beside the weights says {told}"
                f"{f' and published models of width {width} have {rule}' if rule else ''}; leave it out, or correct the config."
            )
        if rule is not None and wanted != rule:
            notes.append(f"{wanted} {key}, as stated; published models of width {width} have {rule}.")
        return int(wanted)
    if told is not None:
        if rule is not None and told != rule:
            raise ModelError(
                f"{where}: {told} {key} by the config beside the weights, but published models of width {width} have {rule}, and a wrong "
                f"count gives wrong features without a message; say which is true: stmae-train convert {where} --set model.{key}={rule} (or {told})."
            )
        return int(told)
    if rule is None:
        raise ModelError(
            f"{where}: the number of {key} of a model of width {width} cannot be read off its weights; say it: stmae-train "
            f"convert {where} --set model.{key}=…"
        )
    notes.append(f"{rule} {key}, as published models of width {width} have.")
    return rule


def _decoder_heads(lineage: str, width: int) -> int | None:
    """mae_st and image MAE have 16 for every size; released MAE-ST weights have heads 64 wide (SPEC-models A1.4, A2, A3.2)."""
    if lineage == "videomae":
        return VIDEOMAE_DECODER_HEADS.get(width)
    if width != 512:
        return None
    return 8 if lineage == "pyslowfast" else 16


def _eps(
    layout: str, stated: Mapping[str, Any], asked: Mapping[str, Any], where: str, notes: list[str]
) -> dict[str, float]:
    if "layer_norm_eps" in asked:
        return {"layer_norm_eps": float(asked["layer_norm_eps"])}
    if "layer_norm_eps" in stated:
        eps = float(stated["layer_norm_eps"])
        if eps != PUBLISHED_EPS:
            notes.append(
                f"LayerNorm eps {eps:g} as config.json says; the published codebases train with {PUBLISHED_EPS:g}."
            )
        return {"layer_norm_eps": eps}
    if layout.startswith("transformers-"):
        raise ModelError(
            f"{where}: transformers keeps head counts and LayerNorm eps in config.json, which is not beside the weights, and its default eps "
            f"(1e-12) is not the published one (1e-6); put config.json there, or say stmae-train convert {where} --set model.layer_norm_eps=…"
        )
    return {"layer_norm_eps": PUBLISHED_EPS}


def _clip(
    seen: Mapping[str, Any], options: Mapping[str, Any], told: Mapping[str, Any], rows: int | None, notes: list[str]
) -> dict[str, Any]:
    """Frames and pixels where the table of positions does not tell them.

    Raises:
        ModelError: the rows of a joint table do not fit the frames.
    """
    told = {**told, **seen}
    found = {"num_frames": int(told.get("num_frames", 16)), "crop_px": int(told.get("crop_px", 224))}
    missing = [key for key in found if key not in told]
    if rows is not None:
        times = found["num_frames"] // options["tubelet_frames"]
        side = round((rows / times) ** 0.5)
        crop_px = side * options["patch_px"]
        if times * side * side != rows or ("crop_px" in told and told["crop_px"] != crop_px):
            raise ModelError(
                f"The table of positions has {rows} rows, which {found['num_frames']} frames in tubelets of {options['tubelet_frames']} do not "
                f"fill with square slices{' of that crop' if 'crop_px' in told else ''}; say --set model.num_frames=…"
            )
        found["crop_px"], missing = crop_px, [key for key in missing if key == "num_frames"]
    if missing:
        notes.append(
            f"{' and '.join(f'{key} {found[key]}' for key in missing)}: the published clip, for the file does not say; else say --set "
            f"model.{missing[0]}=…"
        )
    return found


def _target_options(
    seen: Mapping[str, Any],
    stated: Mapping[str, Any],
    asked: Mapping[str, Any],
    options: Mapping[str, Any],
    lineage: str,
    frames: int,
    notes: list[str],
) -> dict[str, Any]:
    """The target's normalisation, and mae_st's number of target frames, of which each token predicts `frames`."""
    found: dict[str, Any] = {}
    if (
        options.get("target_frames") == "linspace"
        and "decoder_width" in seen
        and "num_target_frames" not in {**stated, **asked}
    ):
        found["num_target_frames"] = frames * options["num_frames"] // options["tubelet_frames"]
    if "decoder_width" in seen and "target" not in {**seen, **stated, **asked}:
        target = "normalized-per-color" if lineage == "videomae" else "normalized-pixels"
        found["target"] = target
        notes.append(
            f"Target '{target}', as the published recipes have it, for the file does not say; else say --set model.target=pixels."
        )
    return found
