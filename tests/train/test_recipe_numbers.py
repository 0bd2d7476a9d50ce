"""The numbers of every published recipe against tables typed from SPEC-models B.

Rates are resolved: what the optimizer is given at its peak and at its end. Epochs are passes over the videos; pre-training counts every
repeat as an epoch, as B1 does.
"""

from __future__ import annotations

import pytest

from stmae_train import recipes

K400, SSV2, IN1K = 240_000, 168_913, 1_281_167

# B1. Clip is the gradient's, stride the frames'; warm-up and epochs are effective.
PRETRAINING = """
recipe                 batch epochs videos peak    end     warmup clip repeats stride flip mask   ratio
mae-st-b16               512   1600 K400   1.6e-3  0          120 .02  4       4      yes  random .9
mae-st-l16               512   1600 K400   1.6e-3  0          120 .02  4       4      yes  random .9
mae-st-h16               512   1600 K400   1.6e-3  0          240 .02  4       4      yes  random .9
mae-st-l16-repository    256    400 K400   1.6e-3  0           80 .02  4       4      yes  random .9
pyslowfast-b16           512    800 K400   1.6e-3  1.6e-5     120 .02  4       4      yes  random .9
pyslowfast-l16           512    800 K400   1.6e-3  1.6e-5     120 .02  4       4      yes  random .9
pyslowfast-h16           512   1600 K400   1.6e-3  1.6e-5     240 .02  4       4      yes  random .9
mae-b16                 4096   1600 IN1K   2.4e-3  0           40 0    1       1      yes  random .75
mae-l16                 4096   1600 IN1K   2.4e-3  0           40 0    1       1      yes  random .75
mae-h14                 4096   1600 IN1K   2.4e-3  0           40 0    1       1      yes  random .75
videomae-s16            1024   1600 K400   6e-4    4e-5        40 0    1       4      yes  tube   .9
videomae-b16            1024   1600 K400   6e-4    4e-5        40 0    1       4      yes  tube   .9
videomae-l16            1024   1600 K400   6e-4    4e-5        40 0    1       4      yes  tube   .9
videomae-h16            1024   1600 K400   6e-4    4e-5        40 0    1       4      yes  tube   .9
videomae-ssv2-s16       1024   2400 SSV2   6e-4    4e-5        40 0    1       2      no   tube   .9
videomae-ssv2-b16       1024   2400 SSV2   6e-4    4e-5        40 0    1       2      no   tube   .9
videomae-ssv2-l16       1024   2400 SSV2   6e-4    4e-5        40 0    1       2      no   tube   .9
videomae-ucf101-b16      192   3200 9537   2.25e-4 7.5e-6      40 0    1       4      yes  tube   .75
videomae-hmdb51-b16      192   4800 3570   2.25e-4 7.5e-6      40 0    1       2      yes  tube   .75
"""

