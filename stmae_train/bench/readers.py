"""Ways to have clips of a stored video as uint8 RGB crops: ours, and the readers that people use today.

Each takes the file and the frames of K clips, and gives K clips [T, 3, S, S]. A peer decodes the union of the frames once too, where it
can be asked for it; all crop and resize alike (torchvision, uint8, antialiased).
"""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from stmae_data.frames import Planes, read_clips
from stmae_data.media import open_video
from stmae_train.views import Boxes

__all__ = ["PEERS", "Stored", "aligned_frames_only", "ours_rgb", "ours_yuv", "present_peers"]

Bytes = NDArray[np.uint8]
Clips = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored video, in memory and as a file: some readers take only one of them."""

    media: bytes
    path: Path
    num_frames: int
    height: int
    width: int


def ours_yuv(stored: Stored, clips: Clips, boxes: Boxes, *, layout: str) -> list[tuple[Bytes, Bytes, Bytes]]:
    """Cropped planes, ready for the device."""
    planes = read_clips(stored.media, clips, layout=layout)
    found = []
    for number, clip in enumerate(clips):
        rows, down, across = planes.rows(clip), *_even(boxes, number)
        half_down, half_across = (slice(each.start // 2, each.stop // 2) for each in (down, across))
        u, v = (plane[rows, half_down, half_across] for plane in (planes.u, planes.v))
        found.append((planes.y[rows, down, across], u, v))
    return found


def _even(boxes: Boxes, number: int) -> tuple[slice, slice]:
    """Rows and columns of a box, widened to whole chroma samples."""
    top, left = int(boxes.top[number]) // 2 * 2, int(boxes.left[number]) // 2 * 2
    bottom, right = int(boxes.top[number] + boxes.height[number]), int(boxes.left[number] + boxes.width[number])
    return slice(top, bottom + bottom % 2), slice(left, right + right % 2)


def ours_rgb(stored: Stored, clips: Clips, boxes: Boxes, *, size: int, layout: str) -> list[Tensor]:
    """Planes, cropped; colour by OpenCV where it is installed and else by one kept scaler of PyAV; then torchvision's resize."""
    planes = read_clips(stored.media, clips, layout=layout)
    colour = _colour_by_opencv if importlib.util.find_spec("cv2") else _colour_by_pyav
    found = []
    for number, clip in enumerate(clips):
        found.append(_resize(colour(planes, planes.rows(clip), boxes, number), size))
    return found


