"""A small labelled set of real layered clips, sealed as a build seals it, and a recipe that trains on it in a second."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
import torch

from stmae_data.shards import Sample, commit_ledger, commit_shard, sample_json, seal_set, shard_info, shard_name
from stmae_train.config import Recipe, override
from stmae_train.recipes import recipe

torch.set_num_threads(1)

LAYERS = "keyint=64:min-keyint=64:scenecut=0:bframes=3:b-adapt=0:b-pyramid=strict:open-gop=0:cabac=0"
CLASSES = ("right", "left", "down", "up")
STEPS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}


def layered_clip(number: int, *, label: str, num_frames: int = 64, width_px: int = 48, height_px: int = 48) -> bytes:
    """A blob that moves one way over a dark ground, encoded as sets store clips."""
    generator = np.random.default_rng(number)
    rows, columns = np.mgrid[0:height_px, 0:width_px]
    colour = generator.integers(120, 255, 3)
    place = generator.uniform(0, min(height_px, width_px), 2)
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "23", "preset": "veryfast", "x264-params": LAYERS}
        for index in range(num_frames):
            down, right = place + np.array(STEPS[label]) * index * 0.8
            away = np.minimum((rows - down) % height_px, (down - rows) % height_px) ** 2
            away = away + np.minimum((columns - right) % width_px, (right - columns) % width_px) ** 2
            picture = (np.exp(-away / 40)[..., None] * colour).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


def write_set(workspace: Path, name: str, splits: dict[str, int], *, shard_size: int = 8, short: bool = True) -> None:
    """A sealed set with labelled clips; every 5th is shorter than a training clip, every 7th of another size."""
    folder = workspace / "sets" / name
    shards = []
    for split_number, (split, count) in enumerate(sorted(splits.items())):
        for first in range(0, count, shard_size):
            stem, samples, rows = shard_name(split, first // shard_size), [], []
            for number in range(first, min(first + shard_size, count)):
                label = CLASSES[number % len(CLASSES)]
                clip_id = f"{name.replace('-', '')}{split}{number:04d}"
                num_frames = 22 if short and number % 5 == 4 else 64
                size = (64, 48) if short and number % 7 == 6 else (48, 48)
                media = layered_clip(
                    1000 * split_number + number,
                    label=label,
                    num_frames=num_frames,
                    width_px=size[0],
                    height_px=size[1],
                )
                samples.append(Sample(clip_id, sample_json({"clip_id": clip_id}), media))
                rows.append(
                    {
                        "row_id": hashlib.md5(clip_id.encode()).hexdigest(),
                        "split": split,
                        "shard": stem,
                        "ordinal": number - first,
                        "plan_order": number,
                        "clip_id": clip_id,
                        "media_kind": "video",
                        "platform": "file",
                        "platform_id": f"v{number // 2}",
                        "outcome": "written",
                        "annotations": [
                            {
                                "dataset": name,
                                "split": split,
                                "label_raw": label,
                                "label_index": CLASSES.index(label),
                            }
                        ],
                        "stored_num_frames": num_frames,
                        "stored_fps": 30.0,
                        "stored_seconds": num_frames / 30,
                        "stored_width_px": size[0],
                        "stored_height_px": size[1],
                        "stored_sha256": hashlib.sha256(media).hexdigest(),
                    }
                )
            placements, _, _ = commit_shard(folder / f"{stem}.tar", samples)
            for row, placement in zip(rows, placements, strict=True):
                row["media_offset"], row["media_bytes"] = placement.media_offset, placement.media_bytes
                row["json_offset"], row["json_bytes"] = placement.json_offset, placement.json_bytes
            commit_ledger(folder, stem, rows)
            shards.append(shard_info(folder, stem))
    seal_set(
        folder,
        shards,
        name=name,
        version=1,
        created_from={},
        recipe={"layout": "layered-4"},
        counts={},
        parents=[],
        versions={},
    )


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with set `tiny`: 24 labelled training clips and 12 validation clips; and `even`, of one size."""
    workspace = tmp_path_factory.mktemp("small-world")
    write_set(workspace, "tiny", {"train": 24, "val": 12})
    write_set(workspace, "even", {"train": 16}, short=False)
    return workspace


@pytest.fixture(scope="session")
def small_recipe() -> Recipe:
    """The demo recipe, smaller: 4 frames of 16 px, 16 tokens, 4 videos x 2 clips a step, 10 steps."""
    changes = ["model.num_frames=4", "data.num_frames=4", "model.crop_px=16", "data.crop_px=16", "model.patch_px=8"]
    changes += ["model.width=32", "model.depth=2", "model.heads=4", "model.decoder_width=16", "model.decoder_heads=2"]
    changes += ["optim.batch_videos=4", "data.repeats=2", "optim.total_clips=80", "optim.warmup_share=0.2"]
    # Said here, so that the demo recipe can be tuned without touching what these tests hold.
    changes += ["model.mask=random", "model.mask_ratio=0.75", "model.positions=separable", "data.flip=true"]
    changes += [
        "model.decoder_positions=separable",
        "optim.base_lr=1e-3",
        "probe.views=[1, 1]",
        "finetune.views=[1, 1]",
    ]
    return replace(override(recipe("demo"), changes), name="small")


@pytest.fixture(scope="session")
def weights_of() -> ModuleType:
    """The module `weights_of.py`; tests are no package, so it is loaded by its path."""
    name = "stmae_weights_of"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("weights_of.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
