"""The page on which a person judges a selection made by hashtags: a fair sample of clips, each under the class it was taken for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stmae_data import files
from stmae_data.records import SetRef
from stmae_data.report.page import render_page
from stmae_data.report.stored import find_stored, picture_at
from stmae_data.report.text import cut
from stmae_data.select import NamedClip, named_sample

__all__ = ["Precision", "precision_of", "render_sample"]

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{{ name }} · sample</title>
<style>{{ style }}</style>
</head>
<body>
<header>
  <p class="kind">Selection by hashtags</p>
  <h1>{{ name }}</h1>
  <p class="sub">The first {{ clips | length }} clips in the order of its seed, which makes them a fair sample. {% if precision %}Of the {{ precision.known }} that carry a label of their own, {{ precision.right }} agree: {{ "%.0f" | format(100 * precision.share) }} % (95 % interval {{ "%.0f" | format(100 * precision.low) }} to {{ "%.0f" | format(100 * precision.high) }}).{% else %}None carries a label of its own: count by eye how many show the class they stand under.{% endif %}</p>
</header>
<main>
<section>
  <div class="pictures">
  {%- for clip in clips %}
    {% call clip_figure(clip.jpeg_base64, clip.label, clip.clip_id) %}<bdi>{{ clip.by }}</bdi>{% if clip.own %} · labelled <bdi>{{ clip.own }}</bdi>{% endif %}{% endcall %}
  {%- endfor %}
  </div>
</section>
</main>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Precision:
    """How many of `known` clips with a label of their own agree with the class they were taken for; Wilson's 95 % interval."""

    right: int
    known: int
    share: float
    low: float
    high: float


def precision_of(clips: tuple[NamedClip, ...]) -> Precision | None:
    """The precision of hashtags on clips that carry labels of their own; None where none does."""
    known = [clip for clip in clips if clip.own_label is not None]
    if not known:
        return None
    right, count, z = sum(clip.own_label == clip.label for clip in known), len(known), 1.959964
    share = right / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5 / (1 + z * z / count)
    return Precision(right, count, share, max(0.0, middle - half), min(1.0, middle + half))


def render_sample(workspace: Path, selection: str, *, count: int = 60) -> Path:
    """Write `selections/<selection>.html`: a sample of a selection made by hashtags, with its precision where that can be known.

    Raises:
        SelectionError: no such selection, or it was not made by hashtags. StorageError: the page cannot be written.
    """
    clips = named_sample(workspace, selection, count=count)
    said = files.read_json(workspace / "selections" / f"{selection}.json")
    set_name = SetRef.parse(said["parameters"]["from"]).set_name
    books = find_stored(workspace, [(set_name, clip.clip_id) for clip in clips])
    shown = []
    for clip in clips:
        stored = books.get((set_name, clip.clip_id))
        shown.append(
            {
                "clip_id": cut(clip.clip_id, 80),
                "label": cut(clip.label, 80),
                "by": cut(clip.by, 80),
                "own": cut(clip.own_label or "", 80),
                "jpeg_base64": picture_at(stored, stored.seconds / 2 if stored else 0.0),
            }
        )
    page = render_page(_PAGE, name=cut(selection, 120), clips=shown, precision=precision_of(clips))
    path = workspace / "selections" / f"{selection}.html"
    files.commit_bytes(path, page.encode(), point="sample")
    return path
