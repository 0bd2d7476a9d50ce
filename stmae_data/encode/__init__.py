"""Videos to stored clips: one ffmpeg process gives the clip, the frames for hashing and the time of every decoded frame.

The graph is composed with ffmpeg-python and run by `limits`. Input and outputs are descriptors (memory files), so there is no name to
be relative to, nothing left on disk and no pipe that could block. The layered parameters and their proofs are in PERFORMANCE.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stmae_data import limits, signals
from stmae_data.encode.graph import (
    HASH_SIDE_PX,
    STORED_FPS,
    UNINDEXED,
    Encoding,
    Graph,
    arguments,
    descriptor_path,
    ffmpeg_executable,
    ffmpeg_version,
    graph_of,
    seeks,
    steady_asm,
)
from stmae_data.errors import ClipRejected, Reason, UsageError
from stmae_data.limits import Limits
from stmae_data.media import POLICY, Header, open_video, read_all, reason_of, source_of_bytes
from stmae_data.records import ClipSpan, MediaFacts, StoredFacts

__all__ = ["EncodedClip", "Encoding", "check_span", "encode_clip", "ffmpeg_executable", "ffmpeg_version", "steady_asm"]


# More pictures than this no decoder holds back: what begins later begins late on purpose.
_MOST_REORDERED = 16
# Slower claims come from broken time scales; believing them would repeat every frame for minutes.
_SLOWEST_FPS = 0.5


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """One clip, stored and measured.

    `hash_frames` is [N, 64, 64] of full-range luma (0 black, 255 white), about 8 per second of the upright source picture at `hash_times_ms` [N]
    after the first frame. `stream_sha256` names the decoded video: it survives a change of container; None where nothing was decoded.
    """

    media: bytes
    extension: str
    source: MediaFacts
    stored: StoredFacts
    hash_frames: NDArray[np.uint8]
    hash_times_ms: NDArray[np.int64]
    stream_sha256: str | None
    signals: dict[str, float]
    flags: tuple[str, ...]


def encode_clip(
    descriptor: int, header: Header, *, encoding: Encoding | None = None, span: ClipSpan | None = None
) -> EncodedClip:
    """Decode a source once, and store, measure and thin it for hashing on the way.

    Args:
        descriptor: the source file, as `open_source` gives it.
        header: what `probe` said of the same file.
        encoding: how to store it; layered with short side 256 unless said.
        span: the stretch to cut out, frame exact; None takes the whole file.

    Raises:
        ClipRejected: with the reason this source cannot or may not be stored.
        UsageError: `copy` and `remux` keep files whole and cannot cut.
    """
    encoding = encoding or Encoding()
    check_span(span, encoding)
    planned_seconds = span.seconds if span is not None else header.planned_seconds
    took: _Pass | None = None
    flags: set[str] = set()
    claimed_fps = header.claimed_fps or float(STORED_FPS)
    graph = graph_of(header, encoding, span, None, seek_seconds=seeks(header, span)[0])
    if claimed_fps >= _SLOWEST_FPS:
        if span is not None:
            graph, took = _cut(descriptor, header, encoding, span)
        else:
            took = _pass(descriptor, graph, planned_seconds=planned_seconds)
        if span is None and took.has_usable_times() and took.is_displaced(graph):
            # Two readers of one container may disagree on where time begins (some AVI): the pass itself knows.
            graph = replace(graph, first_frame_seconds=round(float(took.times[0]), 6))
            took = _pass(descriptor, graph, planned_seconds=planned_seconds)
    if took is None or not took.has_usable_times():
        fps = claimed_fps if 1 <= claimed_fps <= 240 else float(STORED_FPS)
        graph = replace(graph, frame_order_fps=fps, first_frame_seconds=0.0)
        took = _pass(descriptor, graph, planned_seconds=planned_seconds)
        is_hidden = len(took.times) < POLICY.min_frames <= took.num_packets - took.num_errors
        if is_hidden or not took.has_usable_times():
            raise ClipRejected(Reason.BAD_TIMING, "frames cannot be put in order of time")
        flags.add("frame_order_timing")
    source, is_vfr = _source_facts(took, header, graph)
    is_damaged = _judge(took, header, is_whole=span is None)
    media = read_all(descriptor) if encoding.mode == "copy" else took.media
    flags |= {"vfr"} if is_vfr and "frame_order_timing" not in flags else set()
    flags |= {"partial"} if is_damaged else set()
    flags |= {"upright"} if header.rotation_degrees and not encoding.keeps_source else set()
    return EncodedClip(
        media=media,
        extension="mp4",
        source=source,
        stored=_stored_facts(media, encoding),
        hash_frames=took.hash_frames,
        hash_times_ms=took.hash_times_ms,
        stream_sha256=_stream_sha256(took, header),
        signals=signals.measure(took.hash_frames, took.hash_times_ms),
        flags=tuple(sorted(flags)),
    )


def check_span(span: ClipSpan | None, encoding: Encoding) -> None:
    """Refuse to cut what is kept as it is.

    Raises:
        UsageError: there is a span and the encoding keeps files whole.
    """
    if span is not None and encoding.keeps_source:
        raise UsageError(
            f"Encoding {encoding.mode!r} keeps files whole and cannot cut a span; use layered, lean or fast."
        )


# The pass


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one run of ffmpeg gave: times in seconds of all decoded frames (of a span: since its start), hash frames and theirs, what went
    wrong, and whether frames before the span were seen."""

    media: bytes
    times: NDArray[np.float64]
    hash_frames: NDArray[np.uint8]
    hash_times_ms: NDArray[np.int64]
    num_packets: int
    num_errors: int
    is_cut_short: bool
    has_lead: bool

    def has_usable_times(self) -> bool:
        steps = np.diff(self.times)
        return bool(np.isfinite(self.times).all() and (steps > 0).mean() >= 0.9) if len(steps) else True

    def is_displaced(self, graph: Graph) -> bool:
        return bool(len(self.times)) and abs(float(self.times[0]) - graph.first_frame_seconds) > 0.002

    def begins_late(self, header: Header, graph: Graph) -> bool:
        """Whether the first frame of a span is not the first there may be, so that the seek may have ended behind it."""
        if self.has_lead:
            return False
        if not len(self.times):  # where times may begin anew, the claim may be of the last part alone
            return (
                header.container in UNINDEXED
                or header.claimed_seconds is None
                or graph.begin_seconds < header.claimed_seconds
            )
        steps = np.diff(self.times)
        step = float(np.median(steps)) if len(steps) else 1 / (header.claimed_fps or STORED_FPS)
        pictures_begin = max(0.0, header.first_frame_seconds - graph.begin_seconds)
        # A whole step late is one picture missing: a seek in a fragmented mp4 may end that little behind. Matroska, whose seeks do not,
        # counts in milliseconds, so that a whole step there is often the first picture.
        slack = 0.002 if header.container == "matroska" else -0.0001
        return not float(self.times[0]) < pictures_begin + step + slack


