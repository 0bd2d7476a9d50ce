"""Charts as SVG text: lines with error bars, and forests of differences. Colours follow the page's style sheet.

Every chart is a whole SVG document: it stands inline in a page and alone in a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["ForestRow", "Line", "color_of", "forest_chart", "line_chart", "nice_ticks"]

# Eight hues that stay apart for colour-blind eyes, dark enough for white paper and light enough for black.
_COLORS = ("#2b8a86", "#d9822b", "#4f74c8", "#a0559c", "#8a9a35", "#c2574a", "#3d9ac2", "#9a7650")
_INK, _SOFT, _FAINT = "var(--ink,#1d2a30)", "var(--soft,#5c6b73)", "var(--faint,#8b989f)"
_GRID, _CARD = "var(--line,#e3e8e6)", "var(--card,#ffffff)"
_FONT = "system-ui,-apple-system,'Segoe UI',Inter,'Noto Sans','DejaVu Sans',sans-serif"
_CHARACTER_PX = 6.7  # mean width of a character at 12 px, on the safe side


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: points (x, y) with optional ends of their error bars."""

    name: str
    color: str
    points: tuple[tuple[float, float], ...]
    bars: tuple[tuple[float, float], ...] = ()
    """(low, high) per point, or nothing."""
    is_level: bool = False
    """Draw the first point's height over the whole width: something without an x."""
    is_faint: bool = False
    """A thin line without a label, such as one seed of several."""


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One difference with its interval; `word` stands at the right."""

    label: str
    value: float
    low: float
    high: float
    word: str
    color: str
    group: str = ""


def color_of(position: int, *, is_neutral: bool = False) -> str:
    """The colour of the n-th arm; neutral for what is only there to compare with."""
    return "#8b989f" if is_neutral else _COLORS[position % len(_COLORS)]


def nice_ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Round numbers that span [low, high], at steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        low, high = low - abs(low) * 0.05 - 1e-9, high + abs(high) * 0.05 + 1e-9
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
    y_range: tuple[float, float] | None = None,
    width: int = 720,
    height: int = 340,
) -> Markup:
    """Lines over a linear x axis from 0, each named at its right end.

    Args:
        lines: what to draw; faint ones first, they lie below.
        title: what a screen reader says.
        x_label, y_label: axis titles with units.
        x_text, y_text: numbers as tick labels.
        y_range: lowest and highest y shown; all values unless given.
    """
    named = [line for line in lines if not line.is_faint]
    label_px = max((len(line.name) for line in named), default=0) * _CHARACTER_PX + 30
    left, right, top, bottom = 54.0, width - label_px, 26.0, height - 44.0
    x_end = max((x for line in lines if not line.is_level for x, _ in line.points), default=1.0) or 1.0
    x_ticks = [tick for tick in nice_ticks(0, x_end) if tick <= x_end]
    values = [y for line in lines for _, y in line.points] + [end for line in lines for bar in line.bars for end in bar]
    y_ticks = nice_ticks(*(y_range or (min(values, default=0.0), max(values, default=1.0))))

    def at(x: float, y: float) -> tuple[float, float]:
        share = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return left + (right - left) * x / x_end, bottom - (bottom - top) * min(1.0, max(0.0, share))

    parts = [_text(left - 44, 13, y_label, fill=_SOFT)]
    for tick in y_ticks:
        _, y = at(0, tick)
        parts += [_rule(left, y, right, y, _GRID), _text(left - 9, y + 4, y_text(tick), anchor="end")]
    for tick in x_ticks:
        x, _ = at(tick, y_ticks[0])
        parts += [_text(x, bottom + 18, x_text(tick), anchor="middle")]
    parts += [_rule(left, bottom, right, bottom, _FAINT), _text(right, bottom + 36, x_label, anchor="end", fill=_SOFT)]
    shift = 4.0
    for number, line in enumerate(lines):
        if line.is_level:
            _, y = at(0, line.points[0][1])
            parts.append(_rule(left, y, right, y, line.color, width=2, dash="5 4"))
            continue
        # Error bars of different lines stand beside each other, not upon each other.
        offset = (number - (len(lines) - 1) / 2) * shift if line.bars else 0.0
        spots = [(x + offset, y) for x, y in (at(*point) for point in line.points)]
        path = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(spots))
        look = "stroke-width:1;opacity:.32" if line.is_faint else "stroke-width:2.2"
        parts.append(
            Markup('<path d="{}" style="fill:none;stroke:{};{};stroke-linejoin:round"/>').format(path, line.color, look)
        )
        for (x, y), (low, high) in zip(spots, line.bars, strict=False):
            parts.append(_rule(x, at(0, low)[1], x, at(0, high)[1], line.color, width=1.4))
            parts.append(
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4" style="fill:{};stroke:{};stroke-width:1.5"/>').format(
                    x, y, line.color, _CARD
                )
            )
    heights = _spread([at(0, line.points[-1][1])[1] for line in named], gap=16.0, low=top, high=bottom)
    for line, y in zip(named, heights, strict=True):
        parts.append(_text(right + 20, y + 4, line.name, fill=line.color, weight=600))
    return _svg(parts, width=width, height=height, title=title)


def forest_chart(
    rows: Sequence[ForestRow], *, title: str, x_label: str, x_text: Callable[[float], str], width: int = 720
) -> Markup:
    """Differences with their intervals around a line at zero, in groups."""
    label_px = max((max(len(row.label), 1.15 * len(row.group)) for row in rows), default=0) * _CHARACTER_PX + 14
    word_px = max((len(row.word) for row in rows), default=0) * _CHARACTER_PX + 22
    left, right, pitch, top = label_px, width - word_px, 27.0, 10.0
    ends = [end for row in rows for end in (row.low, row.high)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    margin = 0.04 * (high - low) or 1.0
    low, high = low - margin, high + margin
    ticks = [tick for tick in nice_ticks(low, high) if low <= tick <= high]
    groups = list(dict.fromkeys(row.group for row in rows))
    height = top + pitch * len(rows) + sum(30.0 for group in groups if group) + 48.0

    def at(x: float) -> float:
        return left + (right - left) * (x - low) / (high - low)

    bottom = height - 44.0
    parts = [_rule(at(tick), top, at(tick), bottom, _GRID) for tick in ticks]
    parts += [_text(at(tick), bottom + 17, x_text(tick), anchor="middle") for tick in ticks]
    parts += [
        _rule(at(0), top, at(0), bottom, _INK, width=1.2),
        _text(right, bottom + 36, x_label, anchor="end", fill=_SOFT),
    ]
    y = top
    for group in groups:
        if group:
            y += 30
            parts.append(_text(0, y - 10, group, fill=_SOFT, weight=650))
        for row in (row for row in rows if row.group == group):
            middle = y + pitch / 2
            is_told = row.word != "not told apart"
            parts += [
                _text(0, middle + 4, row.label, fill=_INK),
                _rule(at(row.low), middle, at(row.high), middle, row.color, width=2.6),
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5" style="fill:{};stroke:{};stroke-width:2"/>').format(
                    at(row.value), middle, row.color if is_told else _CARD, row.color
                ),
                _text(
                    right + 14, middle + 4, row.word, fill=_INK if is_told else _FAINT, weight=600 if is_told else 400
                ),
            ]
            y += pitch
    return _svg(parts, width=width, height=round(height), title=title)


def _spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Heights as near to the wanted ones as `gap` between any two allows; crowded ones stand around their common middle."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    groups: list[list[int]] = []

    def top(group: list[int]) -> float:
        middle = sum(wanted[index] for index in group) / len(group)
        first = middle - gap * (len(group) - 1) / 2
        return max(low, min(first, high - gap * (len(group) - 1)))

    for index in order:
        groups.append([index])
        while len(groups) > 1 and top(groups[-2]) + gap * len(groups[-2]) > top(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    placed = [0.0] * len(wanted)
    for group in groups:
        for number, index in enumerate(group):
            placed[index] = top(group) + gap * number
    return placed


def _svg(parts: Sequence[Markup], *, width: int, height: int, title: str) -> Markup:
    head = Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" role="img" aria-label="{}" style="font:12px {}">'
    ).format(width, height, title, _FONT)
    return head + Markup("").join(parts) + Markup("</svg>")


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = _FAINT, weight: int = 400) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" style="fill:{};font-weight:{}">{}</text>').format(
        x, y, anchor, fill, weight, text
    )


def _rule(x1: float, y1: float, x2: float, y2: float, color: str, *, width: float = 1, dash: str = "") -> Markup:
    look = f"stroke:{color};stroke-width:{width}" + (f";stroke-dasharray:{dash}" if dash else "")
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" style="{}"/>').format(x1, y1, x2, y2, look)
