"""MAE-ST as its two codebases train it: the stand-alone repository, and PySlowFast, from which the released weights are (SPEC-models B1, B2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stmae_train.config import DataConfig, FinetuneConfig, OptimConfig, Recipe
from stmae_train.recipes.published import K400_VIDEOS, mae_st_h16, mae_st_l16, published_model

__all__ = [
    "mae_st_h16_intermediate",
    "mae_st_l16_intermediate",
    "mae_st_l16_repository",
    "pyslowfast_b16",
    "pyslowfast_h16",
    "pyslowfast_l16",
]

PYSLOWFAST_NODES = 16  # 32 videos each are the paper's batch of 512; rates are given per node


def mae_st_l16_repository() -> Recipe:
    """MAE-ST ViT-L/16 as the scripts of its own repository train it: 400 effective epochs, fp32, 10 x 3 test views."""
    return Recipe(
        name="mae-st-l16-repository",
        source=(
            "facebookresearch/mae_st c5dec1bc01: 100 passes of the loader with 4 repeats, 1.6e-3 x videos / 256 for 2 videos on each of 128 "
            "GPUs, warm-up 20 passes as its launcher has it (its docs say 5); fine-tuning 50 passes with 2 repeats, 2.4e-3 x clips / 256."
        ),
        model=published_model("mae_st", "l16"),
        data=DataConfig(sampling="published", eval_views=(10, 3)),
        optim=OptimConfig(
            batch_videos=256,
            total_clips=400 * K400_VIDEOS,
            base_lr=1.6e-3,
            lr_rule="per-256-videos",
            warmup_share=20 / 100,
            grad_clip=0.02,
            precision="fp32",
        ),
        finetune=FinetuneConfig(
            epochs=50, layer_decay=0.75, drop_path=0.2, head_dropout=0.3, head_bias="uniform", views=(10, 3)
        ),
    )


def _pyslowfast(size: str, *, loader_epochs: int, warmup: int, finetune: dict[str, Any]) -> Recipe:
    values: dict[str, Any] = {"lr_rule": "absolute", "base_lr": 3e-4 * PYSLOWFAST_NODES, "head_bias": "scaled"}
    return Recipe(
        name=f"pyslowfast-{size}",
        source=(
            "MAE-ST in facebookresearch/SlowFast 287ec00768, from which the released weights are: rates per node (1e-4, end 1e-6) times the 16 "
            "nodes of 32 videos that make the paper's batch of 512. The nodes of fine-tuning are not published and are taken to be 16 too; "
            "its batch is from memory."
        ),
        model=published_model("pyslowfast", size),
        data=DataConfig(sampling="published", eval_views=(7, 3)),
        optim=OptimConfig(
            batch_videos=32 * PYSLOWFAST_NODES,
            total_clips=4 * loader_epochs * K400_VIDEOS,
            base_lr=1e-4 * PYSLOWFAST_NODES,
            lr_rule="absolute",
            min_lr=1e-6 * PYSLOWFAST_NODES,
            warmup_share=warmup / loader_epochs,
            grad_clip=0.02,
        ),
        finetune=FinetuneConfig(**(values | finetune)),
    )


def pyslowfast_b16() -> Recipe:
    """MAE-ST ViT-B/16 as released: 800 effective epochs; fine-tuning 75 passes with 2 repeats."""
    options: dict[str, Any] = {
        "batch_videos": 768,
        "base_lr": 6e-4 * PYSLOWFAST_NODES,
        "epochs": 75,
        "layer_decay": 0.65,
    }
    return _pyslowfast("b16", loader_epochs=200, warmup=30, finetune=options | {"drop_path": 0.1})


def pyslowfast_l16() -> Recipe:
    """MAE-ST ViT-L/16 as released: 800 effective epochs; fine-tuning 50 passes with 2 repeats."""
    return _pyslowfast("l16", loader_epochs=200, warmup=30, finetune={"epochs": 50, "layer_decay": 0.75})


def pyslowfast_h16() -> Recipe:
    """MAE-ST ViT-H/16 as released: 1600 effective epochs; fine-tuning 75 passes without repeats."""
    options: dict[str, Any] = {"epochs": 75, "repeats": 1, "layer_decay": 0.8, "head_dropout": 0.5}
    return _pyslowfast("h16", loader_epochs=400, warmup=60, finetune=options)


def _intermediate(base: Recipe, **options: Any) -> Recipe:
    return replace(
        base,
        name=f"{base.name}-intermediate",
        source=(
            "MAE-ST (Feichtenhofer et al. 2022), fine-tuning on K400 from weights that were fine-tuned on K600 before: lr 8e-4, 40 effective "
            f"epochs ViT-L, 30 ViT-H. Everything else is {base.name}."
        ),
        finetune=replace(base.finetune, base_lr=8e-4, lr_rule="absolute", **options),
    )


def mae_st_l16_intermediate() -> Recipe:
    """MAE-ST ViT-L/16 after intermediate fine-tuning on K600: 20 passes with 2 repeats."""
    return _intermediate(mae_st_l16(), epochs=20)


def mae_st_h16_intermediate() -> Recipe:
    """MAE-ST ViT-H/16 after intermediate fine-tuning on K600: 30 passes, drop path 0.3."""
    return _intermediate(mae_st_h16(), epochs=30, drop_path=0.3)
