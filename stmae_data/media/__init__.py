"""The one guarded opener: hand over a descriptor, sniff it, probe it in a confined child, open stored clips.

Nothing in an input can make us open, run, connect to or wait for anything beyond that input: the decoder sees a file object or a
descriptor, never a name; nested opens raise; formats that point elsewhere are not on the list (RELIABILITY §2, Decoder).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from stmae_data import limits
from stmae_data.errors import ClipRejected, Reason
from stmae_data.limits import Finished, Limits
from stmae_data.media.hashing import hash_descriptor, hash_once
from stmae_data.media.reasons import reason_of
from stmae_data.media.sniff import sniff, walk_boxes

__all__ = [
    "FORMATS",
    "POLICY",
    "Header",
    "Policy",
    "examine",
    "hash_descriptor",
    "hash_once",
    "header_of",
    "open_source",
    "open_video",
    "probe",
    "read_all",
    "reason_of",
    "source_of_bytes",
]

FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"
"""Containers that are read. Leaving out HLS, DASH, concat, SDP, image2, SVG and GIF is what keeps inputs from pointing elsewhere."""

_SNIFFED_BYTES = 4096
_FIRST_FRAME_PACKETS = 200


@dataclass(frozen=True, slots=True)
class Policy:
    """What a video may be; every number is of RELIABILITY §2 and stands in the report."""

    min_side_px: int = 32
    max_side_px: int = 8192
    max_area_px: int = 40_000_000
    max_aspect: float = 8.0
    min_frames: int = 16
    max_bytes: int = 1 << 30
    max_seconds: float = 4 * 3600.0
    max_streams: int = 32
    max_error_share: float = 0.10
    probe_bytes: int = 5_000_000


POLICY = Policy()
"""The policy in force."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the container and the first decoded frame say. Claims, not facts: lengths and rates are measured when decoding.

    `width_px`, `height_px` are coded sizes; `rotation_degrees` is the counter-clockwise turn that makes the picture upright as PyAV
    tells it; `sample_aspect` is the pixel's width over its height; `stream_index` is the picture stream chosen. `first_frame_seconds` counts
    from `start_seconds`, where the container starts: pictures may begin later than sound. A seek counts from `start_seconds` less
    `start_delay_seconds`.
    """

    container: str
    video_codec: str
    pixel_format: str | None
    stream_index: int
    width_px: int
    height_px: int
    rotation_degrees: int
    sample_aspect: float
    has_alpha: bool
    is_interlaced: bool
    has_audio: bool
    claimed_seconds: float | None
    claimed_frames: int
    claimed_fps: float | None
    start_seconds: float | None
    start_delay_seconds: float
    first_frame_seconds: float
    num_bytes: int

    @property
    def upright_size_px(self) -> tuple[int, int]:
        """Width and height as a person sees them: pixels squared by stretching the width, then turned upright."""
        width = max(1, round(self.width_px * self.sample_aspect))
        height = self.height_px
        return (height, width) if self.rotation_degrees % 180 == 90 else (width, height)

    @property
    def planned_seconds(self) -> float:
        """Seconds to plan limits with: the header's claim, held to the policy and to at least 1 kB of file per second."""
        claimed = self.claimed_seconds or 0.0
        return min(claimed, POLICY.max_seconds, max(60.0, self.num_bytes / 1000))


@contextlib.contextmanager
def open_source(path: Path | bytes) -> Iterator[int]:
    """A read-only descriptor of a regular file, closed at the end of the block.

    Args:
        path: where the file is; bytes for names that are not UTF-8.

    Raises:
        ClipRejected: a link, a special file, empty, too large, gone; `changed` when size or time differ after use.
    """
    descriptor = _open_regular(os.fsencode(path))
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise ClipRejected(Reason.SPECIAL_FILE, "not a regular file")
        _check_size(before.st_size)
        os.set_blocking(descriptor, True)
        yield descriptor
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ClipRejected(Reason.CHANGED, "size or time of the file changed while it was read")
    finally:
        os.close(descriptor)


def _open_regular(path: bytes) -> int:
    try:
        # Opening some devices already does something, so look before.
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
            raise ClipRejected(Reason.SPECIAL_FILE, "not a regular file")
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = {errno.ELOOP: Reason.SYMLINK, errno.ENXIO: Reason.SPECIAL_FILE, errno.ENODEV: Reason.SPECIAL_FILE}.get(
            error.errno or 0, Reason.GONE
        )
        raise ClipRejected(reason, os.strerror(error.errno or 0)) from error
    except ValueError as error:
        raise ClipRejected(Reason.GONE, "the name holds a zero byte") from error


def _check_size(size: int) -> None:
    if size == 0:
        raise ClipRejected(Reason.EMPTY, "0 bytes")
    if size > POLICY.max_bytes:
        raise ClipRejected(Reason.TOO_LARGE, f"{size} bytes, at most {POLICY.max_bytes} are taken")


