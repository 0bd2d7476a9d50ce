"""The page on which a person judges what dedup found: pairs side by side, frames that lie over each other, why each one goes.

It is drawn while both clips still stand. What a person rejects goes into the policy as `not_duplicates`; the lines to paste are on the page.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.dedup import DedupReport, FoundPair
from stmae_data.records import LEVELS
from stmae_data.report.page import render_page
from stmae_data.report.stored import StoredClip, find_stored, picture_at
from stmae_data.report.text import cut, human_count

__all__ = ["render_review"]

_NUM_FRAMES = 3

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>Review of duplicates</title>
<style>{{ style }}
.pair { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 4px 26px; padding: 18px 0; border-top: 1px solid var(--line); }
.pair > p { grid-column: 1 / -1; margin: 0; }
.side h4 { margin: 0; font-size: 14px; overflow-wrap: anywhere; } .side.goes h4 { color: var(--failed); }
.strip { display: flex; gap: 6px; margin-top: 6px; } .strip figure { margin: 0; min-width: 0; } .strip img { width: 100%; display: block; border-radius: 4px; }
.strip figcaption { font-size: 12px; color: var(--faint); }
</style>
</head>
<body>
<header>
  <p class="kind">Review</p>
  <h1>What is the same as what</h1>
  <p class="sub">{{ total | count }} {{ "pair" if total == 1 else "pairs" }} found, {{ going | count }} {{ "clip goes" if going == 1 else "clips go" }}; policy {{ policy }}.</p>
</header>
<main>
{%- for section in sections %}
<section>
  <h2>{{ section.title }}</h2>
  <p class="lead">{{ section.lead }}{% if section.total > section.pairs | length %} The first {{ section.pairs | length }} of {{ section.total | count }} are shown.{% endif %}</p>
  {%- for pair in section.pairs %}
  <div class="pair">
    <p><span class="level">{{ pair.level }}</span> {{ pair.why }}. {{ pair.columns }}</p>
    {%- for side in pair.sides %}
    <div class="side {{ side.fate }}"><h4><code>{{ side.clip_id }}</code></h4><small><bdi>{{ side.label }}</bdi> · {{ side.fate }}</small>
      {%- if side.is_row %}
      <p class="lead">A row of a table: it has no pictures.</p>
      {%- endif %}
      <div class="strip">{% for picture in side.pictures %}<figure>{{ still(picture.jpeg_base64, side.clip_id ~ " at " ~ picture.at) }}<figcaption>{{ picture.at }}</figcaption></figure>{% endfor %}</div>
    </div>
    {%- endfor %}
  </div>
  {%- endfor %}
  {%- if section.paste %}
  <details><summary>They differ? Lines for the policy file</summary><pre><code>not_duplicates = [
{%- for line in section.paste %}
  {{ line }},
{%- endfor %}
]</code></pre></details>
  {%- endif %}
</section>
{%- else %}
<section><h2>Nothing to look at</h2><p class="lead">No pair was found at any level.</p></section>
{%- endfor %}
</main>
</body>
</html>
"""


def render_review(workspace: Path, report: DedupReport, path: Path, *, most: int = 100) -> Path:
    """Write a page with the pairs of a report, at most `most` of each level, the least certain first.

    Args:
        workspace: where the sets stand; every clip of the report must still stand.
        report: what `dedup` found, before it is applied.
        path: the page to write.
        most: pairs shown of each level, and near misses.

    Raises:
        SetError: a set is missing. StorageError: the page cannot be written.
    """
    shown = {level: _doubtful(each for each in report.pairs if each.level == level)[:most] for level in LEVELS}
    missed = report.near_misses[:most]
    books = find_stored(workspace, _named([*itertools.chain(*shown.values()), *missed]))
    sections: list[dict[str, Any]] = [
        {
            "title": f"Level {level}",
            "lead": f"{human_count(sum(each.level == level for each in report.pairs))} pairs; the least certain come first.",
            "pairs": [_pair(pair, books) for pair in pairs],
            "total": sum(each.level == level for each in report.pairs),
            "paste": _paste(pairs) if level == "content" else [],
        }
        for level, pairs in reversed(shown.items())  # content first: it alone can be wrong
        if pairs
    ]
    if missed:
        lead = "Pairs that come near the thresholds without reaching them; both clips stay."
        near = [_pair(pair, books, is_miss=True) for pair in missed]
        sections.append(
            {"title": "Near misses", "lead": lead, "pairs": near, "total": len(report.near_misses), "paste": []}
        )
    page = render_page(_PAGE, sections=sections, total=len(report.pairs), going=report.num_going, policy=report.policy)
    files.commit_bytes(path, page.encode(), point="review")
    return path