def _cut(descriptor: int, header: Header, encoding: Encoding, span: ClipSpan) -> tuple[Graph, _Pass]:
    """Decode a span: at once where a seek ends before it, else from further and further ahead."""
    zero = _first_picture_seconds(descriptor, header)
    *tried, last = (
        graph_of(header, encoding, span, None, seek_seconds=seek, zero_seconds=zero)
        for seek in seeks(header, span, zero_seconds=zero)
    )
    for graph in tried:
        took = _pass(descriptor, graph, planned_seconds=span.seconds)
        if not took.begins_late(header, graph):
            return graph, took
    return last, _pass(descriptor, last, planned_seconds=span.seconds)


def _first_picture_seconds(descriptor: int, header: Header) -> float:
    """Where the pictures of an AVI begin on ffmpeg's clock, which is its zero; 0 for other containers, which say when to show each picture.

    An AVI gives the order of decoding alone. ffmpeg puts the first picture as many frames late as it thinks the decoder holds back, and how
    many it thinks the header read by another program does not tell.
    """
    latest = _MOST_REORDERED / (header.claimed_fps or STORED_FPS)
    if header.container != "avi" or not 0 < header.first_frame_seconds <= latest:
        return 0.0
    graph = graph_of(header, Encoding("copy"), ClipSpan(0, max(1, round(2000 * latest))), None)
    try:
        took = _pass(descriptor, graph, planned_seconds=2 * latest)
    except ClipRejected:
        return 0.0  # the span may be whole where the beginning is not
    return float(took.times[0]) if len(took.times) and 0 < took.times[0] <= latest else 0.0


