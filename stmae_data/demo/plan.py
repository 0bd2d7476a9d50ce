"""What stands in the small world, decided before a picture is drawn: files, tables, sidecars, and the truth about all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from stmae_data.demo.scene import JUNK, MOTIONS, Scene
from stmae_data.demo.words import sidecar, web_name
from stmae_data.errors import Reason, UsageError
from stmae_data.records import kinetics_clip_id

__all__ = ["Plan", "Shot", "plan_world"]

T = TypeVar("T")

# Counts of the full world (FORMATS, "Budget of the small world"); `scale` multiplies them.
_LABELLED, _UNLABELLED, _VAL = 480, 2000, 400
_K700_TRAIN, _K700_VAL = 480, 80
_LEAKS_OF_A_KIND = 20
_WEB_MOTIONS, _WEB_JUNK_OF_A_KIND, _WEB_NEAR_DUPLICATES, _WEB_COPIES, _WEB_BROKEN_OF_A_KIND = 1230, 320, 120, 60, 5

_CLIP_SECONDS = 2
"""Annotated length; the file holds 2.2 s, so that 61 frames at 30 per second fit."""
_FILE_SECONDS = 2.2


_LEAK_LEVELS = {
    "same_bytes": ("bytes", "stream", "id", "video", "overlap", "content"),
    "same_id": ("id", "video", "overlap", "content"),
    "same_video": ("video",),
    "overlapping": ("video", "overlap", "content"),
    "reencoded": ("content",),
    "trimmed": ("content",),
    "letterboxed": ("content",),
    "mirrored": ("content",),
}
"""Kinds of planted leaks, and every level of sameness at which each must be found; the first is the strictest."""

_BROKEN = {
    "empty": Reason.EMPTY,
    "text": Reason.NOT_MEDIA,
    "garbage": Reason.NOT_MEDIA,
    "truncated": Reason.TRUNCATED,
    "sound": Reason.NO_VIDEO,
    "short": Reason.TOO_SHORT,
}


@dataclass(frozen=True, slots=True)
class Shot:
    """One file to render: a scene, what was done to it, and how it is encoded; or a copy of another file's bytes."""

    path: str
    """Relative to the world's folder, with `/`."""
    scene: Scene | None = None
    edit: str = ""
    """"", "letterboxed" or "mirrored"; for a broken file its kind."""
    container: str = "mp4"
    crf: int = 20
    moov_first: bool = True
    copy_of: str = ""

    def as_task(self) -> dict[str, Any]:
        """JSON-able; `from_task` reads it back."""
        return asdict(self)

    @classmethod
    def from_task(cls, task: dict[str, Any]) -> Shot:
        """The shot a worker was told of."""
        scene = task["scene"]
        return cls(**{**task, "scene": scene and Scene(**{**scene, "seed": tuple(scene["seed"])})})


@dataclass(frozen=True, slots=True)
class _Clip:
    """A row of an annotation table and the shot behind it."""

    youtube_id: str
    start: int
    label: str
    shot: Shot

    @property
    def clip_id(self) -> str:
        return kinetics_clip_id(self.youtube_id, self.start * 1000, (self.start + _CLIP_SECONDS) * 1000)


@dataclass(slots=True)
class Plan:
    """Everything to write. `leaks`, `near_duplicates`, `copies` and `broken` become truth.json; web files are named by path."""

    shots: list[Shot] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    leaks: list[dict[str, Any]] = field(default_factory=list)
    near_duplicates: list[tuple[str, str]] = field(default_factory=list)
    copies: list[tuple[str, str]] = field(default_factory=list)
    broken: list[dict[str, str]] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)


def plan_world(*, seed: int, scale: float) -> Plan:
    """Decide the whole world.

    Args:
        seed: everything drawn comes from it.
        scale: share of the full counts, in (0, 1]; every class, leak kind and broken kind stays.

    Raises:
        UsageError: a scale outside (0, 1].
    """
    if not 0 < scale <= 1:
        raise UsageError(
            f"The scale of the small world is {scale}, wanted a share in (0, 1]; give for example --scale 0.1."
        )
    return _Planner(seed, scale).plan()