# B2 to B4. MAE-ST counts every repeat of a pass as an epoch, the others count passes; drop is the drop path, head the dropout before it.
# The rates of mae-st are those of its repository's rule, 2.4e-3 x clips / 256.
FINETUNING = """
recipe                      opt   batch peak     end  decay epochs repeats warmup wd   drop head rand views smooth mixup erase clip flip
mae-st-b16                  adamw   256 4.8e-3   1e-6  .65    150  2       5      .05  .1   .3   7x2  7x3   .1     .8    .25   5    yes
mae-st-l16                  adamw   256 4.8e-3   1e-6  .75    100  2       5      .05  .2   .3   7x2  7x3   .1     .8    .25   5    yes
mae-st-h16                  adamw   256 2.4e-3   1e-6  .8      75  1       5      .05  .2   .5   7x2  7x3   .1     .8    .25   5    yes
mae-st-l16-repository       adamw   256 4.8e-3   1e-6  .75    100  2       5      .05  .2   .3   7x2  10x3  .1     .8    .25   5    yes
mae-st-l16-intermediate     adamw   256 8e-4     1e-6  .75     40  2       5      .05  .2   .3   7x2  7x3   .1     .8    .25   5    yes
mae-st-h16-intermediate     adamw   256 8e-4     1e-6  .8      30  1       5      .05  .3   .5   7x2  7x3   .1     .8    .25   5    yes
pyslowfast-b16              adamw   768 9.6e-3   1e-6  .65    150  2       5      .05  .1   .3   7x2  7x3   .1     .8    .25   5    yes
pyslowfast-l16              adamw   256 4.8e-3   1e-6  .75    100  2       5      .05  .2   .3   7x2  7x3   .1     .8    .25   5    yes
pyslowfast-h16              adamw   256 4.8e-3   1e-6  .8      75  1       5      .05  .2   .5   7x2  7x3   .1     .8    .25   5    yes
mae-b16                     adamw  1024 2e-3     1e-6  .65    100  1       5      .05  .1   0    9x2  1x1   .1     .8    .25   0    yes
mae-l16                     adamw  1024 4e-3     1e-6  .75     50  1       5      .05  .2   0    9x2  1x1   .1     .8    .25   0    yes
mae-h14                     adamw  1024 4e-3     1e-6  .75     50  1       5      .05  .3   0    9x2  1x1   .1     .8    .25   0    yes
mae-b16-scratch             adamw  4096 1.6e-3   1e-6  1      300  1       20     .3   .1   0    9x2  1x1   .1     .8    0     0    yes
mae-l16-scratch             adamw  4096 1.6e-3   1e-6  1      200  1       20     .3   .2   0    9x2  1x1   .1     .8    0     0    yes
mae-h14-scratch             adamw  4096 1.6e-3   1e-6  1      200  1       20     .3   .2   0    9x2  1x1   .1     .8    0     0    yes
mae-st-ssv2-l16             sgd     256 .64      0     .75     40  1       3      1e-4 .2   .5   9x2  1x3   .1     .8    0     0    no
mae-st-ssv2-h16             sgd     256 .32      0     .85     40  1       3      1e-4 .2   .5   9x2  1x3   .1     .8    0     0    no
mae-st-ava-l16              sgd     128 7.2      0     .75     30  1       5      1e-8 .2   .5   0x2  1x1   0      0     0     0    yes
mae-st-ava-h16              sgd     128 4.8      0     .85     30  1       5      1e-8 .2   .5   0x2  1x1   0      0     0     0    yes
videomae-s16                adamw   512 2e-3     2e-6  .7     150  2       5      .05  .1   0    7x4  5x3   .1     .8    .25   0    yes
videomae-b16                adamw   512 1e-3     2e-6  .75     75  2       5      .05  .1   0    7x4  5x3   .1     .8    .25   0    yes
videomae-l16                adamw   512 4e-3     2e-6  .75     50  2       5      .05  .2   .5   7x4  5x3   .1     .8    .25   0    yes
videomae-h16                adamw   512 2e-3     2e-6  .75     50  2       5      .05  .2   .5   7x4  5x3   .1     .8    .25   0    yes
videomae-ssv2-s16           adamw   512 2e-3     2e-6  .7      40  2       5      .05  .1   0    7x4  2x3   .1     .8    .25   0    no
videomae-ssv2-b16           adamw   512 1e-3     2e-6  .75     40  2       5      .05  .1   0    7x4  2x3   .1     .8    .25   0    no
videomae-ssv2-l16           adamw   512 1e-3     2e-6  .75     30  2       5      .05  .2   .5   7x4  2x3   .1     .8    .25   0    no
videomae-ucf101-b16         adamw   128 2.5e-4   5e-7  .7     100  2       5      .05  .2   0    7x4  5x3   .1     .8    .25   0    yes
videomae-hmdb51-b16         adamw   128 5e-4     5e-7  .7      50  2       5      .05  .2   0    7x4  10x3  .1     .8    .25   0    yes
videomae-ava-b16            adamw   128 1.25e-4  5e-7  .75     30  1       5      .05  .2   0    0x4  1x1   0      0     0     0    yes
videomae-ava-l16            adamw   128 1.25e-4  5e-7  .75     30  1       5      .05  .2   0    0x4  1x1   0      0     0     0    yes
videomae-ava-h16            adamw   128 2.5e-4   5e-7  .8      20  1       5      .05  .2   0    0x4  1x1   0      0     0     0    yes
videomae-ava-b16-labelled   adamw   128 2.5e-4   5e-7  .75     30  1       5      .05  .2   0    0x4  1x1   0      0     0     0    yes
videomae-ava-l16-labelled   adamw   128 2.5e-4   5e-7  .75     20  1       5      .05  .2   0    0x4  1x1   0      0     0     0    yes
videomae-ava-h16-labelled   adamw   128 2.5e-4   5e-7  .8      20  1       5      .05  .2   0    0x4  1x1   0      0     0     0    yes
"""