def _named(pairs: Sequence[FoundPair]) -> set[tuple[str, str]]:
    """(set, clip id) of both sides; rows of tables are stored nowhere."""
    sides = itertools.chain(*(zip(pair.sets, (pair.a, pair.b), strict=True) for pair in pairs))
    return {(set_name, clip_id) for set_name, clip_id in sides if set_name is not None}


def _doubtful(pairs: Any) -> list[FoundPair]:
    return sorted(pairs, key=lambda pair: (-(pair.distance or 0), pair.a, pair.b))


def _paste(pairs: Sequence[FoundPair]) -> list[str]:
    """The pairs as lines of TOML."""
    return [json.dumps([min(pair.a, pair.b), max(pair.a, pair.b)]) for pair in pairs]


def _pair(pair: FoundPair, books: Mapping[tuple[str, str], StoredClip], *, is_miss: bool = False) -> dict[str, Any]:
    kept = 1 if pair.keep == pair.b else 0  # of two clips with one id, a is the training clip
    stored = [
        None if set_name is None else books.get((set_name, clip_id))
        for set_name, clip_id in zip(pair.sets, (pair.a, pair.b), strict=True)
    ]
    times = _common_times(pair, stored)
    sides = []
    for number, (clip_id, label) in enumerate(((pair.a, pair.a_label), (pair.b, pair.b_label))):
        own = [time[number] for time in times] if times else _spread(0.0, _seconds(stored[number]))
        sides.append(
            {
                "clip_id": cut(clip_id, 80),
                "label": label,
                "fate": "stays" if is_miss or number == kept else "goes",
                "is_row": pair.sets[number] is None,
                "pictures": [
                    {"at": f"{at:.2f} s", "jpeg_base64": picture_at(stored[number], at)}
                    for at in ([] if pair.sets[number] is None else own)
                ],
            }
        )
    columns = "Frames in one column lie over each other in time." if times else "Frames are from all over each clip."
    if None in pair.sets:
        columns = ""
    return {"level": pair.level, "why": _why(pair), "columns": columns, "sides": sides}


def _common_times(pair: FoundPair, stored: Sequence[StoredClip | None]) -> list[tuple[float, float]]:
    """Seconds in a and in b at which both show the same moment; empty where the pair does not say which these are."""
    if pair.frames:
        return [(a / 1000, b / 1000) for a, b, _ in sorted(pair.frames)[:_NUM_FRAMES]]
    if pair.level == "video" or None in stored:
        return []
    if not any(map(_seconds, stored)):
        return [(0.0, 0.0)]  # pictures
    # The same bytes and the same decoded video begin together, wherever their rows say that they were cut from.
    offset = 0.0 if pair.level in ("bytes", "stream") else pair.offset_seconds or 0.0
    first, last = max(0.0, offset), min(_seconds(stored[0]), offset + _seconds(stored[1]))
    return [(at, at - offset) for at in _spread(first, last)] if first < last else []


def _seconds(stored: StoredClip | None) -> float:
    return stored.seconds if stored is not None else 0.0


def _spread(first: float, last: float) -> list[float]:
    """Moments from all over a stretch of seconds."""
    return [first + (last - first) * (place + 0.5) / _NUM_FRAMES for place in range(_NUM_FRAMES)]


def _why(pair: FoundPair) -> str:
    if pair.distance is None:
        return {
            "bytes": "the same source bytes",
            "stream": "the same decoded video",
            "id": "the same platform id and interval",
            "video": "the same platform id",
            "overlap": "the same platform id, and intervals that intersect",
        }.get(pair.level, "")
    views = (
        "" if pair.views is None else f", views {pair.views[0].replace('_', ' ')} / {pair.views[1].replace('_', ' ')}"
    )
    return f"median distance {pair.distance:.0f} of 256 bits at an offset of {pair.offset_seconds or 0:+.2f} s{views}"
