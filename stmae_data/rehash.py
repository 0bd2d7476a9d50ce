"""Fingerprints of a set that stands: clips without any, or with those of an older algorithm, are hashed again from what is stored.

The unit of work is a shard's table, committed by its rename: killed anywhere, the same command goes on. No tar and no ledger changes, and
`set.json` lists no checksum of fingerprints, so version and digest stay. Hashes made at build are of the source picture and are kept
where their algorithm is the present one; those made here are of the stored picture, which lies within the noise the matching allows for.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from stmae_data import files, frames, limits
from stmae_data.encode import Encoding, encode_clip
from stmae_data.engines import Tick, run_tasks
from stmae_data.errors import ClipRejected, SetError
from stmae_data.fingerprint import ALGORITHM, VIEWS, Fingerprints, commit_fingerprints, fingerprint_clip
from stmae_data.limits import Limits
from stmae_data.media import POLICY, probe, reason_of, source_of_bytes
from stmae_data.media.picture import read_picture
from stmae_data.records import set_folder
from stmae_data.rewrite import finish_rewrite
from stmae_data.shards import fingerprint_path, ledger_path, open_set, read_range

__all__ = ["FingerprintReport", "fingerprint_set", "fingerprint_shard"]

_SIDE: Final = 64
_PER_SECOND: Final = 8
_NOTHING: Final = np.zeros((2, _SIDE, _SIDE), np.uint8)
"""Black from beginning to end, of quality 0: the mark of a clip that was looked at and compares with nothing."""


@dataclass(frozen=True, slots=True)
class FingerprintReport:
    """What stands now: `num_made` clips were hashed in `num_shards` shards, `num_kept` had fingerprints of the present algorithm.

    `undecodable` names clips of this run that were stored undecoded and do not decode: they got hashes of quality 0, which compare
    with nothing.
    """

    set_name: str
    folder: Path
    num_made: int
    num_kept: int
    num_shards: int
    undecodable: tuple[str, ...] = ()
    algorithm: str = ALGORITHM

    def as_json(self) -> dict[str, Any]:
        """The same facts as JSON values."""
        return {
            "set": self.set_name,
            "made": self.num_made,
            "kept": self.num_kept,
            "shards": self.num_shards,
            "undecodable": list(self.undecodable),
            "algorithm": self.algorithm,
        }


def fingerprint_set(
    workspace: Path,
    set_name: str,
    *,
    workers: int = 1,
    dry_run: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> FingerprintReport:
    """Give every written clip of a set fingerprints of the present algorithm.

    Args:
        workspace: where the set stands.
        set_name: the set.
        workers: processes; they change speed alone.
        dry_run: count what is to do, write nothing.
        progress: told (stage, done, total) as clips finish.

    Raises:
        SetError: the set is missing or damaged, or a stored clip does not decode; Busy: somebody else writes it; StorageError: the disk.
    """
    folder = set_folder(workspace, set_name)
    if dry_run:
        return _report(set_name, folder, _todo(workspace, set_name))
    if folder.is_dir():
        finish_rewrite(workspace, set_name)
    open_set(workspace, set_name)
    with files.lock(folder / "meta" / "LOCK", what=f"Set {set_name}"):
        files.sweep_temp(folder / "meta" / "fingerprints")
        todo = _todo(workspace, set_name)
        total, done = sum(len(ids) for ids, _ in todo.values()), 0

        def tick(clips: int) -> None:
            nonlocal done
            done += clips
            if progress is not None:
                progress("fingerprint", done, total)

        tasks = [{"folder": str(folder), "name": name} for name, (ids, is_stale) in todo.items() if ids or is_stale]
        receipts = run_tasks("stmae_data.rehash:fingerprint_shard", tasks, workers=workers, tick=tick)
        undecodable = sorted(clip_id for _, receipt in receipts for clip_id in receipt["undecodable"])
    return _report(set_name, folder, todo, undecodable)


def _report(
    set_name: str, folder: Path, todo: Mapping[str, tuple[list[str], bool]], undecodable: Sequence[str] = ()
) -> FingerprintReport:
    made = sum(len(ids) for ids, _ in todo.values())
    ledgers = [ledger_path(folder, name) for name in todo]
    written = files.read_table(ledgers, "SELECT count(*) AS n FROM book WHERE outcome = 'written'")[0]["n"]
    return FingerprintReport(
        set_name,
        folder,
        made,
        written - made,
        sum(bool(ids or is_stale) for ids, is_stale in todo.values()),
        tuple(undecodable),
    )


def _todo(workspace: Path, set_name: str) -> dict[str, tuple[list[str], bool]]:
    """By shard: clips to hash, and whether its table is missing or holds rows that do not belong there any more."""
    found = open_set(workspace, set_name)
    todo = {}
    for shard in found.shards:
        query = "SELECT clip_id FROM book WHERE outcome = 'written' ORDER BY ordinal"
        written = [row["clip_id"] for row in files.read_table(ledger_path(found.folder, shard.name), query)]
        path = fingerprint_path(found.folder, shard.name)
        rows = files.read_table(path, "SELECT DISTINCT clip_id, algorithm FROM book") if path.is_file() else []
        current = {row["clip_id"] for row in rows if row["algorithm"] == ALGORITHM}
        here = frozenset(written)
        has_strays = any(row["algorithm"] != ALGORITHM or row["clip_id"] not in here for row in rows)
        todo[shard.name] = [clip for clip in written if clip not in current], has_strays or not path.is_file()
    return todo


def fingerprint_shard(task: Mapping[str, Any], tick: Tick) -> dict[str, Any]:
    """Hash the clips of one shard that lack fingerprints, and commit its table; runs in a worker process.

    Args:
        task: folder of the set and name of the shard.
        tick: told of every clip that is hashed.

    Returns:
        {"name", "made", "undecodable": ids of clips stored undecoded that do not decode}.
    """
    folder, name = Path(task["folder"]), str(task["name"])
    query = """SELECT clip_id, media_kind, media_offset, media_bytes, stored_sha256, stored_fps, stored_num_frames, stored_seconds, flags FROM book
               WHERE outcome = 'written' ORDER BY ordinal"""
    standing = _standing(fingerprint_path(folder, name))
    clips: list[tuple[str, Fingerprints]] = []
    made, undecodable = 0, []
    with (folder / f"{name}.tar").open("rb") as stream:
        for row in files.read_table(ledger_path(folder, name), query):
            prints = standing.get(row["clip_id"])
            if prints is None:
                where = f"{row['clip_id']} in {name}.tar"
                media = read_range(stream.fileno(), row["media_offset"], row["media_bytes"], name=f"{name}.tar")
                if hashlib.sha256(media).hexdigest() != row["stored_sha256"]:
                    raise SetError(
                        f"{where} is not what its ledger says; verify the set: stmae-data verify {folder.name}"
                    )
                try:
                    prints = fingerprint_clip(*_hash_frames(media, row))
                except ClipRejected as rejected:
                    if "undecoded" not in (row["flags"] or ()):
                        raise SetError(
                            f"{where} does not decode ({rejected}); verify the set, then build it again."
                        ) from rejected
                    prints = fingerprint_clip(_NOTHING, np.array([0, round(1000 * (row["stored_seconds"] or 0))]))
                    undecodable.append(row["clip_id"])
                made += 1
                tick(1)
            clips.append((row["clip_id"], prints))
    commit_fingerprints(fingerprint_path(folder, name), clips)
    return {"name": name, "made": made, "undecodable": undecodable}


def _standing(path: Path) -> dict[str, Fingerprints]:
    """Fingerprints of the present algorithm that stand already, by clip."""
    if not path.is_file():
        return {}
    query = "SELECT * FROM book WHERE algorithm = ? ORDER BY clip_id, list_position(?, view::VARCHAR), time_ms"
    by_clip: dict[str, list[dict[str, Any]]] = {}
    for row in files.read_table(path, query, [ALGORITHM, list(VIEWS)]):
        by_clip.setdefault(row["clip_id"], []).append(row)
    return {clip_id: _of_rows(rows) for clip_id, rows in by_clip.items()}


def _of_rows(rows: Sequence[Mapping[str, Any]]) -> Fingerprints:
    return Fingerprints(
        np.array([row["time_ms"] for row in rows], np.int64),
        np.array([VIEWS.index(row["view"]) for row in rows], np.uint8),
        np.array([[row[f"hash{word}"] for word in range(4)] for row in rows], np.uint64),
        np.array([row["quality"] for row in rows], np.uint8),
    )


# Frames to hash


def _hash_frames(media: bytes, row: Mapping[str, Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """About 8 pictures [N, 64, 64] a second and their times in ms, as at build.

    Raises:
        ClipRejected: the stored clip does not decode.
    """
    with source_of_bytes(media) as descriptor:
        if row["media_kind"] == "image":
            return read_picture(descriptor).luma[None], np.zeros(1, np.int64)
        if row["stored_num_frames"] < POLICY.min_frames:
            return _few_frames(descriptor, row)
        clip = encode_clip(descriptor, probe(descriptor), encoding=Encoding(mode="copy"))
        return clip.hash_frames, clip.hash_times_ms


def _few_frames(descriptor: int, row: Mapping[str, Any]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """A clip of fewer frames than a source must have: a short one of a fast camera, stored at 30 frames a second."""
    fps = row["stored_fps"] or 30.0
    eighths = np.floor(np.arange(row["stored_num_frames"]) / fps * _PER_SECOND + 0.008)
    indices = [int(each) for each in np.unique(eighths, return_index=True)[1]]
    ended = limits.call(_luma_of, descriptor, indices, limits=Limits())
    if ended.kind != "ok":
        raise ClipRejected(*reason_of(ended))
    pictures = np.frombuffer(base64.b64decode(ended.value), np.uint8).reshape(-1, _SIDE, _SIDE)
    return pictures, np.round(np.array(indices) / fps * 1000).astype(np.int64)


def _luma_of(descriptor: int, indices: list[int]) -> str:
    """In a confined child: pictures [N, 64, 64] of full-range luma, scaled by area, in base64."""
    media = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    planes = frames.read_clips(media, [indices], layout="original")
    pictures = []
    for row in planes.rows(indices):
        luma = _area_matrix(planes.y.shape[1]) @ planes.y[row].astype(np.float64) @ _area_matrix(planes.y.shape[2]).T
        pictures.append(np.clip(np.round((luma - 16.0) * 255.0 / 219.0), 0, 255).astype(np.uint8))
    return base64.b64encode(np.stack(pictures).tobytes()).decode()


def _area_matrix(size: int) -> NDArray[np.float64]:
    """[64, size] weights that average lines by the area they share."""
    edges = np.linspace(0, size, _SIDE + 1)
    lines = np.arange(size)
    shares = np.minimum(edges[1:, None], lines + 1) - np.maximum(edges[:-1, None], lines)
    weights: NDArray[np.float64] = shares.clip(0) / np.diff(edges)[:, None]
    return weights