def _colour_by_opencv(planes: Planes, rows: Sequence[int], boxes: Boxes, number: int) -> Bytes:
    """The box of the pictures as RGB [T, h, w, 3], dense: each is coloured in one small buffer and leaves it cropped."""
    cv2: Any = importlib.import_module("cv2")
    down, across = _even(boxes, number)
    inside, height, width = _inside(boxes, number), down.stop - down.start, across.stop - across.start
    out = np.empty((len(rows), int(boxes.height[number]), int(boxes.width[number]), 3), dtype=np.uint8)
    packed = np.empty((height * 3 // 2, width), dtype=np.uint8)
    coloured = np.empty((height, width, 3), dtype=np.uint8)
    # Chroma follows as one flat piece: a height of twice an odd number leaves half a row.
    chroma = packed[height:].reshape(2, height // 2, width // 2)
    half_down, half_across = (slice(each.start // 2, each.stop // 2) for each in (down, across))
    for place, row in enumerate(rows):
        packed[:height] = planes.y[row, down, across]
        chroma[0], chroma[1] = planes.u[row, half_down, half_across], planes.v[row, half_down, half_across]
        cv2.cvtColor(packed, cv2.COLOR_YUV2RGB_I420, dst=coloured)
        out[place] = coloured[inside]
    return out


def _inside(boxes: Boxes, number: int) -> tuple[slice, slice]:
    """The box within its widened rows and columns."""
    down, across = _even(boxes, number)
    top, left = int(boxes.top[number]) - down.start, int(boxes.left[number]) - across.start
    return slice(top, top + int(boxes.height[number])), slice(left, left + int(boxes.width[number]))


def _colour_by_pyav(planes: Planes, rows: Sequence[int], boxes: Boxes, number: int) -> Bytes:
    reformatter, out = VideoReformatter(), []
    (down, across), inside = _even(boxes, number), _inside(boxes, number)
    half_down, half_across = (slice(each.start // 2, each.stop // 2) for each in (down, across))
    for row in rows:
        frame = VideoFrame(across.stop - across.start, down.stop - down.start, "yuv420p")
        parts = (
            planes.y[row, down, across],
            planes.u[row, half_down, half_across],
            planes.v[row, half_down, half_across],
        )
        for plane, values in zip(frame.planes, parts, strict=True):
            target: Any = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            target[: values.shape[0], : values.shape[1]] = values
        out.append(reformatter.reformat(frame, format="rgb24").to_ndarray()[inside])
    return np.stack(out)


def _resized(pictures: Bytes, boxes: Boxes, number: int, size: int) -> Tensor:
    """Pictures [T, H, W, 3] cropped and resized to [T, 3, size, size]."""
    top, left = int(boxes.top[number]), int(boxes.left[number])
    return _resize(pictures[:, top : top + int(boxes.height[number]), left : left + int(boxes.width[number])], size)


def _resize(pictures: Bytes, size: int) -> Tensor:
    # Dense, colours innermost: torch has a fast kernel for that, and for a view with gaps one that is ten times slower.
    dense = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    done: Tensor = functional.resize(dense, [size, size], antialias=True)
    return done


def _cropped(found: dict[int, Bytes], clips: Clips, boxes: Boxes, size: int) -> list[Tensor]:
    return [
        _resized(np.stack([found[index] for index in clip]), boxes, number, size) for number, clip in enumerate(clips)
    ]


def _union(clips: Clips) -> list[int]:
    return sorted({index for clip in clips for index in clip})


def _pyav(stored: Stored, clips: Clips, boxes: Boxes, size: int) -> list[Tensor]:
    wanted, found, reformatter = set(_union(clips)), dict[int, Bytes](), VideoReformatter()
    with open_video(stored.media) as container:
        stream = container.streams.video[0]
        step = 1 / (stream.average_rate * stream.time_base) if stream.average_rate and stream.time_base else 1
        container.seek(int(min(wanted) * step), stream=stream)
        for frame in container.decode(stream):
            index = round((frame.pts or 0) / step)
            if index in wanted:
                found[index] = np.asarray(reformatter.reformat(frame, format="rgb24").to_ndarray(), dtype=np.uint8)
            if index >= max(wanted):
                break
    return _cropped(found, clips, boxes, size)


def _opencv(stored: Stored, clips: Clips, boxes: Boxes, size: int) -> list[Tensor]:
    cv2: Any = importlib.import_module("cv2")
    cv2.setNumThreads(1)
    wanted, found = _union(clips), dict[int, Bytes]()
    capture = cv2.VideoCapture(str(stored.path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    try:
        capture.set(cv2.CAP_PROP_POS_FRAMES, wanted[0])
        for index in range(wanted[0], wanted[-1] + 1):
            if not capture.grab():
                break
            if index in wanted:
                found[index] = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
    finally:
        capture.release()
    return _cropped(found, clips, boxes, size)


def _decord(stored: Stored, clips: Clips, boxes: Boxes, size: int) -> list[Tensor]:
    wanted = _union(clips)
    reader = importlib.import_module("decord").VideoReader(io.BytesIO(stored.media), num_threads=1)
    pictures = reader.get_batch(wanted).asnumpy()
    return _cropped(dict(zip(wanted, pictures, strict=True)), clips, boxes, size)


def _torchcodec(stored: Stored, clips: Clips, boxes: Boxes, size: int) -> list[Tensor]:
    wanted = _union(clips)
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(stored.media, num_ffmpeg_threads=1, dimension_order="NHWC")
    pictures = decoder.get_frames_at(wanted).data.numpy()
    return _cropped(dict(zip(wanted, pictures, strict=True)), clips, boxes, size)


Peer = Callable[[Stored, Clips, Boxes, int], list[Tensor]]
PEERS: dict[str, tuple[str, Peer]] = {
    "torchcodec": ("torchcodec.decoders", _torchcodec),
    "OpenCV": ("cv2", _opencv),
    "decord": ("decord", _decord),
    "PyAV": ("av", _pyav),
}


def present_peers() -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can be imported here, and why the others cannot."""
    found, absent = dict[str, Peer](), dict[str, str]()
    for name, (module, read) in PEERS.items():
        try:
            importlib.import_module(module)
        except (
            ImportError,
            OSError,
            RuntimeError,
        ) as error:  # torchcodec raises RuntimeError where ffmpeg's libraries are missing
            absent[name] = (str(error).splitlines() or [type(error).__name__])[0][:160]
        else:
            found[name] = read
    return found, absent


def aligned_frames_only(stored: Stored, clips: Clips) -> int:
    """libavcodec at its least: decode what a layered file needs for these clips, and give nothing out; returns frames decoded."""
    wanted, count = _union(clips), 0
    with open_video(stored.media) as container:
        stream = container.streams.video[0]
        assert stream.average_rate and stream.time_base
        step, context = round(1 / (stream.average_rate * stream.time_base)), stream.codec_context
        context.skip_frame = "BIDIR"
        if wanted[0] >= 64:
            container.seek(wanted[0] // 64 * 64 * step, stream=stream)
        for packet in container.demux(stream):
            index = round((packet.pts or 0) / step)
            if not packet.size or index > wanted[-1]:
                break
            if index % 2 == 0:
                count += len(context.decode(packet))
        count += len(context.decode(None))
    return count
