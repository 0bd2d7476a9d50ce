"""Two tables of the demo recipe as one JSON line: clips per second by clips drawn per opened video, and the encoder of visible tokens
against one of all tokens. Variants run in turn within every round; figures are medians.

    python tests/bench/bench_tables.py [--rounds 5] [--set optim.precision=bf16 ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from stmae_train.config import Recipe, override
from stmae_train.loader import CropRule, ReadOptions, TrainLoader, open_sources
from stmae_train.masks import draw_masks
from stmae_train.model import MaskedAutoencoder
from stmae_train.optim import adamw, parameter_groups
from stmae_train.recipes import recipe
from stmae_train.runlog import autocast, forward_flops
from stmae_train.views import FrameRule

REPEATS = (1, 2, 4)
CLIPS = 32  # in a step, however many videos they come from
VIDEOS = 32


def small_world() -> ModuleType:
    """What the tests make their clips with."""
    path = Path(__file__).parents[1] / "train" / "conftest.py"
    spec = importlib.util.spec_from_file_location("stmae_small_world", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stepper(found: Recipe, *, is_dense: bool) -> Callable[[torch.Tensor], None]:
    """One training step on clips that are there."""
    model = MaskedAutoencoder(replace(found.model, dense_encoder=is_dense), seed=0)
    optimizer = adamw(parameter_groups(model, weight_decay=0.05))

    def step(clips: torch.Tensor) -> None:
        mask = draw_masks(found.model, seed=0, sample_numbers=range(len(clips)))
        with autocast(clips.device, found.optim.precision):
            loss = model(clips, mask=mask).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(variants: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each, in turn within every round; the first round is not counted."""
    spent: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if number:
                spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in spent.items()}


def by_repeats(found: Recipe, workspace: Path, rounds: int) -> list[dict[str, Any]]:
    """From shards to updated weights, nothing cached, the same number of clips in every step."""
    step, data = stepper(found, is_dense=False), found.data
    device = torch.device("cpu")
    sources = open_sources(workspace, ["bench"])
    variants: dict[str, Callable[[], None]] = {}
    for repeats in REPEATS:
        loader = TrainLoader(
            workspace,
            sources,
            rule=FrameRule(data.num_frames, data.frame_stride, data.fps, data.sampling),
            crop=CropRule(data.crop_area, data.crop_aspect, data.flip),
            seed=0,
            batch_videos=CLIPS // repeats,
            repeats=repeats,
            options=ReadOptions(cache_bytes=0),
        )
        batches = loader.batches(0, rounds + 1)
        variants[f"loader {repeats}"] = lambda batches=batches: kept.append(next(batches))  # type: ignore[misc]
        variants[f"step {repeats}"] = lambda: step(kept.pop().clips(found.model, device=device))
    kept: list[Any] = []
    spent = timed(variants, rounds)
    rows = []
    for repeats in REPEATS:
        loading, training = spent[f"loader {repeats}"], spent[f"step {repeats}"]
        rows.append(
            {
                "repeats": repeats,
                "videos_opened": CLIPS // repeats,
                "loading_ms": round(1000 * loading, 2),
                "step_ms": round(1000 * training, 2),
                "clips_per_second": round(CLIPS / (loading + training), 1),
            }
        )
    for row in rows:
        row["speedup"] = round(row["clips_per_second"] / rows[0]["clips_per_second"], 3)
    return rows


def by_encoder(found: Recipe, rounds: int) -> dict[str, Any]:
    """The same clips through both encoders."""
    config = found.model
    shape = (CLIPS, 3, config.clip_frames, config.crop_px, config.crop_px)
    clips = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    steps = {name: stepper(found, is_dense=name == "dense") for name in ("sparse", "dense")}
    spent = timed({name: lambda run=run: run(clips) for name, run in steps.items()}, rounds)  # type: ignore[misc]
    flops = {name: forward_flops(replace(config, dense_encoder=name == "dense")).total for name in steps}
    return {
        "mask_ratio": config.mask_ratio,
        **{f"{name}_step_ms": round(1000 * each, 2) for name, each in spent.items()},
        **{f"{name}_forward_mflop_per_clip": round(each / 1e6, 2) for name, each in flops.items()},
        "ratio_of_times": round(spent["dense"] / spent["sparse"], 3),
        "ratio_of_operations": round(flops["dense"] / flops["sparse"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], help="change a value of the recipe")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = override(recipe("demo"), given.set)
    with tempfile.TemporaryDirectory(prefix="stmae-tables-") as folder:
        small_world().write_set(Path(folder), "bench", {"train": VIDEOS}, short=False)
        repeats = by_repeats(found, Path(folder), given.rounds)
    print(
        json.dumps(
            {
                "bench": "tables of the demo recipe",
                "machine": {
                    "processor": platform.processor(),
                    "cores": os.cpu_count(),
                    "threads": 1,
                    "load": os.getloadavg(),
                },
                "versions": {"python": platform.python_version(), "torch": torch.__version__},
                "settings": {
                    "rounds": given.rounds,
                    "clips_per_step": CLIPS,
                    "cache": "none",
                    "workers": 0,
                    "changes": given.set,
                },
                "repeated_sampling": repeats,
                "encoder": by_encoder(found, given.rounds),
            }
        )
    )


if __name__ == "__main__":
    main()
