"""The report of a set: one self-contained HTML page, made from the books and a few stored clips.

The same set gives the same bytes: nothing on the page depends on the time or the machine. Texts of strangers (titles, tags, labels, file
names) are cut, shown with their control characters visible, and escaped by the template; the page runs no script and loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.catalog import SetBooks, SetStats, find_books, opened, stats
from stmae_data.errors import Reason
from stmae_data.report import charts, facts
from stmae_data.report.page import render
from stmae_data.report.review import render_review
from stmae_data.report.sample import render_sample
from stmae_data.report.text import cut, human_bytes, human_count
from stmae_data.shards import store_url

__all__ = ["render_report", "render_review", "render_sample"]

_MAX_SHARDS = 200


@dataclass(frozen=True, slots=True)
class _Tile:
    value: str
    name: str
    note: str


def render_report(workspace: Path, set_name: str, *, thumbnails: int = 24, thumbnail_width_px: int = 240) -> Path:
    """Write `sets/<set>/report.html`.

    Args:
        thumbnails: how many clips to show.
        thumbnail_width_px: width of their pictures.

    Raises:
        SetError: there is no such set, or its books are damaged.
        StorageError: the page cannot be written.
    """
    book = find_books(workspace, [set_name])[0]
    counted = stats(workspace, set_name)
    with opened([book]) as connection:
        found = facts.findings(connection)
        classes = facts.class_facts(connection)
        num_groups, groups = facts.groups(connection)
        reconciled, lost = facts.reconciliation(connection, book)
        is_of_images = _is_image_set(connection)
        page = render(
            **_provenance(book),
            name=cut(set_name, 120),
            is_sealed=book.seal is not None,
            stats=counted,
            tiles=_tiles(counted, classes.number, found, num_groups, is_of_images=is_of_images),
            outcome_bars=charts.stacked(
                [(kind, getattr(counted, kind), kind) for kind in ("written", "dropped", "failed")]
            ),
            reasons=facts.reason_lines(counted.reasons),
            flags=facts.flag_lines(_sum_flags(counted)),
            pictures=facts.thumbnails(connection, book, count=thumbnails, width_px=thumbnail_width_px),
            store=store_url(book.folder),
            classes=classes,
            tags=facts.tag_counts(connection),
            measured=facts.measured_histograms(connection),
            signals=facts.signal_histograms(connection),
            findings=found,
            evidence=facts.evidence(connection),
            was_examined=bool(book.decisions),
            num_groups=num_groups,
            groups=groups,
            reconciled=reconciled,
            lost=lost,
            extension="jpg" if is_of_images else "mp4",
        )
    path = book.folder / "report.html"
    files.commit_bytes(path, page.encode(), point="report")
    return path


def _is_image_set(connection: Any) -> bool:
    kinds = connection.execute("SELECT DISTINCT media_kind FROM written").fetchall()
    return bool(kinds == [("image",)])


def _sum_flags(counted: SetStats) -> dict[str, int]:
    totals: dict[str, int] = {}
    for split in counted.splits:
        for flag, count in split.flags.items():
            totals[flag] = totals.get(flag, 0) + count
    return totals


def _tiles(
    counted: SetStats, classes: int, found: Sequence[facts.Finding], num_groups: int, *, is_of_images: bool
) -> list[_Tile]:
    share = counted.written / counted.planned if counted.planned else 0.0
    shards = sum(split.shards for split in counted.splits)
    leaks = sum(each.clips for each in found if each.reason == Reason.LEAK)
    duplicates = counted.reasons.get(Reason.DUPLICATE, 0)
    per_split = " · ".join(f"{split.split} {human_count(split.written)}" for split in counted.splits)
    length = [] if is_of_images else [_Tile(_hours(counted.hours), "of video", f"{_mean_seconds(counted)} a clip")]
    return [
        _Tile(human_count(counted.written), "pictures" if is_of_images else "clips", per_split or "none yet"),
        *length,
        _Tile(human_count(classes), "classes", "over all splits" if classes else "unlabelled"),
        _Tile(f"{100 * share:.1f} %", "accepted", f"of {human_count(counted.planned)} planned"),
        _Tile(human_bytes(counted.stored_bytes), "of media", f"in {_counted(shards, 'shard')}"),
        _Tile(human_count(leaks), "leaks", "clips also in an evaluation set"),
        _Tile(human_count(duplicates), "duplicates", f"{_counted(num_groups, 'group')} of near-duplicates"),
    ]


def _counted(count: int, noun: str) -> str:
    return f"{human_count(count)} {noun}{'' if count == 1 else 's'}"


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{human_count(round(hours, 1))} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"


def _mean_seconds(counted: SetStats) -> str:
    return f"{counted.hours * 3600 / counted.written:.1f} s" if counted.written else "0 s"


def _provenance(book: SetBooks) -> dict[str, Any]:
    """Everything the page says from `set.json`."""
    seal: Mapping[str, Any] = book.seal or {}
    created, recipe = _mapping(seal.get("created_from")), _mapping(seal.get("recipe"))
    shards = book.shards
    splits = sorted({line["split"] for line in shards})
    first_split = "train" if "train" in splits or not splits else splits[0]
    names = sorted(line["name"] for line in shards if line["split"] == first_split)
    return {
        "version": seal.get("version", "not sealed"),
        "digest": cut(seal.get("digest", "none"), 64),
        "subtitle": _subtitle(seal, created, recipe),
        "provenance": [
            *((key.replace("_", " "), cut(value)) for key, value in sorted(created.items()) if value is not None),
            ("version", str(seal.get("version", "not sealed"))),
            ("digest", cut(seal.get("digest", "none"), 64)),
            *(("parent", cut(_parent(parent))) for parent in seal.get("parents", [])),
        ],
        "recipe": [(key.replace("_", " "), cut(value)) for key, value in sorted(recipe.items())],
        "sources": _sources(seal.get("sources")) or [("sources", "not recorded")],
        "versions": [(name, cut(value, 80)) for name, value in sorted(_mapping(seal.get("versions")).items())],
        "shards": shards[:_MAX_SHARDS],
        "num_shards": len(shards),
        "first_split": first_split,
        "brace": _brace(names) or f"{first_split}-000000.tar",
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _subtitle(seal: Mapping[str, Any], created: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    words = [f"version {seal['version']}"] if "version" in seal else []
    if "manifest" in created:
        words.append(f"made from manifest {cut(created['manifest'], 80)}")
    if "encoding" in recipe:
        words.append(f"stored {cut(recipe['encoding'], 40)}")
    if recipe.get("short_side_px"):
        words.append(f"short side up to {cut(recipe['short_side_px'], 20)} px")
    return " · ".join(words)


def _parent(parent: Any) -> str:
    values = _mapping(parent)
    return " ".join(str(value) for _, value in sorted(values.items())) if values else str(parent)


def _sources(sources: Any) -> list[tuple[str, str]]:
    """Name, licence and citation of every source, in words."""
    found = []
    for source in sources if isinstance(sources, list) else []:
        values = _mapping(source)
        found += [
            (key.removeprefix("is_").replace("_", " "), _word(value))
            for key, value in values.items()
            if value is not None
        ]
    return found


def _word(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else cut(value)


def _brace(names: Sequence[str]) -> str:
    """`train-{000000..000123}.tar`, or the one name there is."""
    if len(names) < 2:
        return f"{names[0]}.tar" if names else ""
    split = names[0].rpartition("-")[0]
    return f"{split}-{{{names[0].rpartition('-')[2]}..{names[-1].rpartition('-')[2]}}}.tar"
