"""Rendering the small world: the plan's shots by worker processes, then tables, manifests and, last, truth.json."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stmae_data import files
from stmae_data.demo.film import encode_film, encode_sound
from stmae_data.demo.plan import Plan, Shot, plan_world
from stmae_data.demo.scene import MOTIONS, draw, letterbox, mirror
from stmae_data.engines import Tick, run_tasks
from stmae_data.errors import UsageError
from stmae_data.records import SCHEMA_VERSION, web_clip_id

__all__ = ["WORLD_VERSION", "WorldSummary", "render_shots", "render_world"]

WORLD_VERSION = 1
"""Of what is drawn: another version means other bytes from the same seed."""

Progress = Callable[[str, int, int], None]

_SETS = ("demo-k400", "demo-k700", "demo-web")
_SHOTS_PER_TASK = 32
_BAR_PX = 12


@dataclass(frozen=True, slots=True)
class WorldSummary:
    """What stands in a rendered world."""

    directory: Path
    seed: int
    scale: float
    files: int
    counts: Mapping[str, Mapping[str, int]]
    """Files per set and split."""
    leaks: int
    duplicates: int
    broken: int
    is_reused: bool
    """The world stood already and was left as it is."""

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON-able values."""
        return {
            "directory": str(self.directory),
            "seed": self.seed,
            "scale": self.scale,
            "files": self.files,
            "counts": {name: dict(splits) for name, splits in self.counts.items()},
            "leaks": self.leaks,
            "duplicates": self.duplicates,
            "broken": self.broken,
            "reused": self.is_reused,
        }


def render_world(
    directory: Path, *, seed: int = 0, scale: float = 1.0, workers: int = 2, progress: Progress | None = None
) -> WorldSummary:
    """Render real encoded videos in official layouts, as a stand-in for data sets that nobody may pass on.

    Writes `raw/demo-k400`, `raw/demo-k700` (a superset whose training split holds clips of demo-k400's val in eight guises),
    `raw/demo-web` (an uncurated folder), a manifest for each, and truth.json with every planted leak, duplicate and broken file.
    truth.json is written last: where it stands with the same seed, scale and version, nothing is done again.

    Args:
        directory: where the world is written.
        seed: the same seed gives the same bytes.
        scale: share of the full world (6,000 rendered files), in (0, 1].
        workers: processes.
        progress: told (stage, done, total).

    Raises:
        UsageError: a scale outside (0, 1], or folders of the same names that this function did not write.
        StorageError: the disk is full or read-only.
    """
    plan = plan_world(seed=seed, scale=scale)
    identity = {"schema_version": SCHEMA_VERSION, "version": WORLD_VERSION, "seed": seed, "scale": scale}
    truth_path, claim_path = directory / "truth.json", directory / "raw" / "demo.json"
    if truth_path.is_file():
        truth = files.read_json(truth_path)
        if {name: truth.get(name) for name in identity} == identity:
            return _summary(directory, truth, is_reused=True)
    _clear(directory, claim_path)
    truth_path.unlink(missing_ok=True)
    files.commit_json(claim_path, identity, point="demo")

    digests = _render(directory, plan, workers=workers, progress=progress)
    with files.storage_errors(directory):
        for path, text in plan.texts.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_text(text, encoding="utf-8")
    for name in _SETS:
        files.commit_bytes(directory / f"{name}.toml", _manifest(name, plan).encode(), point="demo")
    truth = {**identity, **_truth(plan, digests)}
    files.commit_json(truth_path, truth, point="demo")
    return _summary(directory, truth, is_reused=False)


def render_shots(task: Mapping[str, Any], tick: Tick) -> dict[str, Any]:
    """One worker's task: render shots below `directory`. Returns {"sha256": {path: digest}}."""
    directory, digests = Path(task["directory"]), {}
    for each in task["shots"]:
        shot = Shot.from_task(each)
        path = directory / shot.path
        with files.storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_file(shot))
        digests[shot.path] = files.sha256_file(path)
        tick(1)
    return {"sha256": digests}


def _clear(directory: Path, claim_path: Path) -> None:
    """Make room for another world; folders that no render has claimed are somebody else's and stay."""
    standing = [directory / "raw" / name for name in _SETS if (directory / "raw" / name).exists()]
    if standing and not claim_path.is_file():
        raise UsageError(
            f"{standing[0]} stands already and was not written by stmae-data demo; move it away or name another folder."
        )
    with files.storage_errors(directory):
        for each in standing:
            shutil.rmtree(each)


