"""Recipes of the published models, and of the small world.

Published numbers follow SPEC-models A and B; `source` says which paper table or code they are from. The lineage
decides the habits of the model (`config.ModelConfig`), the size decides its widths.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stmae_train.config import DataConfig, FinetuneConfig, ModelConfig, OptimConfig, ProbeConfig, Recipe
from stmae_train.errors import ConfigError

__all__ = [
    "K400_VIDEOS",
    "demo",
    "lineage_options",
    "mae_b16",
    "mae_finetune",
    "mae_h14",
    "mae_l16",
    "mae_st_b16",
    "mae_st_h16",
    "mae_st_l16",
    "mae_st_s16_112",
    "published_model",
    "videomae_b16",
    "videomae_finetune",
    "videomae_h16",
    "videomae_l16",
    "videomae_s16",
]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Size name: encoder width, depth, heads.
SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "h": (1280, 32, 16)}

# K400 train as the MAE-ST paper counts it (Table 3); one effective epoch draws one clip of each video.
K400_VIDEOS = 240_000
IN1K_IMAGES = 1_281_167


def lineage_options(lineage: str) -> dict[str, Any]:
    """What sets a codebase apart, as options of `ModelConfig` (SPEC-models A0-A3).

    Args:
        lineage: "mae_st", "pyslowfast" (the released MAE-ST weights), "videomae" or "mae".

    Raises:
        ConfigError: no such lineage.
    """
    options: dict[str, dict[str, Any]] = {
        "mae_st": {},
        # Released MAE-ST weights: head dim 64 in the decoder, joint decoder positions, first frame as the target.
        "pyslowfast": {
            "decoder_heads": 8,
            "decoder_qkv": "fused",
            "decoder_class": "encoder",
            "decoder_positions": "joint",
            "target_frames": "first",
        },
        "videomae": {
            "qkv": "fused",
            "qkv_bias": "qv",
            "decoder_qkv": "fused",
            "class_token": False,
            "positions": "sincos-1d",
            "decoder_positions": "sincos-1d",
            "decoder_embed_bias": False,
            "mask": "tube",
            "target": "normalized-per-color",
            "target_range": "unit",
            "target_frames": "all",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        },
        "mae": {
            "qkv": "fused",
            "decoder_qkv": "fused",
            "decoder_class": "encoder",
            "positions": "sincos-2d",
            "decoder_positions": "sincos-2d",
            "decoder_depth": 8,
            "num_frames": 1,
            "tubelet_frames": 1,
            "mask_ratio": 0.75,
            "target_frames": "all",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "resize": "bicubic",
            "test_crop": 0.875,
        },
    }
    if lineage not in options:
        raise ConfigError(f"There is no lineage '{lineage}'; choose one of {', '.join(options)}.")
    return {"lineage": lineage, **options[lineage]}


def published_model(lineage: str, size: str, **options: Any) -> ModelConfig:
    """A model of a lineage, in the widths of a size such as "b16", with other options where given."""
    width, depth, heads = SIZES[size[0]]
    return ModelConfig(
        **{**lineage_options(lineage), "size": size, "width": width, "depth": depth, "heads": heads} | options
    )


def _mae_st(size: str, *, finetune: FinetuneConfig, warmup_epochs: int = 120) -> Recipe:
    return Recipe(
        name=f"mae-st-{size}",
        source=(
            "MAE-ST (Feichtenhofer et al. 2022): pre-training appendix and Table 3, 1600 effective epochs of K400, "
            "batch 512 counted in videos; decoder and targets as in facebookresearch/mae_st c5dec1bc01; patch 16 for "
            "every size as the paper says (the code's huge builder uses 14)."
        ),
        model=published_model("mae_st", size),
        data=DataConfig(sampling="aligned", eval_views=(7, 3)),
        optim=OptimConfig(
            batch_videos=512,
            total_clips=1600 * K400_VIDEOS,
            base_lr=1.6e-3,
            lr_rule="absolute",
            warmup_share=warmup_epochs / 1600,
            grad_clip=0.02,
        ),
        finetune=replace(finetune, head_bias="uniform"),
    )


def mae_st_b16() -> Recipe:
    """MAE-ST ViT-B/16, 16 frames, as published; fine-tuning 150 effective epochs with layer decay 0.65."""
    return _mae_st("b16", finetune=FinetuneConfig(epochs=75, layer_decay=0.65, drop_path=0.1, head_dropout=0.3))


def mae_st_l16() -> Recipe:
    """MAE-ST ViT-L/16, 16 frames, as published; fine-tuning as in the mae_st repository."""
    return _mae_st("l16", finetune=FinetuneConfig(epochs=50, layer_decay=0.75, drop_path=0.2, head_dropout=0.3))


def mae_st_h16() -> Recipe:
    """MAE-ST ViT-H/16, 16 frames, as published; fine-tuning 75 epochs without repeats."""
    return _mae_st(
        "h16",
        finetune=FinetuneConfig(epochs=75, repeats=1, layer_decay=0.8, drop_path=0.2, head_dropout=0.5),
        warmup_epochs=240,  # 60 of 400 passes of the loader, four effective epochs each
    )


def mae_st_s16_112() -> Recipe:
    """A proxy for data studies: ViT-S at 112 px, decoder 192 wide and 4 deep; everything else as MAE-ST."""
    return Recipe(
        name="mae-st-s16-112",
        source=(
            "Own proxy scale for data studies: MAE-ST's recipe with VideoMAE's ViT-S width, 112 px and a decoder half "
            "as wide as the encoder; not published, so its scores compare with themselves alone."
        ),
        model=published_model("mae_st", "s16", crop_px=112, decoder_width=192, decoder_heads=6),
        data=DataConfig(crop_px=112, eval_views=(2, 1)),
        optim=OptimConfig(
            batch_videos=128,
            total_clips=12_800_000,
            base_lr=8e-4,
            lr_rule="absolute",
            schedule="wsd",
            warmup_share=0.05,
            grad_clip=0.02,
        ),
        probe=ProbeConfig(attentive_heads=6),
        finetune=FinetuneConfig(batch_videos=64, layer_decay=0.65, drop_path=0.1, views=(2, 1)),
    )


def _videomae(size: str, *, decoder_depth: int, finetune: FinetuneConfig) -> Recipe:
    width, _, heads = SIZES[size[0]]
    options = {"decoder_width": width // 2, "decoder_heads": max(heads // 2, 3), "decoder_depth": decoder_depth}
    return Recipe(
        name=f"videomae-{size}",
        source=(
            "VideoMAE (Tong et al. 2022): K400 pre-training, 1600 epochs, batch 1024 (paper), lr 1.5e-4 x batch / 256, "
            "MCG-NJU/VideoMAE 14ef8d8562; flip as in the paper (the code has none)."
        ),
        model=published_model("videomae", size, **options),
        # MultiScaleCrop's scales 1 to 0.66 per side are areas 0.44 to 1.
        data=DataConfig(repeats=1, crop_area=(0.44, 1.0), eval_views=(5, 3)),
        optim=OptimConfig(
            batch_videos=1024,
            total_clips=1600 * K400_VIDEOS,
            base_lr=1.5e-4,
            lr_rule="per-256-videos",
            min_lr=1e-5,
            warmup_share=40 / 1600,
            decay_rule="not-1d-nor-tokens",
        ),
        finetune=finetune,
    )


def videomae_finetune(**options: Any) -> FinetuneConfig:
    """VideoMAE's fine-tuning on K400 (SPEC-models B2), with other values where given."""
    values: dict[str, Any] = {
        "batch_videos": 512,
        "repeats": 2,
        "base_lr": 1e-3,
        "lr_rule": "per-256-videos",
        "min_lr_rule": "per-256-videos",
        "layer_decay": 0.75,
        "grad_clip": 0.0,
        "drop_path": 0.1,
        "head_dropout": 0.0,
        "pooling": "mean-fresh-norm",
        "randaug_ops": 4,
        "views": (5, 3),
    }
    return FinetuneConfig(**(values | options))


