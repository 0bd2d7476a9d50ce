"""Planes out of stored clips: decode the union of all wanted frames once, and hand the same planes to each clip that wants them.

Two exact ways (PERFORMANCE, Reader). *Aligned*: in a layered file frames 0, 4, 8, … need no others, so nothing between is decoded; only
the set's contract (`layout`) may allow it, on foreign files it would be silently wrong. *General*: any H.264 file; frames that are neither
wanted nor referred to are skipped. Other codecs are decoded whole from the key frame. A wanted frame that does not arrive is an error,
never a neighbour.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast, overload

import av.error
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image, ImageOps

from stmae_data.errors import ClipRejected, SetError
from stmae_data.media import POLICY, open_video

__all__ = ["Planes", "count_frames", "measure", "read_clips", "read_picture", "thumbnail"]

_ALIGNMENT = 4
_GOP = 64


@dataclass(frozen=True, slots=True)
class Planes:
    """Decoded pictures in limited BT.601 4:2:0.

    `y` is [N, H, W], `u` and `v` are [N, H/2, W/2], all uint8; frame `index` of the file stands in row `position[index]`.
    """

    y: NDArray[np.uint8]
    u: NDArray[np.uint8]
    v: NDArray[np.uint8]
    position: dict[int, int]

    def rows(self, clip: Sequence[int]) -> list[int]:
        """Rows of a clip's frames, in the clip's order."""
        return [self.position[index] for index in clip]

    @overload
    def to_rgb(self, rows: Sequence[int] | None = None) -> NDArray[np.uint8]: ...
    @overload
    def to_rgb(self, rows: Sequence[int] | None = None, *, dtype: type[np.uint8]) -> NDArray[np.uint8]: ...
    @overload
    def to_rgb(self, rows: Sequence[int] | None = None, *, dtype: type[np.float32]) -> NDArray[np.float32]: ...

    def to_rgb(
        self, rows: Sequence[int] | None = None, *, dtype: type[np.uint8] | type[np.float32] = np.uint8
    ) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Colour by the exact BT.601 matrix; chroma is sited left and interpolated between samples.

        Args:
            rows: which rows, all unless said.
            dtype: uint8 levels, rounded, or float32 levels; both within [0, 255].

        Returns:
            Pictures [N, H, W, 3].
        """
        chosen = range(len(self.y)) if rows is None else rows
        out: Any = np.empty((len(chosen), *self.y.shape[1:], 3), dtype)
        for number, row in enumerate(chosen):  # one picture at a time stays in the processor's cache
            y = (self.y[row].astype(np.float32) - 16.0) * (255.0 / 219.0)
            u, v = _full_chroma(self.u[row]), _full_chroma(self.v[row])
            for channel, colour in enumerate((y + v * _RED_V, y + u * _GREEN_U + v * _GREEN_V, y + u * _BLUE_U)):
                if dtype is np.uint8:
                    colour += 0.5
                out[number, :, :, channel] = np.clip(colour, 0.0, 255.0, out=colour)
        return cast(NDArray[np.uint8] | NDArray[np.float32], out)


# ITU-R BT.601: Kr = 0.299, Kb = 0.114; chroma spans 224 levels.
_CHROMA = 255.0 / 224.0
_RED_V = np.float32(2 * (1 - 0.299) * _CHROMA)
_BLUE_U = np.float32(2 * (1 - 0.114) * _CHROMA)
_GREEN_U = np.float32(-2 * (1 - 0.114) * 0.114 / 0.587 * _CHROMA)
_GREEN_V = np.float32(-2 * (1 - 0.299) * 0.299 / 0.587 * _CHROMA)