def _render(directory: Path, plan: Plan, *, workers: int, progress: Progress | None) -> dict[str, str]:
    """Render or copy every shot; returns sha256 by path."""
    drawn = [shot for shot in plan.shots if not shot.copy_of]
    copies = [shot for shot in plan.shots if shot.copy_of]
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress("render", done, len(plan.shots))

    tasks = [
        {"directory": str(directory), "shots": [shot.as_task() for shot in drawn[start : start + _SHOTS_PER_TASK]]}
        for start in range(0, len(drawn), _SHOTS_PER_TASK)
    ]
    digests: dict[str, str] = {}
    for _, receipt in run_tasks("stmae_data.demo.world:render_shots", tasks, workers=workers, tick=tick):
        digests |= receipt["sha256"]
    for shot in copies:
        path = directory / shot.path
        with files.storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((directory / shot.copy_of).read_bytes())
        digests[shot.path] = digests[shot.copy_of]
        tick(1)
    return digests


def _file(shot: Shot) -> bytes:
    """The bytes of one file."""
    assert shot.scene is not None
    if shot.edit == "empty":
        return b""
    if shot.edit == "text":
        return b"<!doctype html><title>404</title><p>This video is not available in your country.</p>\n"
    if shot.edit == "garbage":
        return np.random.default_rng(shot.scene.seed).bytes(20_000)
    if shot.edit == "sound":
        return encode_sound(seconds=2.0)
    frames = draw(shot.scene)
    if shot.edit == "letterboxed":
        frames = letterbox(frames, bar_px=_BAR_PX)
    elif shot.edit == "mirrored":
        frames = mirror(frames)
    data = encode_film(frames, fps=shot.scene.fps, container=shot.container, crf=shot.crf, moov_first=shot.moov_first)
    # A download that broke off: the index was to come last.
    return data[: len(data) * 3 // 5] if shot.edit == "truncated" else data


def _manifest(name: str, plan: Plan) -> str:
    """The TOML file of one set; paths are relative to it."""
    is_web = name == "demo-web"
    rendered = sum(plan.counts[name].values())
    lines = [
        "# Written by: stmae-data demo. The small world: rendered shapes that move.",
        f'name = "{name}"',
        'release = "demo"',
        f'kind = "{"folder" if is_web else "kinetics"}"',
        f'title = "Small world, {name}"',
        'license = "CC0-1.0"',
        'license_origin = "release notes"',
        "is_redistributable = true",
        f'from = ["raw/{name}"]',
        "short_side_px = 64",
        # Enough shards for several workers at any scale, and few enough to read.
        f"clips_per_shard = {min(160, max(16, rendered // 8))}",
    ]
    if is_web:
        return "\n".join([*lines, "", "[splits.train]", ""])
    val = "val" if name == "demo-k400" else "validate"
    labels = ", ".join(f'"{motion}"' for motion in MOTIONS)
    lines += [
        'evaluation_splits = ["val"]',
        "",
        "[splits.train]",
        f'annotations = ["raw/{name}/annotations/train.csv"]',
        "",
        "[splits.val]",
        'words = ["validate"]',
        f'annotations = ["raw/{name}/annotations/{val}.csv"]',
        "",
        "[labels]",
        f"names = [{labels}]",
        "",
    ]
    return "\n".join(lines)


def _truth(plan: Plan, digests: Mapping[str, str]) -> dict[str, Any]:
    pairs = [("copy", "bytes", plan.copies), ("reencoded", "content", plan.near_duplicates)]
    return {
        "motions": list(MOTIONS),
        "files": len(plan.shots),
        "counts": plan.counts,
        "leaks": plan.leaks,
        "duplicates": [
            {
                "kind": kind,
                "level": level,
                "set": "demo-web",
                "file": path,
                "clip": web_clip_id(digests[path]),
                "of_file": original,
                "of_clip": web_clip_id(digests[original]),
            }
            for kind, level, found in pairs
            for path, original in found
        ],
        "broken": [{"set": "demo-web", **each} for each in plan.broken],
    }


def _summary(directory: Path, truth: Mapping[str, Any], *, is_reused: bool) -> WorldSummary:
    return WorldSummary(
        directory=directory,
        seed=truth["seed"],
        scale=truth["scale"],
        files=truth["files"],
        counts=truth["counts"],
        leaks=len(truth["leaks"]),
        duplicates=len(truth["duplicates"]),
        broken=len(truth["broken"]),
        is_reused=is_reused,
    )