@contextlib.contextmanager
def source_of_bytes(data: bytes) -> Iterator[int]:
    """A descriptor over bytes in memory, for members of tars; same checks as `open_source`."""
    _check_size(len(data))
    descriptor = os.memfd_create("source", os.MFD_CLOEXEC)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        yield descriptor
    finally:
        os.close(descriptor)


def read_all(descriptor: int) -> bytes:
    """The whole file behind a descriptor; its offset is left alone."""
    size, pieces = os.fstat(descriptor).st_size, []
    offset = 0
    while offset < size and (piece := os.pread(descriptor, size - offset, offset)):
        pieces.append(piece)
        offset += len(piece)
    return b"".join(pieces)


def probe(descriptor: int, *, limits: Limits | None = None) -> Header:
    """Read the header and the first frame in a forked, confined child.

    Args:
        descriptor: of a regular file (`open_source`, `source_of_bytes`).
        limits: what the child may use; 10 processor seconds unless said.

    Raises:
        ClipRejected: with the reason it is not a video we take.
    """
    _check_size(os.fstat(descriptor).st_size)
    finished = _call(descriptor, limits or Limits(cpu_seconds=10))
    if finished.kind in {"crash", "oom"}:
        finished = _call(descriptor, limits or Limits(cpu_seconds=10))
    if finished.kind != "ok":
        raise ClipRejected(*reason_of(finished))
    if "reason" in finished.value:
        raise ClipRejected(Reason(finished.value["reason"]), finished.value["detail"])
    return Header(**finished.value)


def _call(descriptor: int, allowed: Limits) -> Finished:
    return limits.call(examine, descriptor, limits=allowed)


def open_video(data: bytes | BinaryIO) -> InputContainer:
    """Open a stored clip in this process, guarded; the caller closes it (or uses `with`).

    The first video stream is set to decode with one thread: workers are parallel, decoders are not.

    Raises:
        ClipRejected: it is not readable as a video.
    """
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    try:
        container = _open_guarded(stream)
    except av.error.FFmpegError as error:
        raise ClipRejected(Reason.CORRUPT_HEADER, f"a stored clip cannot be opened ({error.strerror})") from error
    if not container.streams.video:
        container.close()
        raise ClipRejected(Reason.NO_VIDEO, "a stored clip holds no video stream")
    _guard_decoder(container.streams.video[0])
    return container


class _NestedOpen(Exception):
    """The input asked for another file or address."""


def _refuse_open(url: str, flags: int, options: dict[str, str]) -> NoReturn:  # noqa: ARG001 - PyAV gives all three
    raise _NestedOpen(url)


def _open_guarded(stream: BinaryIO) -> InputContainer:
    options = {
        "format_whitelist": FORMATS,
        "protocol_whitelist": "",
        "probesize": str(POLICY.probe_bytes),
        "analyzeduration": str(POLICY.probe_bytes),
        "max_streams": str(POLICY.max_streams + 1),  # one more, so that too many can be told from enough
    }
    return av.open(stream, mode="r", metadata_errors="replace", io_open=_refuse_open, options=options)


def _guard_decoder(stream: VideoStream) -> None:
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(POLICY.max_area_px)}


def _look_at_header(container: InputContainer, size: int) -> dict[str, Any]:
    return asdict(header_of(container, size))


