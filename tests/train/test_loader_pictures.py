"""Sets of pictures: image MAE reads them through the loader that reads videos, from building to testing."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stmae_data.build import BuildRequest, build
from stmae_data.errors import SetError
from stmae_data.frames import read_picture
from stmae_data.manifest import load_manifest
from stmae_train.config import Recipe, override
from stmae_train.errors import DataMismatch
from stmae_train.evaluate import EvaluateRequest, evaluate, frame_rule
from stmae_train.finetune import FinetuneRequest, finetune
from stmae_train.loader import CropRule, ReadOptions, SweepLoader, TrainLoader, open_sources
from stmae_train.pretrain import PretrainRequest, pretrain
from stmae_train.probe import ProbeRequest, probe
from stmae_train.views import Boxes, FrameRule, render_pictures

CROP = CropRule((0.2, 1.0), (3 / 4, 4 / 3), True)
CPU = torch.device("cpu")
SYNSETS = ("n01440764", "n01443537")


def coded(number: int, *, reddish: bool, size: tuple[int, int]) -> bytes:
    """A smooth JPEG of its own for every number; the class is its colour."""
    coarse = np.random.default_rng(number).integers(0, 120, (5, 7, 3), dtype=np.uint8)
    coarse[..., 0 if reddish else 2] += 120
    with io.BytesIO() as out:
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=92)
        return out.getvalue()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a set `in1k`, built from official names: 16 training and 6 validation pictures of unlike sizes."""
    root, workspace = tmp_path_factory.mktemp("imagenet"), tmp_path_factory.mktemp("pictures")
    for number in range(22):
        split = "train" if number < 16 else "val"
        path = root / split / SYNSETS[number % 2] / f"{SYNSETS[number % 2]}_{number}.JPEG"
        if split == "val":
            path = path.with_name(f"ILSVRC2012_val_{number:08d}.JPEG")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(coded(number, reddish=number % 2 == 0, size=(40 + 3 * (number % 5), 36 + 4 * (number % 3))))
    build(BuildRequest(workspace, load_manifest("in1k"), roots=(root,)))
    return workspace


@pytest.fixture(scope="module")
def image_recipe(small_recipe: Recipe) -> Recipe:
    """Image MAE, very small: one frame of 16 px, four tokens to a side of two."""
    changes = ["model.lineage=mae", "model.num_frames=1", "data.num_frames=1", "model.tubelet_frames=1"]
    changes += ["data.frame_stride=1", "data.repeats=1", "model.target_frames=all", "model.resize=bicubic"]
    changes += ["model.patch_px=4", "model.positions=sincos-2d", "model.decoder_positions=sincos-2d"]
    changes += ["model.test_crop=0.875", "data.crop_area=[0.2, 1.0]", "data.eval_views=[1, 1]"]
    return replace(override(small_recipe, changes), name="small-image")


def loader(world: Path, rule: FrameRule, **options: Any) -> TrainLoader:
    sources = open_sources(world, ["in1k"])
    return TrainLoader(
        world, sources, rule=rule, crop=CROP, seed=3, batch_videos=4, repeats=2, options=ReadOptions(**options)
    )


def test_pictures_are_the_stored_ones_and_workers_change_nothing(world: Path, image_recipe: Recipe) -> None:
    alone = list(loader(world, FrameRule(1, 1)).batches(0, 5))
    shared = list(loader(world, FrameRule(1, 1), workers=2, prefetch=2).batches(0, 5))
    stored = {
        str(source.index.clip_ids[row]): source.media(int(row))
        for source in open_sources(world, ["in1k"])
        for row in source.rows
    }
    assert {each for batch in alone for each in batch.clip_ids} == set(stored)
    for ours, theirs in zip(alone, shared, strict=True):
        assert ours.clip_ids == theirs.clip_ids and len(ours) == 8
        for clip_id, mine, other in zip(ours.clip_ids, ours.pictures, theirs.pictures, strict=True):
            assert torch.equal(mine, other)
            with Image.open(io.BytesIO(stored[clip_id])) as opened:
                assert np.array_equal(mine.numpy(), np.asarray(opened))
        clips = ours.clips(image_recipe.model, device=CPU)
        assert clips.shape == (8, 3, 1, 16, 16) and torch.equal(clips, theirs.clips(image_recipe.model, device=CPU))
        # The two clips of one picture are two crops of it.
        assert ours.clip_ids[0] == ours.clip_ids[1] and not torch.equal(clips[0], clips[1])


def test_a_picture_stands_still_where_the_recipe_wants_a_clip(world: Path, small_recipe: Recipe) -> None:
    (batch, *_) = loader(world, frame_rule(small_recipe.data)).batches(0, 1)
    clips = batch.clips(small_recipe.model, device=CPU)
    assert clips.shape == (8, 3, 4, 16, 16) and (clips == clips[:, :, :1]).all()
    still = batch.clips(replace(small_recipe.model), device=CPU, boxes=batch.boxes)
    assert torch.equal(still, clips)


