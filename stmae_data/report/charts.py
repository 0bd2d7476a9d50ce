"""Geometry of the charts: numbers in, rectangles and ticks out. The template draws them as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stmae_data.report.text import human_count

__all__ = ["Bar", "BarLine", "Histogram", "Tick", "bar_lines", "histogram", "ranked", "stacked"]

WIDTH, HEIGHT = 320.0, 110.0
_MAX_CATEGORIES = 10
_BINS = 24


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle of a chart, in its own units, with the text of its tooltip."""

    x: float
    y: float
    width: float
    height: float
    tip: str
    kind: str = "plain"


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on the axis; `anchor` is SVG's text-anchor."""

    x: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True, slots=True)
class Histogram:
    """A small chart with vertical bars, `WIDTH` by `HEIGHT` units."""

    title: str
    note: str
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    top: int


@dataclass(frozen=True, slots=True)
class BarLine:
    """One line of a horizontal bar chart; `share` is the bar's length in percent."""

    name: str
    count: int
    share: float
    kind: str = "plain"
    note: str = ""


def histogram(title: str, values: NDArray[np.float64], *, unit: str = "") -> Histogram | None:
    """A histogram of measured values: one bar per value where they are few, else equal bins; the outermost 0.5 % fall into the end bins.

    Args:
        values: N numbers; those that are not finite are left out.
        unit: written behind numbers.

    Returns:
        None when there is no value.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None
    suffix = f" {unit}" if unit else ""
    low, middle, high = (_number(float(each)) for each in (finite.min(), np.median(finite), finite.max()))
    note = f"median {middle}{suffix}, from {low} to {high}" if low != high else f"all {low}{suffix}"
    # Values that differ by less than a thousandth of their range are one: 29.97 and 29.9700003 frames a second.
    extent = float(finite.max() - finite.min()) or 1.0
    rounded, counts = np.unique(np.round(finite, max(0, 3 - math.floor(math.log10(extent)))), return_counts=True)
    if len(rounded) <= _MAX_CATEGORIES:
        names = [_number(float(value)) for value in rounded]
        bars = _columns([f"{name}{suffix}: {count:,}" for name, count in zip(names, counts, strict=True)], counts)
        ticks = tuple(Tick(bar.x + bar.width / 2, name) for bar, name in zip(bars, names, strict=True))
        return Histogram(title, note, bars, ticks, int(counts.max()))
    left, right = (float(each) for each in np.quantile(finite, (0.005, 0.995)))
    step = _nice_step((right - left) / _BINS)
    first = math.floor(left / step)
    number = max(1, math.ceil(right / step) - first)
    edges = np.arange(first, first + number + 1) * step
    counts, _ = np.histogram(np.clip(finite, edges[0], edges[-1]), bins=edges)
    tips = [
        f"{_number(float(start))} to {_number(float(end))}{suffix}: {count:,}"
        for start, end, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    bars = _columns(tips, counts, gap=0.08)
    every = _nice_step(number * step / 4)
    marks = [
        mark * every for mark in range(math.ceil(edges[0] / every - 1e-9), math.floor(edges[-1] / every + 1e-9) + 1)
    ]
    ticks = tuple(_tick(float((mark - edges[0]) / (edges[-1] - edges[0]) * WIDTH), _number(mark)) for mark in marks)
    return Histogram(title, note, bars, ticks, int(counts.max()))


def ranked(title: str, counts: Sequence[int]) -> Histogram | None:
    """Counts from the largest to the smallest, as one curve of bars; neighbours share a bar where there are many."""
    ordered = np.array(sorted(counts, reverse=True), dtype=np.int64)
    if not len(ordered):
        return None
    parts = np.array_split(ordered, min(len(ordered), 160))
    heights = np.array([part[0] for part in parts])
    tips, place = [], 1
    for part in parts:
        last = place + len(part) - 1
        tips.append(f"class {place}{f' to {last}' if last > place else ''}: {part[0]:,} clips")
        place = last + 1
    ticks = (Tick(0, "largest", "start"), Tick(WIDTH, f"smallest of {len(ordered):,}", "end"))
    note = f"{int(ordered[0]):,} in the largest, {int(ordered[-1]):,} in the smallest"
    return Histogram(title, note, _columns(tips, heights, gap=0.0), ticks, int(ordered[0]))


def bar_lines(
    counts: Iterable[tuple[str, int]],
    *,
    kinds: Mapping[str, str] | None = None,
    notes: Mapping[str, str] | None = None,
) -> tuple[BarLine, ...]:
    """Horizontal bars, longest first, relative to the longest; two lines may bear one name, as cut labels do."""
    ordered = sorted(counts, key=lambda item: (-item[1], item[0]))
    top = max((count for _, count in ordered), default=0)
    return tuple(
        BarLine(
            name,
            count,
            round(100 * count / top, 2) if top else 0.0,
            (kinds or {}).get(name, "plain"),
            (notes or {}).get(name, ""),
        )
        for name, count in ordered
    )


def stacked(parts: Sequence[tuple[str, int, str]], *, width: float = 1000.0) -> tuple[Bar, ...]:
    """One line cut into (name, count, kind) parts; a part that is there is at least 2 units wide."""
    total = sum(count for _, count, _ in parts)
    present = [(name, count, kind) for name, count, kind in parts if count]
    spare = width - 2.0 * len(present)
    bars, x = [], 0.0
    for name, count, kind in present:
        length = 2.0 + spare * count / total
        bars.append(Bar(round(x, 2), 0, round(length, 2), 1, f"{name}: {count:,} of {total:,}", kind))
        x += length
    return tuple(bars)


def _columns(tips: Sequence[str], counts: NDArray[np.int64], *, gap: float = 0.25) -> tuple[Bar, ...]:
    top = max(1, int(counts.max()))
    # A few columns should not become slabs: at most 48 units each, centred in their share.
    share = WIDTH / len(tips)
    width = min(share * (1 - gap), 48.0)
    bars = []
    for number, (tip, count) in enumerate(zip(tips, counts, strict=True)):
        height = max(1.5, HEIGHT * int(count) / top) if count else 0.0
        x = number * share + (share - width) / 2
        bars.append(Bar(round(x, 2), round(HEIGHT - height, 2), round(width, 2), round(height, 2), tip))
    return tuple(bars)


def _tick(x: float, text: str) -> Tick:
    anchor = "start" if x < 10 else "end" if x > WIDTH - 10 else "middle"
    return Tick(round(x, 2), text, anchor)


def _nice_step(raw: float) -> float:
    """1, 2 or 5 times a power of ten, at least `raw`."""
    if raw <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))


def _number(value: float) -> str:
    if value and abs(value) < 0.1:
        return f"{value:.2g}"
    return human_count(round(value, 2))
