"""Small encoded files as uploads look: H.264 in mp4, VP9 in webm, and sound without pictures. Same frames, same bytes."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from numpy.typing import NDArray

from stmae_data.encode import steady_asm

__all__ = ["encode_film", "encode_sound"]

_CODECS = {
    # threads=1: the bytes of x264 depend on the number of threads.
    "mp4": ("libx264", {"preset": "veryfast", "threads": "1", "x264-params": f"threads=1{steady_asm()}"}),
    "webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "row-mt": "0", "threads": "1", "b": "0"}),
}

_INDEX_BYTES = 8192  # room kept for the index at the start of an mp4; the rest of it is a `free` box


def encode_film(
    frames: NDArray[np.uint8], *, fps: int, container: str = "mp4", crf: int = 18, moov_first: bool = True
) -> bytes:
    """Encode frames with even sides.

    Args:
        frames: [T, H, W, 3] of luma and chroma at full size (`scene.draw`).
        fps: frames per second.
        container: "mp4" (H.264) or "webm" (VP9).
        crf: constant rate factor of the codec.
        moov_first: the mp4 index stands before the pictures, as platforms deliver it; otherwise at the end.
    """
    codec, options = _CODECS[container]
    target = io.BytesIO()
    flags = {"fflags": "+bitexact"} | ({"moov_size": str(_INDEX_BYTES)} if container == "mp4" and moov_first else {})
    with av.open(target, mode="w", format=container, options=flags) as output:
        stream = output.add_stream(codec, rate=fps, options={**options, "crf": str(crf), "flags": "+bitexact"})
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for number, planes in enumerate(_planes(frames)):
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return target.getvalue()


def _planes(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Planes [T, H * 3 / 2, W] as yuv420p lies in memory: luma, then both chroma planes at half size."""
    count, height, width = frames.shape[:3]
    chroma = frames[..., 1:].astype(np.uint16)
    small = (chroma[:, ::2, ::2] + chroma[:, 1::2, ::2] + chroma[:, ::2, 1::2] + chroma[:, 1::2, 1::2] + 2) >> 2
    parts = [frames[..., 0], small[..., 0], small[..., 1]]
    flat = np.concatenate([part.reshape(count, -1).astype(np.uint8) for part in parts], axis=1)
    return flat.reshape(count, height * 3 // 2, width)


def encode_sound(*, seconds: float = 1.0) -> bytes:
    """An mp4 with a tone and no pictures."""
    rate = 16_000
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)).astype(np.int16)
    target = io.BytesIO()
    with av.open(target, mode="w", format="mp4", options={"fflags": "+bitexact"}) as output:
        stream = output.add_stream("aac", rate=rate, options={"flags": "+bitexact"})
        assert isinstance(stream, AudioStream)
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return target.getvalue()
