"""Still pictures, looked at and decoded in a forked, confined child: what they are, their picture in small, and a plain JPEG of
those that are none.

JPEG and PNG are read, whatever the name says. A JPEG in RGB or gray is taken as it is, byte for byte; CMYK, PNG and pictures that are
to be made smaller are written anew: alpha over black, upright, 8 bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stmae_data import limits
from stmae_data.errors import ClipRejected, Reason
from stmae_data.limits import Finished, Limits
from stmae_data.media import POLICY, read_all
from stmae_data.media.reasons import limit_reason, without_addresses
from stmae_data.media.sniff import sniff

__all__ = ["JPEG_QUALITY", "Picture", "read_picture"]

JPEG_QUALITY = 95
"""Of pictures that are written anew."""

_LUMA_SIDE_PX = 64
_KINDS = (("jpeg", b"\xff\xd8\xff"), ("png", b"\x89PNG\r\n\x1a\n"))
_FORMATS = {"RGB": "rgb24", "L": "gray", "CMYK": "cmyk", "RGBA": "rgba", "LA": "ya8", "P": "pal8", "1": "monob"}
_UPRIGHT_DEGREES = {3: 180, 4: 180, 5: 90, 6: 270, 7: 270, 8: 90}
_SNIFFED_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, decoded once.

    `data` is what to store: the source's own bytes where `is_kept`. Sizes are upright in the source, coded in what is stored;
    `rotation_degrees` is the counter-clockwise turn that its EXIF asks for. `luma` is [64, 64] of the upright picture, full range,
    area-scaled; `pixels_sha256` names the upright pixels, whatever file they came in.
    """

    data: bytes
    is_kept: bool
    container: str
    pixel_format: str
    width_px: int
    height_px: int
    rotation_degrees: int
    stored_width_px: int
    stored_height_px: int
    luma: NDArray[np.uint8]
    pixels_sha256: str


def read_picture(descriptor: int, *, short_side_px: int = 0) -> Picture:
    """Decode the picture behind a descriptor in a confined child.

    Args:
        descriptor: of a regular file (`open_source`, `source_of_bytes`).
        short_side_px: make the picture smaller until its short side is this long; 0 leaves its size alone. Nothing is made larger.

    Raises:
        ClipRejected: with the reason it is no picture we take.
    """
    from PIL import Image

    Image.preinit()  # the child then finds its decoders imported
    with contextlib.ExitStack() as stack:
        stored, luma = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stored", "luma"))
        stack.callback(os.close, stored)
        stack.callback(os.close, luma)
        finished = _call(descriptor, stored, luma, short_side_px)
        if finished.kind in {"crash", "oom"}:
            os.truncate(stored, 0)
            os.truncate(luma, 0)
            finished = _call(descriptor, stored, luma, short_side_px)
        if finished.kind != "ok":
            raise ClipRejected(*_reason_of(finished))
        if "reason" in finished.value:
            raise ClipRejected(Reason(finished.value["reason"]), finished.value["detail"])
        is_kept = bool(finished.value["is_kept"])
        return Picture(
            data=read_all(descriptor if is_kept else stored),
            luma=np.frombuffer(read_all(luma), np.uint8).reshape(_LUMA_SIDE_PX, _LUMA_SIDE_PX),
            **finished.value,
        )


def _call(descriptor: int, stored: int, luma: int, short_side_px: int) -> Finished:
    return limits.call(_read_in_child, descriptor, stored, luma, short_side_px, limits=Limits())


def _reason_of(finished: Finished) -> tuple[Reason, str]:
    """The reason that a child's failed end stands for; a decoder may raise anything on hostile bytes."""
    said = without_addresses(finished.errors).strip()[-200:] or f"ended with {finished.returncode}"
    return limit_reason(finished) or (Reason.INTERNAL_ERROR, said)


def _read_in_child(descriptor: int, stored: int, luma: int, short_side_px: int) -> dict[str, Any]:
    try:
        return _read(read_all(descriptor), stored, luma, short_side_px)
    except ClipRejected as rejected:
        return {"reason": str(rejected.reason), "detail": rejected.detail}


