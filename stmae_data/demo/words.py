"""Names and metadata of the uncurated folder: what people type, including what is meant to break tools."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np

from stmae_data.demo.scene import Scene

__all__ = ["sidecar", "web_name"]

_NAMES = (
    "VID_{0:05d}",
    "my video ({0})",
    "-i {0}",
    "clip.final.v2 {0}",
    "Фильм {0}",
    "映像 {0}",
    "$(touch {0})",
    "a&b;c {0}",
    "'quoted' {0}",
    "IMG-{0:06d}-WA0001",
)
_TITLES = (
    "so satisfying",
    "watch until the end",
    "<script>alert('hi')</script>",
    '=HYPERLINK("http://example.org","free")',
    "' OR 1=1; --",
    "+1 for this one",
    "\u202egnp.exe",
    "{{ 7 * 7 }}",
    "tutorial, part 2 of 9",
    "no title",
)
_OTHER_TAGS = ("fyp", "viral", "loop", "satisfying", "asmr", "howto", "2024")
_LICENSES = (None, None, None, "Creative Commons Attribution license (reuse allowed)")


def web_name(generator: np.random.Generator, number: int) -> str:
    """A file name without its ending, unlike any other of the folder: `number` is in it."""
    return _NAMES[int(generator.integers(len(_NAMES)))].format(number)


def sidecar(generator: np.random.Generator, label: str | None, video_id: str, scene: Scene) -> dict[str, Any]:
    """What yt-dlp writes beside a video.

    Most videos of a class say so in a hashtag, a tag or both; some say nothing, and some junk carries a class's hashtag.
    """
    says = label
    if label is None and generator.random() < 0.05:
        says = "drifting right"
    if label is not None and generator.random() < 0.1:
        says = None
    others = [_OTHER_TAGS[index] for index in generator.integers(0, len(_OTHER_TAGS), 2)]
    tags, hashtags = list(others), [f"#{others[0]}"]
    if says is not None:
        if generator.random() < 0.8:
            hashtags.append("#" + says.replace(" ", "" if generator.random() < 0.5 else "_"))
        else:
            tags.append(says)
    uploader = int(generator.integers(0, 40))
    day = datetime.date(2020, 1, 1) + datetime.timedelta(days=int(generator.integers(0, 2000)))
    return {
        "id": video_id,
        "extractor": "demotube",
        "webpage_url": f"https://example.org/watch/{video_id}",
        "title": _TITLES[int(generator.integers(len(_TITLES)))],
        "description": f"uploaded from my phone {' '.join(hashtags)}",
        "tags": tags,
        "uploader": f"user {uploader}",
        "uploader_id": f"user{uploader:02d}",
        "upload_date": day.strftime("%Y%m%d"),
        "duration": round(scene.num_frames / scene.fps, 2),
        "license": _LICENSES[int(generator.integers(len(_LICENSES)))],
        "view_count": int(generator.integers(0, 100_000)),
        "width": scene.width_px,
        "height": scene.height_px,
        "fps": scene.fps,
    }