def videomae_s16() -> Recipe:
    """VideoMAE ViT-S/16; fine-tuning 150 epochs with layer decay 0.7."""
    return _videomae("s16", decoder_depth=4, finetune=videomae_finetune(epochs=150, layer_decay=0.7))


def videomae_b16() -> Recipe:
    """VideoMAE ViT-B/16; fine-tuning 75 epochs."""
    return _videomae("b16", decoder_depth=4, finetune=videomae_finetune(epochs=75, base_lr=5e-4))


def videomae_l16() -> Recipe:
    """VideoMAE ViT-L/16 with the 12-block decoder of its scripts; fine-tuning 50 epochs."""
    options = {"epochs": 50, "base_lr": 2e-3, "drop_path": 0.2, "head_dropout": 0.5}
    return _videomae("l16", decoder_depth=12, finetune=videomae_finetune(**options))


def videomae_h16() -> Recipe:
    """VideoMAE ViT-H/16 with the 12-block decoder of its scripts; fine-tuning 50 epochs."""
    options = {"epochs": 50, "drop_path": 0.2, "head_dropout": 0.5}
    return _videomae("h16", decoder_depth=12, finetune=videomae_finetune(**options))


def _mae(size: str, *, patch_px: int, finetune: FinetuneConfig) -> Recipe:
    return Recipe(
        name=f"mae-{size}",
        source=(
            "Image MAE (He et al. 2021): 1600 epochs of ImageNet-1k, batch 4096, lr 1.5e-4 x batch / 256, random 75 % "
            "mask, normalised pixels; facebookresearch/mae efb2a8062c."
        ),
        model=published_model("mae", size, patch_px=patch_px),
        data=DataConfig(num_frames=1, frame_stride=1, repeats=1, crop_area=(0.2, 1.0), eval_views=(1, 1)),
        optim=OptimConfig(
            batch_videos=4096,
            total_clips=1600 * IN1K_IMAGES,
            base_lr=1.5e-4,
            lr_rule="per-256-videos",
            warmup_share=40 / 1600,
        ),
        # Linear probe: LARS, 0.1 x 16384 / 256 = 6.4, no decay, warm-up 10 of 90 epochs (paper Table 10).
        probe=ProbeConfig(
            batch_videos=16384,
            epochs=90,
            lr_grid=(6.4,),
            weight_decay_grid=(0.0,),
            warmup_share=10 / 90,
            linear_optimizer="lars",
            feature="class",
            flip=True,
            views=(1, 1),
        ),
        finetune=finetune,
    )