class _Planner:
    def __init__(self, seed: int, scale: float) -> None:
        self.seed, self.scale = seed, scale
        self.random = np.random.default_rng((seed, 0))
        self.ids: set[str] = set()
        self.scenes = 0
        self.out = Plan()

    def plan(self) -> Plan:
        train = self._clips("demo-k400", "train", self._count(_LABELLED, least=16))
        train += self._clips("demo-k400", "train", self._count(_UNLABELLED, least=8), has_label=False)
        val = self._clips("demo-k400", "val", self._count(_VAL, least=16))
        own = self._clips("demo-k700", "train", self._count(_K700_TRAIN, least=8))
        own_val = self._clips("demo-k700", "validate", self._count(_K700_VAL, least=8))
        leaked = self._leaks(val)
        for clip in (*train, *val, *own, *own_val, *leaked):
            self.out.shots.append(clip.shot)
        shared = [_moved(clip, "demo-k400", "demo-k700") for clip in train]
        self.out.shots += [clip.shot for clip in shared]
        self._table("demo-k400", "train", train, has_cc=True)
        self._table("demo-k400", "val", val, has_cc=True)
        self._table("demo-k700", "train", self._shuffled([*shared, *own, *leaked]))
        self._table("demo-k700", "validate", own_val)
        self._web()
        self.out.counts = {
            "demo-k400": {"train": len(train), "val": len(val)},
            "demo-k700": {"train": len(shared) + len(own) + len(leaked), "val": len(own_val)},
            "demo-web": {"train": sum(each.path.startswith("raw/demo-web/") for each in self.out.shots)},
        }
        return self.out

    def _count(self, full: int, *, least: int = 1) -> int:
        return max(least, round(full * self.scale))

    def _chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def _shuffled(self, values: Sequence[T]) -> list[T]:
        return [values[index] for index in self.random.permutation(len(values))]

    def _scene(self, kind: str) -> Scene:
        self.scenes += 1
        fps = 25 if self._chance(0.15) else 30
        return Scene(
            kind=kind,
            seed=(self.seed, 1, self.scenes),
            num_frames=round(_FILE_SECONDS * fps),
            fps=fps,
            width_px=86 if self._chance(0.3) else 64,
        )

    def _youtube_id(self) -> str:
        signs = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        while True:
            drawn = "".join(signs[index] for index in self.random.integers(0, len(signs), 11))
            # As among real ids, some begin with a sign that command lines and spreadsheets take for something else.
            drawn = "-_"[len(self.ids) % 2] + drawn[1:] if len(self.ids) % 12 == 0 else drawn
            if drawn not in self.ids:
                self.ids.add(drawn)
                return drawn

    def _clips(self, name: str, split: str, count: int, *, has_label: bool = True) -> list[_Clip]:
        kinds = self._shuffled([MOTIONS[index % len(MOTIONS)] for index in range(count)])
        return [
            self._clip(name, split, self._youtube_id(), int(self.random.integers(0, 300)), kind, has_label=has_label)
            for kind in kinds
        ]

    def _clip(
        self,
        name: str,
        split: str,
        youtube_id: str,
        start: int,
        kind: str,
        *,
        has_label: bool = True,
        scene: Scene | None = None,
        **how: Any,
    ) -> _Clip:
        folder = f"raw/{name}/{split}" + (f"/{kind}" if has_label else "")
        path = f"{folder}/{youtube_id}_{start:06d}_{start + _CLIP_SECONDS:06d}.mp4"
        how = {"crf": int(self.random.integers(17, 24)), "moov_first": self._chance(0.7), **how}
        return _Clip(youtube_id, start, kind if has_label else "", Shot(path, scene or self._scene(kind), **how))

    def _leaks(self, val: Sequence[_Clip]) -> list[_Clip]:
        """Clips of the training split of demo-k700 that are, one way or another, clips of demo-k400's val."""
        leaked = []
        victims = iter(self._shuffled(val))
        each_kind = min(self._count(_LEAKS_OF_A_KIND), len(val) // len(_LEAK_LEVELS))
        for kind, levels in _LEAK_LEVELS.items():
            for _ in range(each_kind):
                victim = next(victims)
                clip = self._leak(kind, victim)
                leaked.append(clip)
                self.out.leaks.append(
                    {
                        "kind": kind,
                        "level": levels[0],
                        "levels": list(levels),
                        "train_set": "demo-k700",
                        "train_clip": clip.clip_id,
                        "eval_set": "demo-k400:val",
                        "eval_clip": victim.clip_id,
                    }
                )
        return leaked

    def _leak(self, kind: str, victim: _Clip) -> _Clip:
        scene = victim.shot.scene
        assert scene is not None
        is_same_video = kind in ("same_bytes", "same_id", "same_video", "overlapping")
        youtube_id = victim.youtube_id if is_same_video else self._youtube_id()
        start = victim.start if is_same_video else int(self.random.integers(0, 300))
        how: dict[str, Any] = {"crf": 30}
        if kind == "same_bytes":
            how = {"copy_of": victim.shot.path}
        elif kind == "same_video":  # another scene, seconds later in the same video
            scene, start, how = self._scene(victim.label), start + int(self.random.integers(5, 60)), {}
        elif kind == "overlapping":
            scene, start = _piece(scene, from_seconds=1.0, seconds=_FILE_SECONDS), start + 1
        elif kind == "trimmed":
            scene = _piece(scene, from_seconds=0.37, seconds=1.7)
        elif kind in ("letterboxed", "mirrored"):
            how["edit"] = kind
        return self._clip("demo-k700", "train", youtube_id, start, victim.label, scene=scene, **how)

    def _table(self, name: str, split: str, clips: Iterable[_Clip], *, has_cc: bool = False) -> None:
        lines = ["label,youtube_id,time_start,time_end,split" + (",is_cc" if has_cc else "")]
        for clip in clips:
            label = f'"{clip.label}"' if " " in clip.label else clip.label
            row = f"{label},{clip.youtube_id},{clip.start},{clip.start + _CLIP_SECONDS},{split}"
            lines.append(row + (",0" if has_cc else ""))
        self.out.texts[f"raw/{name}/annotations/{split}.csv"] = "\n".join(lines) + "\n"

    def _web(self) -> None:
        """An uncurated folder: motions with hashtags, junk, copies, broken files, and what yt-dlp writes beside them."""
        motions = [
            self._web_shot(number, MOTIONS[number % len(MOTIONS)])
            for number in range(self._count(_WEB_MOTIONS, least=16))
        ]
        junk = [self._web_shot(9000 + number, kind) for number, kind in enumerate(self._junk())]
        shots = [*motions, *junk]
        originals = iter(self._shuffled(motions))
        for number in range(min(self._count(_WEB_NEAR_DUPLICATES, least=2), len(motions) // 2)):
            original = next(originals)
            assert original.scene is not None
            again = self._web_shot(20_000 + number, original.scene.kind, scene=original.scene, container="mp4", crf=31)
            self.out.near_duplicates.append((again.path, original.path))
            shots.append(again)
        for number in range(min(self._count(_WEB_COPIES, least=2), len(motions) // 4)):
            original = next(originals)
            assert original.scene is not None
            suffix = original.path.rpartition(".")[2]
            copy = self._web_shot(30_000 + number, original.scene.kind, container=suffix, copy_of=original.path)
            self.out.copies.append((copy.path, original.path))
            shots.append(copy)
        self.out.shots += [*shots, *self._broken()]

    def _junk(self) -> Iterator[str]:
        for kind in JUNK:
            yield from [kind] * self._count(_WEB_JUNK_OF_A_KIND, least=3)

    def _web_shot(
        self,
        number: int,
        kind: str,
        *,
        scene: Scene | None = None,
        container: str = "",
        copy_of: str = "",
        crf: int = 0,
    ) -> Shot:
        container = container or ("webm" if self._chance(0.12) else "mp4")
        crf = crf or (34 if container == "webm" else int(self.random.integers(17, 25)))
        scene = scene or self._scene(kind)
        path = f"raw/demo-web/{web_name(self.random, number)}.{container}"
        shot = Shot(path, None if copy_of else scene, container=container, crf=crf, copy_of=copy_of)
        if self._chance(0.92):
            label = kind if kind in MOTIONS else None
            text = json.dumps(sidecar(self.random, label, self._youtube_id(), scene), indent=1, ensure_ascii=False)
            self.out.texts[f"{path.rpartition('.')[0]}.info.json"] = text + "\n"
        return shot

    def _broken(self) -> Iterator[Shot]:
        for place, (kind, reason) in enumerate(_BROKEN.items()):
            for number in range(self._count(_WEB_BROKEN_OF_A_KIND)):
                path = f"raw/demo-web/{web_name(self.random, 40_000 + 100 * place + number)} {kind}.mp4"
                scene = self._scene(MOTIONS[number % len(MOTIONS)])
                if kind == "short":
                    scene = _piece(scene, from_seconds=0.0, seconds=(8 + number % 7) / scene.fps)
                self.out.broken.append({"file": path, "kind": kind, "reason": str(reason)})
                yield Shot(path, scene, edit=kind, moov_first=kind != "truncated")


def _piece(scene: Scene, *, from_seconds: float, seconds: float) -> Scene:
    """Another piece of the same scene's time."""
    changed = {"start_seconds": from_seconds, "num_frames": round(seconds * scene.fps)}
    return Scene(**{**{name: getattr(scene, name) for name in Scene.__slots__}, **changed})


def _moved(clip: _Clip, source: str, target: str) -> _Clip:
    """The same clip standing in another data set, byte for byte."""
    path = clip.shot.path.replace(f"raw/{source}/", f"raw/{target}/", 1)
    return _Clip(clip.youtube_id, clip.start, clip.label, Shot(path, copy_of=clip.shot.path))
