"""Decoded planes of small layered sets, kept in a file that is mapped into memory.

Only frames 0, 4, 8, … are kept, exactly as the aligned reader gives them, so a run sees the same pixels with and without the cache
(held by a test). A file is named after the sha256 of the samples it holds: sets, versions and selections that share shards share it,
and it can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stmae_data.errors import SetError
from stmae_data.frames import Planes
from stmae_train.loader.source import ClipSource
from stmae_train.loader.workers import Damaged, Job, decode_in_order
from stmae_train.runlog import commit_in_common, sweep_common
from stmae_train.views import LAYER_STEP, FrameRule

__all__ = ["DEFAULT_CACHE_BYTES", "DecodedCache", "frame_bytes", "open_cache"]

LOGGER = logging.getLogger("stmae.train")
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

DEFAULT_CACHE_BYTES = 1_500_000_000
_VERSION = 1
_PAGE = 4096


def frame_bytes(height: int, width: int) -> int:
    """Bytes of one picture as planes: luma, then two chroma planes of half size, rounded up."""
    return height * width + 2 * (-(-height // 2)) * (-(-width // 2))


class DecodedCache:
    """The planes of every 4th frame of all rows of a source.

    `heights` and `widths` are per position in `source.rows`; `was_made` says that it did not exist before.
    """

    def __init__(self, files: Sequence[tuple[Path, Ints]], *, count: int, was_made: bool) -> None:
        self.was_made = was_made
        self.heights, self.widths = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self._file, self._offset = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self._maps: list[Bytes] = []
        for number, (path, positions) in enumerate(files):
            start, table = _read_header(path)
            self._maps.append(np.asarray(np.memmap(path, dtype=np.uint8, mode="r", offset=start)))
            self._file[positions] = number
            self._offset[positions], self.heights[positions], self.widths[positions] = (
                table[:, 0],
                table[:, 1],
                table[:, 2],
            )

    def gather(self, position: int, frames: Ints) -> Bytes:
        """Planes [K, T, bytes] of clips of one sample: `frames` [K, T] are multiples of 4."""
        size = frame_bytes(int(self.heights[position]), int(self.widths[position]))
        start = int(self._offset[position])
        data = self._maps[self._file[position]]
        last = int(frames.max()) // LAYER_STEP
        pictures = data[start : start + (last + 1) * size].reshape(last + 1, size)
        chosen: Bytes = pictures[frames // LAYER_STEP]
        return chosen


def open_cache(
    workspace: Path, source: ClipSource, rule: FrameRule, *, limit_bytes: int = DEFAULT_CACHE_BYTES, workers: int = 0
) -> DecodedCache | None:
    """The cache of a source, made first where it is missing.

    None where it cannot serve the rule, would be too large, or a sample is damaged: then every read meets the damage itself and
    deals with it as it was asked to, and a repaired set is cached as if nothing had been.
    """
    is_served = source.is_layered and rule.sampling == "aligned" and rule.stride % LAYER_STEP == 0
    if not is_served or not limit_bytes:
        return None
    try:
        return None if _estimate(source) > limit_bytes else _open(workspace, source, workers=workers)
    except SetError as error:
        LOGGER.warning("%s is not cached, a sample is damaged: %s", source.index.reference, error)
        return None


def _open(workspace: Path, source: ClipSource, *, workers: int) -> DecodedCache:
    files, was_made = [], False
    sweep_common(workspace / "cache", suffix=".planes")
    shards = source.index.shard[source.rows]
    for shard in np.unique(shards):
        positions = np.flatnonzero(shards == shard)
        rows = source.rows[positions]
        text = "\n".join([f"planes-{LAYER_STEP} v{_VERSION}", *map(str, source.index.stored_sha256[rows])])
        path = workspace / "cache" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.planes"
        if not path.is_file():
            if not was_made:
                LOGGER.info("Decoding %s into the cache, once for all runs.", source.index.reference)
            _write(path, source, rows, workers=workers)
            was_made = True
        files.append((path, positions))
    return DecodedCache(files, count=len(source.rows), was_made=was_made)


def _estimate(source: ClipSource) -> int:
    """Bytes the cache would take, from eight samples spread over the set."""
    rows = source.rows[np.linspace(0, len(source.rows) - 1, min(8, len(source.rows))).astype(np.int64)]
    sizes = [source.planes(int(row), [[0]]).y.shape[-2:] for row in rows]
    mean = sum(frame_bytes(height, width) for height, width in sizes) / len(sizes)
    return int(mean * np.ceil(source.index.num_frames[source.rows] / LAYER_STEP).sum())


def _write(path: Path, source: ClipSource, rows: Ints, *, workers: int) -> None:
    """Decode every 4th frame of the rows into one file: header length, header, padding, pictures."""
    pieces, table, offset = [], [], 0
    jobs = [Job(0, int(row), np.arange(0, int(source.index.num_frames[row]), LAYER_STEP)[None]) for row in rows]
    for planes in decode_in_order([source], jobs, workers=workers):
        if isinstance(planes, Damaged):
            raise SetError(f"clip {planes.clip_id}: {planes.reason}")
        assert isinstance(planes, Planes)  # pictures are never cached
        pictures = np.concatenate([each.reshape(len(each), -1) for each in (planes.y, planes.u, planes.v)], axis=1)
        table.append([offset, *planes.y.shape[1:]])
        pieces.append(pictures)
        offset += pictures.size
    header = json.dumps({"version": _VERSION, "table": table}, separators=(",", ":")).encode()
    padding = -(8 + len(header)) % _PAGE
    with commit_in_common(path) as stream:
        stream.write(struct.pack("<Q", len(header)) + header + b"\0" * padding)
        for pictures in pieces:
            stream.write(pictures.tobytes())


def _read_header(path: Path) -> tuple[int, Ints]:
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        table = np.array(json.loads(stream.read(length))["table"], dtype=np.int64)
    return 8 + length + -(8 + length) % _PAGE, table