def mae_finetune(**options: Any) -> FinetuneConfig:
    """Image MAE's fine-tuning of ViT-L (SPEC-models B2), with other values where given."""
    values: dict[str, Any] = {
        "batch_videos": 1024,
        "repeats": 1,
        "base_lr": 1e-3,
        "lr_rule": "per-256-videos",
        "grad_clip": 0.0,
        "head_dropout": 0.0,
        "pooling": "mean-fresh-norm",
        "randaug_magnitude": 9,
        "views": (1, 1),
    }
    return FinetuneConfig(**(values | options))


def mae_b16() -> Recipe:
    """Image MAE ViT-B/16; fine-tuning 100 epochs with layer decay 0.65."""
    options = {"epochs": 100, "base_lr": 5e-4, "layer_decay": 0.65, "drop_path": 0.1}
    return _mae("b16", patch_px=16, finetune=mae_finetune(**options))


def mae_l16() -> Recipe:
    """Image MAE ViT-L/16; fine-tuning 50 epochs."""
    return _mae("l16", patch_px=16, finetune=mae_finetune(epochs=50, drop_path=0.2))


def mae_h14() -> Recipe:
    """Image MAE ViT-H/14; fine-tuning 50 epochs."""
    return _mae("h14", patch_px=14, finetune=mae_finetune(epochs=50, drop_path=0.3))


def demo() -> Recipe:
    """The small world: 8 frames of 32 px, 64 tokens, minutes on a CPU.

    Where the numbers come from: trials on the small world's clips. Hiding whole time slices (MAE-ST's "time-only" masks)
    makes the motion, which is all that tells its classes apart, the thing to be predicted; fixed sin-cos positions leave
    the first plateau several times earlier than learned ones at this length; small steps beat large ones at equal clips.
    """
    return Recipe(
        name="demo",
        source="Own: sized so that the small world trains in minutes on two CPU cores; no published counterpart.",
        model=ModelConfig(
            size="demo",
            width=96,
            depth=3,
            heads=4,
            decoder_width=48,
            decoder_depth=1,
            decoder_heads=3,
            num_frames=8,
            crop_px=32,
            tubelet_frames=2,
            patch_px=8,
            class_token=False,
            positions="sincos-3d",
            decoder_positions="sincos-3d",
            mask="frame",
            mask_ratio=0.5,
            target="pixels",
            target_frames="all",
            mean=(0.25, 0.25, 0.25),
            std=(0.25, 0.25, 0.25),
        ),
        data=DataConfig(num_frames=8, crop_px=32, crop_area=(0.5, 1.0), flip=False, repeats=4, eval_views=(3, 1)),
        optim=OptimConfig(
            batch_videos=8,
            total_clips=60_000,
            base_lr=2e-3,
            lr_rule="absolute",
            warmup_share=0.1,
            grad_clip=1.0,
            precision="fp32",
        ),
        probe=ProbeConfig(
            batch_videos=64,
            epochs=150,
            lr_grid=(1e-3, 3e-3, 1e-2),
            weight_decay_grid=(0.05, 0.5),
            select_share=0.2,
            warmup_share=0.1,
            attentive_heads=4,
            train_views=4,
            views=(3, 1),
            precision="fp32",
        ),
        finetune=FinetuneConfig(
            batch_videos=16,
            epochs=10,
            repeats=2,
            warmup_epochs=1.0,
            base_lr=1e-3,
            lr_rule="absolute",
            grad_clip=1.0,
            drop_path=0.0,
            head_dropout=0.0,
            mixup=0.0,
            cutmix=0.0,
            randaug_magnitude=0,
            erasing_prob=0.0,
            crop_area=(0.5, 1.0),
            flip=False,
            views=(3, 1),
            precision="fp32",
        ),
    )