@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
@pytest.mark.parametrize("box", [(0, 0, 60, 80), (7, 11, 50, 41), (20, 30, 9, 12)])
def test_crops_of_pictures_are_those_of_pil(resize: str, box: tuple[int, int, int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    whole = Image.fromarray(picture).resize((80, 60), Image.Resampling.BICUBIC)
    top, left, height, width = box
    boxes = Boxes(*(np.array([each]) for each in box), np.array([True]))
    pixels = torch.from_numpy(np.array(whole))
    found = render_pictures([pixels], boxes, crop_px=24, mean=(0.0,) * 3, std=(1.0,) * 3, resize=resize)[0, :, 0] * 255
    cut = whole.crop((left, top, left + width, top + height))
    wanted = cut.resize((24, 24), Image.Resampling[resize.upper()]).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    error = found - torch.from_numpy(np.array(wanted)).permute(2, 0, 1)
    # PIL rounds to whole levels after each of its two passes.
    assert error.abs().max() <= 1.2 and error.abs().mean() < 0.4


def test_test_crops_take_the_recipes_share_of_the_short_side(world: Path, image_recipe: Recipe) -> None:
    from stmae_train.evaluate import collect

    sources = open_sources(world, ["in1k:val"])
    sweep = SweepLoader(world, sources, rule=FrameRule(1, 1), views=1, batch_videos=4)
    found = collect(lambda clips: clips, sweep, image_recipe.model, crops=1, device=CPU)[:, 0]
    for place, row in enumerate(sources[0].rows):
        picture = Image.open(io.BytesIO(sources[0].media(int(row))))
        side = round(0.875 * min(picture.size))
        left, top = round((picture.width - side) / 2), round((picture.height - side) / 2)
        wanted = np.asarray(
            picture.crop((left, top, left + side, top + side)).resize((16, 16), Image.Resampling.BICUBIC)
        )
        mean, std = (torch.tensor(each)[:, None, None] for each in (image_recipe.model.mean, image_recipe.model.std))
        levels = (found[place, :, 0] * std + mean) * 255
        assert (levels - torch.from_numpy(wanted.copy()).permute(2, 0, 1)).abs().mean() < 0.5


def test_image_mae_is_pretrained_probed_finetuned_and_tested(world: Path, image_recipe: Recipe, tmp_path: Path) -> None:
    first = pretrain(
        PretrainRequest(world, ("in1k",), image_recipe, tmp_path / "a", clips=24, device="cpu", pictures=2)
    )
    again = pretrain(
        PretrainRequest(world, ("in1k",), image_recipe, tmp_path / "b", clips=24, device="cpu", workers=1, pictures=0)
    )
    assert first.weights.read_bytes() == again.weights.read_bytes() and first.loss is not None
    changes = ["probe.epochs=30", "probe.batch_videos=8", "probe.lr_grid=[0.03]", "probe.weight_decay_grid=[0.01]"]
    changes += ["probe.linear_optimizer=adamw", "finetune.batch_videos=8", "finetune.epochs=2", "finetune.repeats=1"]
    recipe = override(image_recipe, changes)
    judged = probe(
        ProbeRequest(world, str(first.weights), ("in1k",), "in1k:val", "linear", recipe, tmp_path / "p", device="cpu")
    )
    assert judged["top1"] == 1.0  # the classes are two colours
    tuned = finetune(
        FinetuneRequest(world, str(first.weights), ("in1k",), "in1k:val", recipe, tmp_path / "f", device="cpu")
    )
    tested = evaluate(EvaluateRequest(world, str(tmp_path / "f"), "in1k:val", tmp_path / "e", device="cpu"))
    assert tested["top1"] == tuned["top1"] and tested["num_clips"] == 6


def test_pictures_and_videos_are_not_mixed_in_a_batch(world: Path, small_world: Path) -> None:
    sources = [*open_sources(world, ["in1k"]), *open_sources(small_world, ["tiny"])]
    with pytest.raises(DataMismatch, match=r"mixed of pictures and videos \(in1k:train, tiny:train\)"):
        SweepLoader(world, sources, rule=FrameRule(1, 1), views=1)


@pytest.mark.parametrize("spoiled", [b"", b"words", coded(0, reddish=True, size=(40, 30))[:400]])
def test_a_picture_that_does_not_decode_is_said_in_one_sentence(spoiled: bytes) -> None:
    with pytest.raises(SetError, match=r"The stored picture does not decode \(.*\); verify the set\."):
        read_picture(spoiled)