def _pass(descriptor: int, graph: Graph, *, planned_seconds: float) -> _Pass:
    with _memory_files(5) as (media, frames, frame_times, times, report):
        command = arguments(graph, descriptor, (media, frames, frame_times, times))
        for is_last_try in (False, True):
            os.lseek(descriptor, 0, os.SEEK_SET)
            finished = limits.run(
                command,
                limits=Limits.for_seconds(planned_seconds + graph.lead_seconds),
                pass_fds=(descriptor, media, frames, frame_times, times, report),
                # The log goes to memory at a level of its own: its last lines count packets and decode errors.
                environment={"FFREPORT": f"file={descriptor_path(report)}:level=40", "MALLOC_ARENA_MAX": "2"},
            )
            if finished.kind not in {"crash", "oom"} or is_last_try:
                break
        log = read_all(report).decode(errors="replace")
        seconds = _read_times(times) - graph.lead_seconds
        is_before = seconds < -1e-6
        # ffmpeg takes it for an error of its own when all it decodes lies before the span.
        is_empty = bool(is_before.any()) and "Could not open encoder before EOF" in log
        if finished.kind != "ok" and not is_empty:
            raise _rejection(finished, log)
        packets, errors = _count_packets(log)
        hash_seconds = _read_times(frame_times)
        pixels = np.frombuffer(read_all(frames), np.uint8)
        count = min(len(hash_seconds), pixels.size // HASH_SIDE_PX**2)
        hash_times = np.round((hash_seconds[:count] - graph.first_frame_seconds) * 1000)
        return _Pass(
            media=read_all(media),
            times=seconds[~is_before],
            hash_frames=pixels[: count * HASH_SIDE_PX**2].reshape(count, HASH_SIDE_PX, HASH_SIDE_PX),
            hash_times_ms=np.nan_to_num(hash_times).astype(np.int64),
            num_packets=packets,
            num_errors=errors + log.count("corrupt decoded frame"),
            is_cut_short=re.search(r"partial file|ended prematurely|[Tt]runcat|Packet corrupt", log) is not None,
            has_lead=bool(is_before.any()),
        )


# What came back


def _read_times(descriptor: int) -> NDArray[np.float64]:
    """Seconds of each frame from lines `pts numerator/denominator`; NaN where a frame came without time."""
    lines = read_all(descriptor).decode().split("\n")
    seconds = []
    for line in lines:
        ticks, _, base = line.partition(" ")
        if base:
            numerator, _, denominator = base.partition("/")
            is_known = abs(int(ticks)) < 1 << 62 and int(denominator) > 0
            seconds.append(int(ticks) * int(numerator) / int(denominator) if is_known else float("nan"))
    return np.asarray(seconds, dtype=np.float64)


def _count_packets(log: str) -> tuple[int, int]:
    """Packets read and decode errors by ffmpeg's own last words."""
    found = re.findall(
        r"\(video\): (\d+) packets read \(\d+ bytes\); (?:\d+ frames decoded; (\d+) decode errors)?", log
    )
    return sum(int(packets) for packets, _ in found), sum(int(errors or 0) for _, errors in found)


def _rejection(finished: limits.Finished, log: str) -> ClipRejected:
    reason, detail = reason_of(finished)
    if reason in {Reason.DECODE_ERROR, Reason.INTERNAL_ERROR} and re.search("partial file|ended prematurely", log):
        return ClipRejected(Reason.TRUNCATED, detail)
    return ClipRejected(reason, detail)


def _judge(took: _Pass, header: Header, *, is_whole: bool) -> bool:
    """Whether the clip is damaged but good enough.

    Raises:
        ClipRejected: too damaged, too short or too long.
    """
    frames = len(took.times)
    # Only an mp4 lists every frame in its header; an AVI counts empty chunks too.
    is_short_of_claim = is_whole and header.container == "mov" and 0 < took.num_packets < header.claimed_frames
    is_cut = took.is_cut_short or is_short_of_claim
    is_short = frames < POLICY.min_frames
    short = f"{frames} decoded frames, at least {POLICY.min_frames} are wanted"
    if is_short and is_cut:
        raise ClipRejected(Reason.TRUNCATED, short)
    if took.num_errors > POLICY.max_error_share * max(took.num_packets, 1):
        raise ClipRejected(Reason.DECODE_ERROR, f"{took.num_errors} of {took.num_packets} packets do not decode")
    if is_short:
        raise ClipRejected(Reason.DECODE_ERROR if took.num_errors else Reason.TOO_SHORT, short)
    if took.times[-1] - took.times[0] > POLICY.max_seconds:
        raise ClipRejected(Reason.TOO_LARGE, f"longer than {POLICY.max_seconds:g} s")
    return is_cut or took.num_errors > 0


def _source_facts(took: _Pass, header: Header, graph: Graph) -> tuple[MediaFacts, bool]:
    """Facts measured on decoded frames, and whether the frame rate varies."""
    steps = np.diff(took.times)
    step, is_vfr = 1 / STORED_FPS, False
    if len(steps):
        middle = float(np.median(steps))
        is_regular = np.abs(steps - middle) <= 0.25 * middle + 0.001
        step = float(steps[is_regular].mean())  # the mean undoes the rounding of millisecond time stamps
        is_vfr = bool(is_regular.mean() < 0.9)
    width, height = header.upright_size_px
    start = (header.start_seconds or 0.0) + graph.begin_seconds
    facts = MediaFacts(
        container=header.container,
        video_codec=header.video_codec,
        pixel_format=header.pixel_format,
        width_px=width,
        height_px=height,
        rotation_degrees=header.rotation_degrees,
        fps=round(1 / step, 4) if step > 0 else None,
        num_frames=len(took.times),
        duration_seconds=round(float(took.times[-1] - took.times[0]) + step, 6) if len(took.times) else 0.0,
        start_pts_seconds=round(start + float(took.times[0]), 6) if len(took.times) else None,
        has_audio=header.has_audio,
        num_decode_errors=took.num_errors,
    )
    return facts, is_vfr


def _stream_sha256(took: _Pass, header: Header) -> str:
    width, height = header.upright_size_px
    digest = hashlib.sha256(f"stmae stream 1 {width} {height} {len(took.times)} {len(took.hash_frames)}\n".encode())
    digest.update(took.hash_frames.tobytes())
    return digest.hexdigest()


def _stored_facts(media: bytes, encoding: Encoding) -> StoredFacts:
    if encoding.keeps_source:  # somebody else's bytes: look at them in a child
        with source_of_bytes(media) as descriptor:
            finished = limits.call(_measure_descriptor, descriptor, limits=Limits())
        if finished.kind != "ok":
            raise ClipRejected(*reason_of(finished))
        measured = finished.value
    else:
        measured = _measure_packets(media)
    return StoredFacts(
        encode_mode=encoding.mode, stored_bytes=len(media), stored_sha256=hashlib.sha256(media).hexdigest(), **measured
    )


def _measure_descriptor(descriptor: int) -> dict[str, Any]:
    return _measure_packets(read_all(descriptor))


def _measure_packets(media: bytes) -> dict[str, Any]:
    with open_video(media) as container:
        stream = container.streams.video[0]
        base = stream.time_base or 1
        times, keys = [], []
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None and not packet.is_discard:
                times.append(float(packet.pts * base))
                if packet.is_keyframe:
                    keys.append(times[-1])
        rate = stream.average_rate
        fps = float(rate) if rate else None
        gap = float(np.diff(sorted(keys)).max()) if len(keys) > 1 else None
        return {
            "stored_width_px": stream.codec_context.width,
            "stored_height_px": stream.codec_context.height,
            "stored_fps": fps,
            "stored_num_frames": len(times),
            "stored_seconds": round(max(times) - min(times) + (1 / fps if fps else 0.0), 6) if times else None,
            "keyframe_interval": round(gap * fps) if gap and fps else len(times) or None,
        }


# Memory files


@contextlib.contextmanager
def _memory_files(count: int) -> Iterator[tuple[int, ...]]:
    descriptors = tuple(os.memfd_create(f"clip-{number}", os.MFD_CLOEXEC) for number in range(count))
    try:
        yield descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
