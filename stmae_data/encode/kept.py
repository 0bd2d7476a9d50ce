"""Clips kept as they are without decoding: what the header and the container's index say, and no more.

For files that somebody has checked already, at the speed of copying. Damage inside the pictures stays unseen until `stmae-data fingerprint`
or training decodes them; the ledger says so (`probe_level` header, flag `undecoded`).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from stmae_data import limits, media
from stmae_data.encode import EncodedClip, check_span
from stmae_data.encode.graph import HASH_SIDE_PX, Encoding
from stmae_data.errors import ClipRejected, Reason
from stmae_data.limits import Limits, Servant
from stmae_data.media import POLICY, Header
from stmae_data.records import ClipSpan, MediaFacts, StoredFacts

__all__ = ["header_reader", "keep_clip"]


@contextlib.contextmanager
def header_reader() -> Iterator[Servant]:
    """A confined child that reads headers for `keep_clip`."""
    with limits.servant(_look, limits=Limits(cpu_seconds=10)) as reader:
        yield reader


def keep_clip(
    descriptor: int, reader: Servant, *, sha256: str, encoding: Encoding, span: ClipSpan | None = None
) -> EncodedClip:
    """Take a file as it is, described by its header and index.

    Args:
        descriptor: the source file, as `open_source` gives it.
        reader: from `header_reader`.
        sha256: of the file.
        encoding: `copy` at probe level header.
        span: what the annotation wants cut out; there must be none.

    Raises:
        ClipRejected: it is no video we take, is cut short, or has too few frames.
        UsageError: a span, which files kept whole cannot be cut to.
    """
    check_span(span, encoding)
    finished = reader.call(descriptor)
    if finished.kind != "ok":
        raise ClipRejected(*media.reason_of(finished))
    if "reason" in finished.value:
        raise ClipRejected(Reason(finished.value["reason"]), finished.value["detail"])
    header, index = Header(**finished.value["header"]), finished.value["index"]
    _judge(index)
    width, height = header.width_px, header.height_px
    source = MediaFacts(
        container=header.container,
        video_codec=header.video_codec,
        pixel_format=header.pixel_format,
        width_px=width,
        height_px=height,
        rotation_degrees=None,
        fps=header.claimed_fps,
        num_frames=index["frames"],
        duration_seconds=index["seconds"],
        start_pts_seconds=header.start_seconds,
        has_audio=header.has_audio,
        num_decode_errors=None,
        probe_level=encoding.probe_level,
    )
    stored = StoredFacts(
        encode_mode=encoding.mode,
        stored_bytes=header.num_bytes,
        stored_sha256=sha256,
        stored_width_px=width,
        stored_height_px=height,
        stored_fps=header.claimed_fps,
        stored_num_frames=index["frames"],
        stored_seconds=index["seconds"],
        keyframe_interval=index["keyframe_interval"],
    )
    return EncodedClip(
        media=media.read_all(descriptor),
        extension="mp4",
        source=source,
        stored=stored,
        hash_frames=np.zeros((0, HASH_SIDE_PX, HASH_SIDE_PX), np.uint8),
        hash_times_ms=np.zeros(0, np.int64),
        stream_sha256=None,
        signals={},
        flags=("partial", "undecoded") if index["is_cut"] else ("undecoded",),
    )


def _judge(index: dict[str, Any]) -> None:
    if index["frames"] < POLICY.min_frames:
        short = f"{index['frames']} frames in the index, at least {POLICY.min_frames} are wanted"
        raise ClipRejected(Reason.TRUNCATED if index["is_cut"] else Reason.TOO_SHORT, short)
    if (index["seconds"] or 0) > POLICY.max_seconds:
        raise ClipRejected(Reason.TOO_LARGE, f"longer than {POLICY.max_seconds:g} s")


# In the child


def _look(descriptor: int) -> dict[str, Any]:
    return media.examine(descriptor, _look_at_index)


def _look_at_index(container: InputContainer, size: int) -> dict[str, Any]:
    header = media.header_of(container, size, decodes=False)
    stream = container.streams[header.stream_index]
    assert isinstance(stream, VideoStream)
    ticks, keys, is_cut = _of_index(stream, size) if stream.frames else _of_packets(container, stream)
    step = 1 / header.claimed_fps if header.claimed_fps else 0.0
    gap = max((after - before for before, after in itertools.pairwise(keys)), default=None)
    return {
        "header": asdict(header),
        "index": {
            "frames": len(ticks),
            "seconds": round(float((max(ticks) - min(ticks)) * (stream.time_base or 1)) + step, 6) if ticks else None,
            "keyframe_interval": gap or len(ticks) or None,
            "is_cut": is_cut,
        },
    }


_Frames = tuple[list[int], list[int], bool]
"""Times of all frames in ticks, numbers of the key frames, whether some lie behind the end of the file."""


def _of_index(stream: VideoStream, size: int) -> _Frames:
    """From the sample table: nothing is read but the header."""
    ticks: list[int] = []
    keys: list[int] = []
    is_cut = False
    for entry in stream.index_entries:
        is_whole = entry.pos + entry.size <= size
        is_cut |= not is_whole
        if entry.size and is_whole and not entry.is_discard:
            if entry.is_keyframe:
                keys.append(len(ticks))
            ticks.append(entry.timestamp)
    return ticks, keys, is_cut


def _of_packets(container: InputContainer, stream: VideoStream) -> _Frames:
    """Containers without a table of all frames (Matroska, fragmented mp4) are read through."""
    ticks: list[int] = []
    keys: list[int] = []
    for packet in container.demux(stream):
        if packet.size and packet.pts is not None and not packet.is_discard:
            if packet.is_keyframe:
                keys.append(len(ticks))
            ticks.append(packet.pts)
    return ticks, keys, False
