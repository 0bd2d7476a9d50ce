"""The shell of every training page: one HTML file, no script, nothing loaded from anywhere, values always escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from stmae_train.errors import StmaeTrainError
from stmae_train.report.style import STYLE

__all__ = ["human_bytes", "human_count", "human_seconds", "picture_uri", "render_page", "short_count"]

MAX_PICTURE_BYTES = 4 * 2**20

_SHELL = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
{{ body | safe }}
</body>
</html>
"""


def render_page(template: str, values: Mapping[str, Any], *, title: str) -> str:
    """Fill a Jinja2 template that stands between <body> and </body>.

    Args:
        template: Jinja2 text; a name that has no value is an error, every value is escaped.
        values: its names.
        title: of the page.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": human_count, "seconds": human_seconds, "bytes": human_bytes}
    body = environment.from_string(template).render(values)
    return environment.from_string(_SHELL).render(title=title, style=STYLE, body=body) + "\n"


def picture_uri(path: Path) -> str:
    """A PNG as a data: address.

    Raises:
        StmaeTrainError: the file is missing, is no PNG, or is larger than 4 MiB.
    """
    data = path.read_bytes() if path.is_file() else b""
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or len(data) > MAX_PICTURE_BYTES:
        raise StmaeTrainError(
            f"{path} is not a PNG of at most {MAX_PICTURE_BYTES >> 20} MiB; remove it, or make it again with: stmae-train picture"
        )
    return "data:image/png;base64," + base64.b64encode(data).decode()


def human_count(value: float) -> str:
    """1234567 as 1,234,567."""
    return f"{value:,.0f}"


def short_count(value: float) -> str:
    """60000 as 60k, 12800000 as 12.8M."""
    for unit, power in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= power:
            return f"{value / power:g}{unit}"
    return f"{value:g}"


def human_seconds(value: float) -> str:
    """Seconds as 0.4 s, 12 s, 3 min 05 s or 2 h 07 min."""
    if value < 9.95:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def human_bytes(value: float) -> str:
    """Bytes as B, KiB, MiB, GiB, TiB with three digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"