# A0, A1.4, A2, A3.2: width, depth and heads of the encoder and of the decoder.
SHAPES = """
size  width depth heads  mae-st       pyslowfast  mae          videomae
s16   384   12    6      -            -           -            192,4,3
b16   768   12    12     512,4,16     512,4,8     512,8,16     384,4,6
l16   1024  24    16     512,4,16     512,4,8     512,8,16     512,12,8
h16   1280  32    16     512,4,16     512,4,8     -            640,12,8
h14   1280  32    16     -            -           512,8,16     -
"""

OWN = ("demo", "mae-st-s16-112")
VARIANTS = ("-half-decoded", "-cross-attention", "-dense-encoder")


def rows(table: str) -> list[dict[str, str]]:
    head, *lines = (line.split() for line in table.strip().splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def known(cell: str) -> float:
    return float({"K400": K400, "SSV2": SSV2, "IN1K": IN1K}.get(cell, cell))


@pytest.mark.parametrize("row", rows(PRETRAINING), ids=lambda row: row["recipe"])
def test_pre_training_is_as_published(row: dict[str, str]) -> None:
    recipe = recipes.recipe(row["recipe"])
    optim, data, model = recipe.optim, recipe.data, recipe.model
    videos, is_videomae = known(row["videos"]), row["recipe"].startswith("videomae")
    found = {
        "batch": optim.batch_videos,
        "epochs": optim.total_clips / videos,
        "peak": optim.peak_lr(repeats=data.repeats),
        "end": optim.end_lr(repeats=data.repeats),
        "warmup": optim.warmup_share * optim.total_clips / videos,
        "clip": optim.grad_clip,
        "repeats": data.repeats,
        "stride": data.frame_stride,
        "ratio": model.mask_ratio,
    }
    assert found == pytest.approx({name: float(row[name]) for name in found})
    assert model.mask == row["mask"] and data.flip == (row["flip"] == "yes")
    assert (optim.betas, optim.eps, optim.weight_decay, optim.schedule) == ((0.9, 0.95), 1e-8, 0.05, "cosine")
    assert optim.decay_rule == ("not-1d-nor-tokens" if is_videomae else "not-1d")
    image = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = (0.45,) * 3, (0.225,) * 3
    assert (model.mean, model.std) == (plain if model.lineage in ("mae_st", "pyslowfast") else image)
    areas = {"mae_st": (0.5, 1.0), "pyslowfast": (0.5, 1.0), "mae": (0.2, 1.0), "videomae": (0.44, 1.0)}
    assert data.crop_area == areas[model.lineage]
    assert model.clip_frames == (1 if model.lineage == "mae" else 16) and model.crop_px == 224


@pytest.mark.parametrize("row", rows(FINETUNING), ids=lambda row: row["recipe"])
def test_fine_tuning_is_as_published(row: dict[str, str]) -> None:
    recipe = recipes.recipe(row["recipe"])
    tuning, is_maest = recipe.finetune, recipe.model.lineage in ("mae_st", "pyslowfast")
    found = {
        "batch": tuning.batch_videos,
        "peak": tuning.peak_lr(),
        "end": tuning.end_lr(),
        "decay": tuning.layer_decay,
        "epochs": tuning.epochs * (tuning.repeats if is_maest else 1),
        "repeats": tuning.repeats,
        "warmup": tuning.warmup_epochs,
        "wd": tuning.weight_decay,
        "drop": tuning.drop_path,
        "head": tuning.head_dropout,
        "smooth": tuning.smoothing,
        "mixup": tuning.mixup,
        "erase": tuning.erasing_prob,
        "clip": tuning.grad_clip,
    }
    assert found == pytest.approx({name: float(row[name]) for name in found})
    texts = {
        "opt": tuning.optimizer,
        "rand": f"{tuning.randaug_magnitude}x{tuning.randaug_ops}",
        "views": f"{tuning.views[0]}x{tuning.views[1]}",
        "flip": "yes" if tuning.flip else "no",
    }
    assert texts == {name: row[name] for name in texts}
    is_scratch = row["recipe"].endswith("-scratch")
    assert tuning.betas == ((0.9, 0.95) if is_scratch else (0.9, 0.999))
    assert tuning.ema_decay == (0.9999 if is_scratch else 0.0)
    assert tuning.cutmix == (1.0 if tuning.mixup else 0.0) and tuning.crop_area == (0.08, 1.0)
    assert tuning.pooling == (
        "mean-norm" if "mae-st" in row["recipe"] or "pysl" in row["recipe"] else "mean-fresh-norm"
    )
    # A1.13: PyTorch's uniform bias in mae_st, 0.001 x 0.02 in PySlowFast as for its weights; zero in the others.
    assert tuning.head_bias == {"mae_st": "uniform", "pyslowfast": "scaled"}.get(recipe.model.lineage, "zero")
    assert tuning.head_init_std == 2e-5
    assert (tuning.task == "detection") == ("-ava-" in row["recipe"])
    assert (tuning.frames == "segments") == ("-ssv2-" in row["recipe"])


def test_linear_probes_are_as_published() -> None:
    """B3: image MAE with LARS at 0.1 x 16384 / 256 on the class token, VideoMAE on SSv2 with SGD at 0.1 x 1024 / 256."""
    for name in ("mae-b16", "mae-l16", "mae-h14"):
        probe = recipes.recipe(name).probe
        assert (probe.linear_optimizer, probe.batch_videos, probe.epochs, probe.feature) == ("lars", 16384, 90, "class")
        assert (probe.lr_grid, probe.weight_decay_grid, probe.warmup_share * 90) == ((6.4,), (0.0,), 10)
    for name in ("videomae-ssv2-s16", "videomae-ssv2-b16", "videomae-ssv2-l16"):
        probe = recipes.recipe(name).probe
        assert (probe.linear_optimizer, probe.batch_videos, probe.epochs, probe.feature) == ("sgd", 1024, 100, "mean")
        assert (probe.lr_grid, probe.weight_decay_grid, probe.warmup_share * 100) == ((0.4,), (0.0,), 10)


def test_shapes_are_as_published() -> None:
    shapes = {row["size"]: row for row in rows(SHAPES)}
    for row in rows(PRETRAINING) + rows(FINETUNING):
        model = recipes.recipe(row["recipe"]).model
        wanted = shapes[model.size]
        assert (model.width, model.depth, model.heads) == tuple(int(wanted[key]) for key in ("width", "depth", "heads"))
        decoder = model.decoder_width, model.decoder_depth, model.decoder_heads
        assert ",".join(map(str, decoder)) == wanted[model.lineage.replace("_", "-")], row["recipe"]
        assert model.patch_px == int(model.size[1:])


def test_every_recipe_is_in_a_table() -> None:
    told = {row["recipe"] for row in rows(PRETRAINING) + rows(FINETUNING)}
    rest = set(recipes.names()) - told
    assert {name for name in rest if not name.endswith(VARIANTS)} == set(OWN)
    for name in rest - set(OWN):  # a variant differs in what it is named after, and in nothing else
        base = recipes.recipe(next(name.removesuffix(end) for end in VARIANTS if name.endswith(end)))
        variant = recipes.recipe(name)
        assert (variant.data, variant.optim, variant.finetune) == (base.data, base.optim, base.finetune)
        changed = {
            key for key in base.model.__dataclass_fields__ if getattr(base.model, key) != getattr(variant.model, key)
        }
        assert changed in ({"decoded_share"}, {"decoder_attention"}, {"dense_encoder"})
