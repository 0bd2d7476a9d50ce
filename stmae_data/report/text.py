"""Text of strangers on a page: control characters and direction overrides shown as escapes, long text cut. HTML is escaped by the template."""

from __future__ import annotations

import unicodedata
from typing import Any

__all__ = ["cut", "human_bytes", "human_count", "shown"]

_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
_HIDDEN = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})


def shown(text: str) -> str:
    """`text` with control characters, lone surrogates and direction overrides as `\\x1b`, `\\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        each.encode("unicode_escape").decode() if each in _DIRECTION or unicodedata.category(each) in _HIDDEN else each
        for each in text
    )


def cut(value: Any, length: int = 200) -> str:
    """`value` as shown text of at most `length` characters."""
    text = shown(str(value)[: length + 1])
    return text if len(text) <= length else text[: length - 1].rstrip("\\") + "…"


def human_bytes(count: float) -> str:
    """`1.4 GB`, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the loop ends at TB")


def human_count(count: float) -> str:
    """`12,345`; up to two decimals where there are any."""
    return f"{count:,.0f}" if float(count).is_integer() else f"{count:,.2f}".rstrip("0").rstrip(".")