def examine(descriptor: int, look: Callable[[InputContainer, int], dict[str, Any]] = _look_at_header) -> dict[str, Any]:
    """In a confined child: sniff and open an input, guarded, and say what `look(container, bytes)` sees, or reason and detail."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            size = os.fstat(descriptor).st_size
            kind = sniff(stream.read(_SNIFFED_BYTES), size)
            is_cut = kind == "mov" and walk_boxes(descriptor, size)
            stream.seek(0)
            return _look_guarded(look, stream, kind=kind, size=size, is_cut=is_cut)
    except ClipRejected as rejected:
        return {"reason": str(rejected.reason), "detail": rejected.detail}


def _look_guarded(
    look: Callable[[InputContainer, int], dict[str, Any]],
    stream: BinaryIO,
    *,
    kind: str | None,
    size: int,
    is_cut: bool,
) -> dict[str, Any]:
    try:
        with _open_guarded(stream) as container:
            return look(container, size)
    except _NestedOpen as error:
        raise ClipRejected(Reason.UNSAFE_PLAYLIST, f"it asks for {str(error)[:80]!r}") from error
    except (av.error.FFmpegError, UnicodeError, OverflowError) as error:
        detail = f"cannot be opened ({getattr(error, 'strerror', None) or type(error).__name__})"
        if is_cut:
            raise ClipRejected(Reason.TRUNCATED, detail) from error
        raise ClipRejected(Reason.CORRUPT_HEADER if kind else Reason.NOT_MEDIA, detail) from error


def header_of(container: InputContainer, size: int, *, decodes: bool = True) -> Header:
    """What an opened container says; without decoding the first frame, turns and interlacing stay unknown (0, False).

    Raises:
        ClipRejected: it holds no video that the policy takes.
    """
    if len(container.streams) > POLICY.max_streams:
        raise ClipRejected(Reason.TOO_LARGE, f"{len(container.streams)} streams, at most {POLICY.max_streams}")
    if not len(container.streams):
        raise ClipRejected(Reason.CORRUPT_HEADER, "a container without a stream")
    pictures = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
    if not pictures:
        raise ClipRejected(
            Reason.NO_VIDEO, "no video stream" if not container.streams.video else "only a cover picture"
        )
    stream = pictures[0]
    context = cast(Any, stream).codec_context
    if context is None:
        raise ClipRejected(Reason.DECODE_ERROR, "no decoder for this codec")
    _check_picture(context.width, context.height)
    _guard_decoder(stream)
    frame = _first_frame(container, stream) if decodes else None
    width, height = (frame.width, frame.height) if frame is not None else (context.width, context.height)
    _check_picture(width, height)
    aspect = stream.sample_aspect_ratio or context.sample_aspect_ratio or Fraction(1)
    rotation = round(frame.rotation) if frame is not None else 0
    layout = frame.format if frame is not None else context.format
    rate = stream.average_rate or stream.guessed_rate
    start = _start_seconds(container, stream)
    earliest = start if container.start_time is None else container.start_time / av.time_base
    first = start if frame is None else frame.time
    header = Header(
        container=container.format.name.split(",")[0],
        video_codec=context.codec.canonical_name,
        pixel_format=layout.name if layout is not None else None,
        stream_index=stream.index,
        width_px=width,
        height_px=height,
        rotation_degrees=rotation % 360 if abs(rotation) <= 360 else 0,
        sample_aspect=float(aspect) if aspect > 0 else 1.0,
        has_alpha=layout is not None and _has_alpha(layout.name),
        is_interlaced=frame is not None and bool(frame.interlaced_frame),
        has_audio=bool(container.streams.audio),
        claimed_seconds=None if container.duration is None else max(0.0, container.duration / av.time_base),
        claimed_frames=stream.frames,
        claimed_fps=float(rate) if rate else None,
        start_seconds=start,
        start_delay_seconds=max(0.0, round((start or 0.0) - (earliest or 0.0), 6)),
        first_frame_seconds=max(0.0, round((first or 0.0) - (start or 0.0), 6)),
        num_bytes=size,
    )
    _check_picture(*header.upright_size_px)
    return header


def _start_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """What ffmpeg takes as zero: the container's start, or, where time stamps may jump, that of the stream in use."""
    if container.format.name in {"mpeg", "mpegts"} and stream.start_time is not None and stream.time_base:
        return float(stream.start_time * stream.time_base)
    return None if container.start_time is None else container.start_time / av.time_base


def _has_alpha(pixel_format: str) -> bool:
    return re.match(r"yuva|gbrap|rgba|bgra|argb|abgr|ya\d|pal8|ayuv", pixel_format) is not None


def _first_frame(container: InputContainer, stream: VideoStream) -> VideoFrame | None:
    """The first frame that decodes, None when the first packets give none: ffmpeg then has the last word."""
    packets = container.demux(stream)
    for _ in range(_FIRST_FRAME_PACKETS):
        try:
            packet = next(packets)
            frames = packet.decode()
        except StopIteration:
            return None
        except av.error.FFmpegError:
            continue  # errors are counted where everything is decoded, by the policy
        if frames:
            return frames[0]
    return None


def _check_picture(width: int, height: int) -> None:
    if width <= 0 or height <= 0:
        raise ClipRejected(Reason.CORRUPT_HEADER, f"a picture of {width}x{height}")
    if width * height > POLICY.max_area_px:
        raise ClipRejected(Reason.BOMB, f"a picture of {width}x{height}, at most {POLICY.max_area_px} pixels are taken")
    if max(width, height) > POLICY.max_side_px:
        raise ClipRejected(Reason.TOO_LARGE, f"a picture of {width}x{height}, sides are at most {POLICY.max_side_px}")
    if min(width, height) < POLICY.min_side_px:
        raise ClipRejected(Reason.FILTERED, f"a picture of {width}x{height}, sides are at least {POLICY.min_side_px}")
    if max(width, height) > POLICY.max_aspect * min(width, height):
        raise ClipRejected(Reason.FILTERED, f"a picture of {width}x{height} is longer than {POLICY.max_aspect:g}:1")
