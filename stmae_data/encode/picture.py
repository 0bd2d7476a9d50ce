"""Pictures to stored pictures: kept byte for byte where they are plain JPEG, written anew where not or where they are too large."""

from __future__ import annotations

import hashlib

import numpy as np

from stmae_data import signals
from stmae_data.encode import EncodedClip
from stmae_data.encode.graph import Encoding
from stmae_data.media.picture import read_picture
from stmae_data.records import MediaFacts, StoredFacts

__all__ = ["encode_picture"]


def encode_picture(descriptor: int, *, encoding: Encoding) -> EncodedClip:
    """Decode a picture once; store, measure and thin it for hashing.

    `encode_mode` says what became of it: `copy` for the source's own bytes, `jpeg` for a picture written anew (it was CMYK or PNG, or
    larger than the encoding's short side).

    Raises:
        ClipRejected: with the reason this picture cannot be stored.
    """
    picture = read_picture(descriptor, short_side_px=encoding.short_side_px)
    frames, times = picture.luma[None], np.zeros(1, np.int64)
    source = MediaFacts(
        container=picture.container,
        video_codec=None,
        pixel_format=picture.pixel_format,
        width_px=picture.width_px,
        height_px=picture.height_px,
        rotation_degrees=picture.rotation_degrees,
        fps=None,
        num_frames=1,
        duration_seconds=None,
        start_pts_seconds=None,
        has_audio=None,
        num_decode_errors=0,
    )
    stored = StoredFacts(
        encode_mode="copy" if picture.is_kept else "jpeg",
        stored_bytes=len(picture.data),
        stored_sha256=hashlib.sha256(picture.data).hexdigest(),
        stored_width_px=picture.stored_width_px,
        stored_height_px=picture.stored_height_px,
        stored_fps=None,
        stored_num_frames=1,
        stored_seconds=None,
        keyframe_interval=None,
    )
    return EncodedClip(
        media=picture.data,
        extension="jpg",
        source=source,
        stored=stored,
        hash_frames=frames,
        hash_times_ms=times,
        stream_sha256=picture.pixels_sha256,
        signals=signals.measure(frames, times),
        flags=("upright",) if picture.rotation_degrees and not picture.is_kept else (),
    )
