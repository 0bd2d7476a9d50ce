"""Tars of other tools as they are, for reading in training: found by their headers, measured once, never believed.

Nothing can be proven about them: there is no ledger and no checksum. Their digest names what their headers say, names and sizes, so the
order of a run is still a function of what stands there; bytes that change under the same headers go unnoticed. Frames are always read
the general way. To have them verified, build a set from them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stmae_data import files, limits
from stmae_data.errors import SetError, SourceError, UsageError
from stmae_data.frames import measure
from stmae_data.limits import Limits
from stmae_data.manifest import is_remote
from stmae_data.records import SetRef
from stmae_data.shards.index import SampleIndex
from stmae_data.sources.archives import list_members
from stmae_data.sources.listing import VIDEO_SUFFIXES
from stmae_data.sources.webdataset import expand_pattern, is_pattern

__all__ = ["ForeignRef", "ForeignSet", "foreign_set", "is_foreign"]

_PICTURE_SUFFIXES = frozenset({"jpeg", "jpg", "png"})
_MAX_TEXT_BYTES = 1 << 20
_MAX_MEDIA_BYTES = 1 << 30
_BATCH = 64  # samples that one confined child measures
_WEIGHT = re.compile(r"(?P<place>.+?)(@(?P<weight>[0-9.]+))?")
_COLUMNS = {"clip_id": "VARCHAR", "num_frames": "BIGINT", "fps": "DOUBLE", "problem": "VARCHAR"}


@dataclass(frozen=True, slots=True)
class ForeignRef(SetRef):
    """A reference to tars that are no set: `set_name` is what was typed, there is no split and no selection."""

    def __str__(self) -> str:
        return self.set_name + (f"@{self.weight:g}" if self.weight != 1.0 else "")


@dataclass(frozen=True, slots=True)
class ForeignSet:
    """Tars of other tools: the samples that can be read, and why the others cannot (`left_out`, by their ids)."""

    index: SampleIndex
    left_out: dict[str, str]


@dataclass(slots=True)
class _Sample:
    """The members of one key that are of use."""

    tar: int
    key: str
    media: dict[str, tuple[int, int]] = field(default_factory=dict)  # kind to offset and size
    texts: dict[str, tuple[int, int]] = field(default_factory=dict)


def is_foreign(text: str) -> bool:
    """Whether a reference names tars (a file, a brace pattern, a glob, an address) and not a set of the workspace."""
    place, _ = _parts(text)
    return place.endswith(".tar") or "://" in place or any(mark in place for mark in "*{")


def _parts(text: str) -> tuple[str, float]:
    match = _WEIGHT.fullmatch(text)
    try:
        return (match["place"], float(match["weight"] or 1.0)) if match else (text, 0.0)
    except ValueError:
        return text, 0.0


def foreign_set(workspace: Path, texts: Sequence[str]) -> ForeignSet:
    """The samples of tars. A sample is a key, the members' name up to its first dot: a video (or a picture), and its label in a `cls` or
    `json` member.

    Args:
        workspace: lengths of videos are kept in its `cache`, so that they are counted once.
        texts: files or patterns of files, one after the other; `@weight` behind the only one.

    Raises:
        SetError: a tar is missing, compressed or damaged, or no sample can be read.
        UsageError: an address, or a weight that is none.
    """
    reference, tars = _tars(texts)
    digest, samples = hashlib.sha256(), list[_Sample]()
    for number, tar in enumerate(tars):
        samples += _samples(tar, number, digest)
    kind = "video" if any("video" in each.media for each in samples) else "image"
    clip_ids = {f"{tars[each.tar].stem}/{each.key}": each for each in samples}
    left_out = {name: f"holds no {kind}" for name, each in clip_ids.items() if kind not in each.media}
    usable = {name: each for name, each in clip_ids.items() if kind in each.media}
    facts = dict.fromkeys(usable, (1, 0.0))
    if kind == "video":
        kept = workspace / "cache" / f"foreign-{digest.hexdigest()[:32]}.parquet"
        facts, problems = _lengths(kept, tars, usable)
        left_out |= problems
    if not facts:
        reasons = next(iter(left_out.items()), ("", "they are empty"))
        raise SetError(
            f"{reference.set_name} has {len(clip_ids)} samples and none that can be read (the first, {reasons[0]}: {reasons[1]}); name tars of "
            f"videos or pictures."
        )
    return ForeignSet(_index(reference, digest.hexdigest(), tars, usable, facts, kind), left_out)


def _tars(texts: Sequence[str]) -> tuple[ForeignRef, list[Path]]:
    found: list[Path] = []
    weights = []
    for text in texts:
        place, weight = _parts(text)
        if is_remote(place) or re.match(r"[a-z0-9]+:", place):
            raise UsageError(f"{place} is not a file here; fetch it first (stmae-data fetch), then name the files.")
        if not weight > 0:
            raise UsageError(f"{text!r} has a weight that is no number above 0; wanted PATTERN.tar[@WEIGHT].")
        try:
            found += expand_pattern(Path(place)) if is_pattern(Path(place)) else [Path(place)]
        except SourceError as error:
            raise SetError(str(error)) from error
        weights.append(weight)
    twice = (
        {tar.stem for tar in found if [each.stem for each in found].count(tar.stem) > 1} if len(found) < 4096 else {}
    )
    if twice:
        raise SetError(
            f"Two tars are named {min(twice)}.tar, so their samples could not be told apart; rename one or leave it out."
        )
    name = texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} more"
    return ForeignRef(_parts(name)[0], "", None, weights[0] if len(texts) == 1 else 1.0), found


def _samples(tar: Path, number: int, digest: Any) -> list[_Sample]:
    try:
        with tar.open("rb") as stream:
            start, size = stream.read(2), os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise SetError(f"{tar} cannot be read ({error.strerror}); name tars that are there.") from error
    if start == b"\x1f\x8b":
        raise SetError(f"{tar} is compressed, so its samples have no place to be read from; unpack it: gunzip.")
    try:
        members = list_members(tar)
    except SourceError as error:
        raise SetError(str(error)) from error
    cut = [each for each in members if each.kind in ("end", "truncated")]
    if cut:
        raise SetError(f"{tar} is cut short (behind byte {cut[0].offset} of {size}); fetch it again or leave it out.")
    digest.update(f"{tar.name} {size}\n".encode())
    samples: dict[str, _Sample] = {}
    for member in members:
        digest.update(b"%s %d %d %s\n" % (member.name, member.offset, member.size, member.kind.encode()))
        folder, _, name = os.fsdecode(member.name).rpartition("/")
        key, _, rest = name.partition(".")
        suffix = rest.casefold().rpartition(".")[2]
        if member.kind != "file" or not key:
            continue
        sample = samples.setdefault(f"{folder}/{key}" if folder else key, _Sample(number, ""))
        kind = "video" if suffix in VIDEO_SUFFIXES else "image" if suffix in _PICTURE_SUFFIXES else None
        if kind is not None:
            sample.media.setdefault(kind, (member.offset, member.size))
        elif rest.casefold() in ("cls", "json"):
            sample.texts[rest.casefold()] = (member.offset, member.size)
    for key, sample in samples.items():
        sample.key = key
    return [each for each in samples.values() if each.media or each.texts]


def _lengths(
    kept: Path, tars: Sequence[Path], samples: dict[str, _Sample]
) -> tuple[dict[str, tuple[int, float]], dict[str, str]]:
    """Frames and frame rate of every video, and what is wrong with those that cannot be read; counted once, then kept."""
    if not kept.is_file():
        places = [(name, str(tars[each.tar]), *each.media["video"]) for name, each in samples.items()]
        rows = []
        for first in range(0, len(places), _BATCH):
            rows += _measured(places[first : first + _BATCH])
        files.commit_table(kept, rows, _COLUMNS, point="foreign", order_by="clip_id")
    found = {row["clip_id"]: row for row in files.read_table(kept)}
    good = {name: (found[name]["num_frames"], found[name]["fps"]) for name in samples if not found[name]["problem"]}
    return good, {name: found[name]["problem"] for name in samples if found[name]["problem"]}


def _measured(places: Sequence[tuple[str, str, int, int]]) -> list[dict[str, Any]]:
    """Rows of a batch, measured in a confined child; when it dies each is tried alone, so that the one that did it is known."""
    finished = limits.call(_measure, list(places), limits=Limits())
    if finished.kind == "ok":
        return list(finished.value)
    if len(places) == 1:
        return [{"clip_id": places[0][0], "problem": f"reading it ended in {finished.kind}"}]
    return [row for place in places for row in _measured([place])]


def _measure(places: Sequence[tuple[str, str, int, int]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, tar, offset, size in places:
        try:
            if size > _MAX_MEDIA_BYTES:
                raise SetError(f"it has {size} bytes, at most {_MAX_MEDIA_BYTES} are taken")
            with Path(tar).open("rb") as stream:
                num_frames, fps = measure(os.pread(stream.fileno(), size, offset))
            problem = None if num_frames else "it has no frame"
            rows.append({"clip_id": name, "num_frames": num_frames, "fps": fps, "problem": problem})
        except (SetError, OSError) as error:
            rows.append({"clip_id": name, "problem": str(error)})
    return rows


def _index(
    reference: ForeignRef,
    digest: str,
    tars: Sequence[Path],
    samples: dict[str, _Sample],
    facts: dict[str, tuple[int, float]],
    kind: str,
) -> SampleIndex:
    names = list(facts)
    used = [samples[name] for name in names]
    labels = [_label(tars[each.tar], each) for each in used]
    return SampleIndex(
        reference=reference,
        digest=digest,
        layout="image" if kind == "image" else "original",  # whatever their json says: only a sealed set may be layered
        shard_paths=tuple(tars),
        clip_ids=np.asarray(names, dtype=object),
        shard=np.array([each.tar for each in used], dtype=np.int32),
        media_offset=np.array([each.media[kind][0] for each in used], dtype=np.int64),
        media_bytes=np.array([each.media[kind][1] for each in used], dtype=np.int64),
        num_frames=np.array([facts[name][0] for name in names], dtype=np.int64),
        fps=np.array([facts[name][1] for name in names], dtype=np.float64),
        label_index=np.array([index for index, _ in labels], dtype=np.int32),
        labels=np.array([label for _, label in labels], dtype=object),
        stored_sha256=np.full(len(names), None, dtype=object),
        media_kind=np.full(len(names), kind, dtype=object),
    )


def _label(tar: Path, sample: _Sample) -> tuple[int, str | None]:
    """Class index, -1 without one, and its name: of the `cls` member, else `label_index` and `label` of the `json` member."""
    index, label = -1, None
    for suffix, (offset, size) in sorted(sample.texts.items(), reverse=True):  # json first: cls has the last word
        if size > _MAX_TEXT_BYTES:
            continue
        with tar.open("rb") as stream:
            text = os.pread(stream.fileno(), size, offset).decode("utf-8", "replace").strip()
        if suffix == "cls":
            index = int(text) if re.fullmatch(r"\d{1,6}", text) else index
            continue
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        found = value if isinstance(value, dict) else {}
        number, name = found.get("label_index"), found.get("label")
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < 10**6:
            index = number
        label = name[:200] if isinstance(name, str) and name.strip() else None
    return index, label or (str(index) if index >= 0 else None)