def _full_chroma(plane: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Chroma [h, w] to [2h, 2w], centred on zero: left-sited across, midway between lines down."""
    half = plane.astype(np.float32) - 128.0
    across = np.repeat(half, 2, axis=1)
    across[:, 1:-1:2] += half[:, 1:]
    across[:, 1:-1:2] *= 0.5
    far = across * np.float32(0.25)
    out = np.repeat(across - far, 2, axis=0)
    out[2::2] += far[:-1]
    out[1:-1:2] += far[1:]
    out[0] += far[0]
    out[-1] += far[-1]
    return out


def read_clips(media: bytes, clips: Sequence[Sequence[int]], *, layout: str) -> Planes:
    """Decode the frames of several clips of one stored video.

    Args:
        media: the stored file.
        clips: frame indices of each clip, counted from 0 in order of presentation; may repeat and overlap.
        layout: `layered-4` or `original`, as the set says; only the first allows the aligned way.

    Raises:
        SetError: the file cannot be read, or a wanted frame does not arrive; the message names it.
    """
    wanted = sorted({index for clip in clips for index in clip})
    if not wanted or wanted[0] < 0:
        raise SetError(f"Frames {wanted[:1]} cannot be read; wanted indices of 0 and more, at least one.")
    try:
        with open_video(media) as container:
            stream = container.streams.video[0]
            aspect = float(stream.sample_aspect_ratio or 1)
            collector = _Collector(wanted, is_ours=layout == "layered-4", aspect=aspect if aspect > 0 else 1.0)
            if layout == "layered-4" and all(index % _ALIGNMENT == 0 for index in wanted):
                _read_aligned(container, stream, collector)
            else:
                order = _presentation_order(container, stream) if stream.codec_context.name == "h264" else {}
                if order:
                    _read_general(container, stream, collector, order)
                if collector.missing:
                    # Another codec, time stamps that do not tell frames apart, or a key frame that decoding cannot start from.
                    container.seek(0, stream=stream)
                    _read_all(container, stream, collector, order)
    except ClipRejected as error:
        raise SetError(f"The stored video cannot be opened ({error.detail}); verify the set.") from error
    except av.error.FFmpegError as error:
        raise SetError(f"The stored video does not decode ({error.strerror}); verify the set.") from error
    return collector.finish()


def count_frames(media: bytes) -> int:
    """Number of frames of a stored file, counted from its packets.

    Raises:
        SetError: the file cannot be opened.
    """
    return measure(media)[0]


def measure(media: bytes) -> tuple[int, float]:
    """Number of frames of a stored file, counted from its packets, and its frame rate, 0 where it does not say.

    Raises:
        SetError: the file cannot be opened.
    """
    try:
        with open_video(media) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard), rate
    except (ClipRejected, av.error.FFmpegError) as error:
        raise SetError(f"The stored video cannot be read ({error}); verify the set.") from error


class _Collector:
    """Takes frames as they come and keeps the wanted ones."""

    def __init__(self, wanted: Sequence[int], *, is_ours: bool, aspect: float) -> None:
        self.position = {index: row for row, index in enumerate(wanted)}
        self.first, self.last = wanted[0], wanted[-1]
        self.missing = set(wanted)
        self._is_ours, self._aspect = is_ours, aspect
        self._reformatter = VideoReformatter()
        self._planes: tuple[NDArray[np.uint8], ...] = ()

    def take(self, index: int, frame: VideoFrame) -> None:
        """Copy the planes of frame `index` if it is wanted and has not come yet; a damaged picture does not count as come."""
        if index not in self.missing:
            return
        if frame.is_corrupt:
            return
        planes = _planes_of(frame) if self._is_ours else _foreign_planes(frame, self._reformatter, self._aspect)
        if not self._planes:
            self._planes = tuple(np.empty((len(self.position), *each.shape), np.uint8) for each in planes)
        for kept, plane in zip(self._planes, planes, strict=True):
            if kept.shape[1:] != plane.shape:
                raise SetError(f"Frame {index} of the stored video has another size than the first; verify the set.")
            kept[self.position[index]] = plane
        self.missing.discard(index)

    def finish(self) -> Planes:
        """All planes; every wanted frame must have come."""
        if self.missing:
            raise SetError(
                f"Frame {min(self.missing)} of the stored video did not arrive ({len(self.missing)} of {len(self.position)} "
                "are missing); verify the set."
            )
        y, u, v = self._planes
        return Planes(y, u, v, self.position)


def _read_aligned(container: InputContainer, stream: VideoStream, collector: _Collector) -> None:
    """Frames on multiples of 4 of a layered file: B frames are skipped unseen, odd ones are not even sent."""
    step = _step_ticks(stream)
    context = stream.codec_context
    context.skip_frame = "BIDIR"
    for packet in _packets_from(container, stream, collector.first // _GOP * _GOP * step):
        index = round(packet.pts / step) if packet.pts is not None else 0
        if index > collector.last:
            break
        # The last frame of a group of pictures is a P frame of odd index: nothing wanted refers to it.
        if index % 2 == 0:
            for frame in context.decode(packet):
                collector.take(_index_of(frame, step), frame)
    for frame in context.decode(None):
        collector.take(_index_of(frame, step), frame)


def _read_general(container: InputContainer, stream: VideoStream, collector: _Collector, order: dict[int, int]) -> None:
    """Any H.264 file: skip what is neither wanted nor referred to; stop when all has arrived, not at the first later packet."""
    context = stream.codec_context
    first_pts = next((pts for pts, index in order.items() if index == collector.first), None)
    if first_pts is None:
        return
    skipping = None
    for packet in _packets_from(container, stream, first_pts):
        is_skipped = order.get(packet.pts if packet.pts is not None else -1) not in collector.missing
        if is_skipped is not skipping:
            context.skip_frame = "NONREF" if is_skipped else "DEFAULT"
            skipping = is_skipped
        try:
            frames = context.decode(packet)
        except av.error.InvalidDataError:
            continue  # the frame stays missing
        for frame in frames:
            if frame.pts is not None and frame.pts in order:
                collector.take(order[frame.pts], frame)
        if not collector.missing:
            return
    context.skip_frame = "DEFAULT"
    for frame in context.decode(None):
        if frame.pts is not None and frame.pts in order:
            collector.take(order[frame.pts], frame)


def _read_all(container: InputContainer, stream: VideoStream, collector: _Collector, order: dict[int, int]) -> None:
    """Every frame from the start, by time stamp where these tell frames apart, else in order of presentation."""
    context = stream.codec_context
    context.skip_frame = "DEFAULT"
    count = 0
    for packet in container.demux(stream):
        try:
            frames = context.decode(packet)
        except av.error.InvalidDataError:
            if order:
                continue  # that frame stays missing, the others keep their indices
            return  # from here on, counting would name neighbours
        for frame in frames:
            collector.take(order.get(frame.pts if frame.pts is not None else -1, -1) if order else count, frame)
            count += 1
        if not collector.missing:
            return


def _step_ticks(stream: VideoStream) -> int:
    """Ticks of the container between two frames; a whole number in files of ours."""
    rate, base = stream.average_rate, stream.time_base
    ticks = 1 / (rate * base) if rate and base else 0
    if not ticks or ticks != round(ticks):
        raise SetError("The stored video has no constant frame rate, so it is not layered; verify the set.")
    return round(ticks)


def _index_of(frame: VideoFrame, step: int) -> int:
    return round(frame.pts / step) if frame.pts is not None else -1


def _packets_from(container: InputContainer, stream: VideoStream, pts: int) -> Iterator[Packet[VideoStream]]:
    """Packets with data from the key frame at or before `pts` on."""
    if pts > 0:
        container.seek(pts, stream=stream)
    packets = (packet for packet in container.demux(stream) if packet.size)
    first = next(packets, None)
    if pts > 0 and (first is None or first.pts is None or first.pts > pts):
        # The seek landed behind the wanted frame: begin at the beginning instead.
        container.seek(0, stream=stream)
        packets = (packet for packet in container.demux(stream) if packet.size)
        first = next(packets, None)
    if first is not None:
        yield first
        yield from packets


def _presentation_order(container: InputContainer, stream: VideoStream) -> dict[int, int]:
    """Index of each frame by its time stamp, from packets alone; empty where time stamps are missing or repeat."""
    packets = [packet.pts for packet in container.demux(stream) if packet.size and not packet.is_discard]
    container.seek(0, stream=stream)
    times = [pts for pts in packets if pts is not None]
    order = {pts: index for index, pts in enumerate(sorted(times))}
    return order if len(order) == len(packets) else {}


# Pictures


def _planes_of(frame: VideoFrame) -> tuple[NDArray[np.uint8], ...]:
    """Views of the three planes of a 4:2:0 picture of even size."""
    if frame.format.name != "yuv420p" or frame.width % 2 or frame.height % 2:
        raise SetError(f"A picture of {frame.format.name} {frame.width}x{frame.height} is not layered; verify the set.")
    shapes = ((frame.height, frame.width), *2 * ((frame.height // 2, frame.width // 2),))
    return tuple(
        np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)[:height, :width]
        for plane, (height, width) in zip(frame.planes, shapes, strict=True)
    )


def _foreign_planes(frame: VideoFrame, reformatter: VideoReformatter, aspect: float) -> tuple[NDArray[np.uint8], ...]:
    """Planes of any picture in the one form we hand out: limited BT.601, even size, square pixels, upright.

    Matrix and range come from the stream's tags; untagged means BT.601 limited, as other readers assume.
    """
    width, height = max(2, round(frame.width * aspect / 2) * 2), frame.height // 2 * 2
    rotation = frame.rotation
    is_full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    is_other_matrix = frame.colorspace in (Colorspace.ITU709, Colorspace.BT2020)
    if frame.format.name != "yuv420p" or (width, height) != (frame.width, frame.height) or is_full or is_other_matrix:
        frame = reformatter.reformat(
            frame,
            width,
            height,
            "yuv420p",
            dst_colorspace=Colorspace.ITU601,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
            threads=1,
        )
    turns = round(rotation / 90) % 4 if abs(rotation) <= 360 else 0
    return tuple(np.rot90(plane, turns) for plane in _planes_of(frame))


def read_picture(media: bytes) -> NDArray[np.uint8]:
    """A stored picture as RGB [H, W, 3], upright.

    Args:
        media: a JPEG, or of foreign tars a PNG.

    Raises:
        SetError: it is none, is damaged, or is too large.
    """
    try:
        with Image.open(io.BytesIO(media), formats=("JPEG", "PNG")) as stored:
            if stored.width * stored.height > POLICY.max_area_px:
                raise SetError(f"A stored picture of {stored.width}x{stored.height} is too large; verify the set.")
            upright = ImageOps.exif_transpose(stored) or stored
            return np.array(upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, OverflowError) as error:
        raise SetError(f"The stored picture does not decode ({str(error)[:160]}); verify the set.") from error


def thumbnail(media: bytes, *, width_px: int, frame: int | None = None) -> bytes:
    """A JPEG of one frame of a stored clip (or of a stored picture), `width_px` wide, for reports.

    Args:
        media: the stored file.
        width_px: width of the JPEG.
        frame: its index, counted from 0, at most the last one; the middle of the clip unless given.

    Raises:
        SetError: the clip cannot be read.
    """
    if media[:2] == b"\xff\xd8":
        picture = Image.fromarray(read_picture(media))
    else:
        last = count_frames(media) - 1
        planes = read_clips(media, [[(last + 1) // 2 if frame is None else min(frame, last)]], layout="original")
        picture = Image.fromarray(planes.to_rgb()[0])
    height_px = max(1, round(picture.height * width_px / picture.width))
    with io.BytesIO() as out:
        picture.resize((width_px, height_px), Image.Resampling.LANCZOS).save(out, "JPEG", quality=80)
        return out.getvalue()
