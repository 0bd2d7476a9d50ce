"""The reason that a decoder's end, as `limits` saw it, stands for."""

from __future__ import annotations

import re

from stmae_data.errors import Reason
from stmae_data.limits import Finished

__all__ = ["limit_reason", "reason_of", "without_addresses"]


def limit_reason(finished: Finished) -> tuple[Reason, str] | None:
    """The reason, and a short detail, of a child that met its limits or crashed; None for any other end."""
    match finished.kind:
        case "timeout":
            return Reason.TIMEOUT, "decoding took longer than its limit"
        case "oom":
            return Reason.OOM, "decoding wanted more memory than its limit"
        case "crash":
            return Reason.DECODER_CRASH, f"the decoder died of signal {-finished.returncode}"
    return None


def without_addresses(text: str) -> str:
    """Without places in the decoder's memory, which are others in every run; ledgers are not."""
    return _ADDRESS.sub("", text)


def reason_of(finished: Finished) -> tuple[Reason, str]:
    """The reason, and a short detail, that a child's failed end stands for."""
    if (met := limit_reason(finished)) is not None:
        return met
    lines = [line.strip() for line in without_addresses(finished.errors).splitlines() if line.strip()]
    detail = lines[-1][:200] if lines else f"ended with {finished.returncode}"
    text = finished.errors.lower()
    for reason, marks in _COMPLAINTS:
        if any(mark in text for mark in marks):
            return reason, detail
    return Reason.INTERNAL_ERROR, detail


_ADDRESS = re.compile(r" (?:@|at) 0x[0-9a-f]+")

_COMPLAINTS: tuple[tuple[Reason, tuple[str, ...]], ...] = (
    (Reason.BOMB, ("picture size", "invalid dimensions", "max_pixels", "image area")),
    (Reason.UNSAFE_PLAYLIST, ("not on whitelist", "not in whitelist", "not allowed")),
    (Reason.TRUNCATED, ("moov atom not found", "end of file", "partial file")),
    (Reason.FILTERED, ("could not find tag for codec", "not currently supported in container", "supported in mp4")),
    (Reason.NO_VIDEO, ("matches no streams", "does not contain any stream")),
    (Reason.DECODE_ERROR, ("invalid data found", "error while decoding", "nothing was written", "decoder")),
    (Reason.CORRUPT_HEADER, ("error opening input", "invalid argument")),
)