def _read(data: bytes, stored: int, luma: int, short_side_px: int) -> dict[str, Any]:
    from PIL import Image, ImageOps

    kind = _kind_of(data)
    Image.MAX_IMAGE_PIXELS = None  # our own policy is asked, before anything is allocated
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as source:
            _check_size(*source.size)
            mode, coded = source.mode, source.size
            rotation = _UPRIGHT_DEGREES.get(_orientation(source), 0)
            source.load()
            upright = _plain(ImageOps.exif_transpose(source) or source)
    except MemoryError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, OverflowError) as error:
        raise ClipRejected(*_complaint(error)) from error
    digest = hashlib.sha256(f"stmae picture 1 {upright.mode} {upright.width} {upright.height}\n".encode())
    digest.update(upright.tobytes())
    small = upright.convert("L").resize((_LUMA_SIDE_PX, _LUMA_SIDE_PX), Image.Resampling.BOX)
    _write_all(luma, small.tobytes())
    smaller = 0 < short_side_px < min(upright.size)
    is_kept = kind == "jpeg" and mode in ("RGB", "L") and not smaller
    if not is_kept:
        written = upright
        if smaller:
            share = short_side_px / min(upright.size)
            size = (max(1, round(upright.width * share)), max(1, round(upright.height * share)))
            written = upright.resize(size, Image.Resampling.BICUBIC)
        coded = written.size
        with io.BytesIO() as out:
            written.save(out, "JPEG", quality=JPEG_QUALITY)
            _write_all(stored, out.getvalue())
    return {
        "is_kept": is_kept,
        "container": kind,
        "pixel_format": _FORMATS.get(mode, mode.casefold()),
        "width_px": upright.width,
        "height_px": upright.height,
        "rotation_degrees": rotation,
        "stored_width_px": coded[0],
        "stored_height_px": coded[1],
        "pixels_sha256": digest.hexdigest(),
    }


def _kind_of(data: bytes) -> str:
    for kind, magic in _KINDS:
        if data.startswith(magic):
            return kind
    found = sniff(data[:_SNIFFED_BYTES], len(data))
    raise ClipRejected(Reason.NOT_MEDIA, f"wanted JPEG or PNG, found {found or 'something else'}")


def _check_size(width: int, height: int) -> None:
    """Official image sets hold slivers and stamps, and they are kept: only what is too large is refused."""
    if width * height > POLICY.max_area_px:
        raise ClipRejected(Reason.BOMB, f"a picture of {width}x{height}, at most {POLICY.max_area_px} pixels are taken")
    if max(width, height) > POLICY.max_side_px:
        raise ClipRejected(Reason.TOO_LARGE, f"a picture of {width}x{height}, sides are at most {POLICY.max_side_px}")


def _orientation(source: Any) -> int:
    try:
        return int(source.getexif().get(0x0112, 1))
    except (ValueError, TypeError, SyntaxError, OSError, KeyError):  # EXIF that is damaged asks for nothing
        return 1


def _plain(picture: Any) -> Any:
    """The same picture in 8-bit RGB or gray, alpha over black."""
    from PIL import Image

    if picture.mode in ("RGB", "L"):
        return picture
    if picture.mode.startswith("I"):
        return picture.convert("I").point(lambda value: value / 256).convert("L")
    if "A" in picture.mode or "transparency" in picture.info:
        colours = picture.convert("RGBA")
        black = Image.new("RGBA", colours.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, colours).convert("RGB")
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _complaint(error: Exception) -> tuple[Reason, str]:
    text = str(error).replace("\n", " ")[:160] or type(error).__name__
    folded = text.casefold()
    if "truncated" in folded or "unexpected end" in folded or isinstance(error, EOFError):
        return Reason.TRUNCATED, text
    if "cannot identify" in folded:
        return Reason.CORRUPT_HEADER, "its header cannot be read"
    return Reason.DECODE_ERROR, text


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
