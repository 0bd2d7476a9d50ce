"""Tars of samples from whatever tool: members of one key are one sample, the key being the name up to its first dot.

The video (or picture) of a sample becomes a clip named by its bytes; its json, txt and cls members become its metadata and label.
Members that only code could read back (pickles and their kin) are never opened: they are counted, and their sample says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from stmae_data.errors import ClipRejected, Reason, SourceError
from stmae_data.manifest import Manifest, is_remote
from stmae_data.records import Annotation, SourceRow
from stmae_data.sources.archives import expand, open_member
from stmae_data.sources.labels import LabelBook
from stmae_data.sources.listing import (
    VIDEO_SUFFIXES,
    Entry,
    SourceListing,
    folder_split,
    source_uri,
    walk,
    wanted_splits,
)
from stmae_data.sources.sidecar import MAX_SIDECAR_BYTES, Sidecar, sidecar_of

__all__ = ["PICKLED_SUFFIXES", "expand_pattern", "is_pattern", "rows"]

PICKLED_SUFFIXES = frozenset({"joblib", "npz", "pickle", "pkl", "pt", "pth", "pyd"})
"""Endings of members that may run code when they are read as their writers meant."""

_PICTURE_SUFFIXES = frozenset({"jpeg", "jpg", "png"})
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_FILES = 100_000
_MAX_TEXT_BYTES = 64 << 10


def is_pattern(place: Path) -> bool:
    """Whether a place is a pattern of files, as `x-{000000..000009}.tar` or `x-*.tar`, and not the name of one."""
    text = str(place)
    return bool(_BRACES.search(text) or "*" in text) and not place.exists()


def expand_pattern(place: Path) -> list[Path]:
    """The files a pattern stands for: every number of a range, every word of a list, every match of a star.

    Raises:
        SourceError: a file of a range is missing, or a star matches nothing.
    """
    text = str(place)
    parts = _BRACES.split(text)
    choices = [_choices(part, place) if number % 2 else [part] for number, part in enumerate(parts)]
    found: list[Path] = []
    for words in product(*choices):
        path = Path("".join(words))
        if "*" in str(path):
            below = Path(path.anchor) if path.is_absolute() else Path()
            matches = sorted(below.glob(str(path.relative_to(below))))
        else:
            matches = [path] if path.exists() else []
        if not matches:
            raise SourceError(f"There is no {path}, which {text} asks for; fetch it, or name the files that are there.")
        found += matches
    return found


def _choices(text: str, place: Path) -> list[str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        return text.split(",")
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _MAX_FILES:
        raise SourceError(
            f"{place} ranges from {first} to {last}; wanted a first, a last and less than {_MAX_FILES} files."
        )
    return [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]


@dataclass(slots=True)
class _Sample:
    """The members of one key, by what they are good for."""

    media: list[Entry] = field(default_factory=list)
    texts: dict[str, Entry] = field(default_factory=dict)
    others: list[Entry] = field(default_factory=list)
    has_pickles: bool = False

    @property
    def first(self) -> Entry:
        return (self.media or list(self.texts.values()) or self.others)[0]

    @property
    def suffixes(self) -> str:
        return ", ".join(sorted({entry.suffix or "nothing" for entry in (*self.texts.values(), *self.others)}))


def rows(
    manifest: Manifest,
    *,
    roots: Sequence[Path],
    annotations: Sequence[Path] = (),
    splits: Sequence[str] | None = None,
    classes: Collection[str] | None = None,
) -> SourceListing:
    """List the samples of tars: files, folders of them, or patterns of their names.

    With one split, all samples are in it; with several, the folder or tar whose name holds a split's word decides.

    Raises:
        SourceError: a tar is missing or unreadable, or tables are given: samples carry their own annotations.
    """
    if annotations:
        raise SourceError(
            f"The samples of {manifest.name} carry their own labels, so --annotations means nothing here; leave it out."
        )
    listing = SourceListing()
    wanted = wanted_splits(manifest, splits)
    places = [path for root in roots for path in _places(root)]
    samples = list(_samples(manifest, places, listing))
    told = [(_read(sample, listing), split, sample) for sample, split in samples if split in wanted]
    listing.skipped["other_split"] += len(samples) - len(told)
    book = LabelBook(manifest, ((each.label, split) for each, split, _ in told if each.label_index is None))
    chosen = book.wanted(classes)
    for each, split, sample in told:
        annotation = book.annotation(each.label, split)
        if each.label_index is not None:
            annotation = replace(annotation, label_index=each.label_index)
        if chosen is None or annotation.label_slug in chosen:
            listing.rows += _rows(manifest, sample, annotation, each.sidecar)
    listing.skipped = +listing.skipped
    if listing.skipped["pickled"]:
        listing.notes.append(
            f"{listing.skipped['pickled']} members that only code could read back were left out; their samples are flagged dropped_members."
        )
    return listing


def _places(root: Path) -> list[Path]:
    text = str(root)
    if is_remote(text) or re.match(r"(pipe|https?|s3|gs|file):", text):
        raise SourceError(f"{text} is not a file here; fetch it first, then name the files with --from.")
    return expand_pattern(root) if is_pattern(root) else [root]


def _samples(manifest: Manifest, places: Sequence[Path], listing: SourceListing) -> Iterator[tuple[_Sample, str]]:
    """Samples in the order of their first members, each with its split."""
    found: dict[tuple[bytes, tuple[str, ...], str], _Sample] = defaultdict(_Sample)
    wanted = _PICTURE_SUFFIXES if manifest.media_kind == "image" else VIDEO_SUFFIXES
    for entry in expand(walk(places, skipped=listing.skipped), listing):
        if entry.member is None:
            listing.skipped["other_file"] += 1
            continue
        key, _, rest = entry.name.partition(".")
        sample = found[(entry.path, entry.folders, key)]
        suffix = entry.suffix
        if PICKLED_SUFFIXES & set(rest.casefold().split(".")):
            listing.skipped["pickled"] += 1
            sample.has_pickles = True
            sample.others.append(entry)
        elif suffix in wanted:
            sample.media.append(entry)
        elif suffix in ("json", "txt", "cls") and entry.kind == "file":
            sample.texts.setdefault(suffix, entry)
        else:
            listing.skipped["other_member"] += 1
            sample.others.append(entry)
    for (_, folders, _), sample in found.items():
        split = manifest.splits[0].name if len(manifest.splits) == 1 else folder_split(manifest, folders)
        if split is None:
            listing.skipped["no_split"] += 1
        else:
            yield sample, split
    if listing.skipped["no_split"]:
        names = ", ".join(each.name for each in manifest.splits)
        listing.notes.append(
            f"{listing.skipped['no_split']} samples stand in no tar or folder that names a split ({names}) and are left out."
        )


@dataclass(frozen=True, slots=True)
class _Told:
    """What the text members of a sample say."""

    sidecar: Sidecar
    label: str | None
    label_index: int | None


def _read(sample: _Sample, listing: SourceListing) -> _Told:
    info, digest, is_bad = _json_of(sample.texts.get("json"))
    text = _text_of(sample.texts.get("txt"))
    titles = (info.get(name) for name in ("title", "caption", "text"))
    info["title"] = next((each for each in titles if isinstance(each, str) and each.strip()), text)
    found = sidecar_of(info)
    web = {**found.web, **({"info_sha256": digest} if digest else {})}
    label, index = _label_of(info), None
    number = (_text_of(sample.texts.get("cls")) or "").strip()
    if re.fullmatch(r"\d{1,6}", number):
        index = int(number)
        label = label or number
    else:
        label = label or number or None
    listing.skipped["sidecar"] += len(sample.texts)
    return _Told(Sidecar(web, found.platform, found.platform_id, is_bad), label, index)


def _json_of(entry: Entry | None) -> tuple[dict[str, Any], str | None, bool]:
    """The object a json member holds, its sha256, and whether it is bad; metadata that video2dataset nests comes to the top."""
    if entry is None:
        return {}, None, False
    try:
        data = _bytes_of(entry, MAX_SIDECAR_BYTES)
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ClipRejected, ValueError, RecursionError):
        return {}, None, True
    if not isinstance(value, dict):
        return {}, None, True
    nested = value.get("yt_meta_dict")
    info = nested.get("info") if isinstance(nested, dict) else None
    return {**(info if isinstance(info, dict) else {}), **value}, hashlib.sha256(data).hexdigest(), False


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _text_of(entry: Entry | None) -> str | None:
    if entry is None:
        return None
    try:
        return _bytes_of(entry, _MAX_TEXT_BYTES).decode("utf-8", "replace").strip() or None
    except ClipRejected:
        return None


def _bytes_of(entry: Entry, most: int) -> bytes:
    assert entry.member is not None
    return b"".join(open_member(source_uri(entry.path), entry.member, max_bytes=most))


def _label_of(info: dict[str, Any]) -> str | None:
    for name in ("label", "class", "class_name", "label_name"):
        value = info.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()[:200]
    return None


def _rows(manifest: Manifest, sample: _Sample, annotation: Annotation, sidecar: Sidecar) -> Iterator[SourceRow]:
    """A row for every video or picture of the sample; one that says so where it holds none."""
    flags = [
        name for name, is_so in (("bad_sidecar", sidecar.is_bad), ("dropped_members", sample.has_pickles)) if is_so
    ]
    for entry in sample.media or [sample.first]:
        problem = entry.problem
        if not sample.media:
            problem = (
                (Reason.NOT_MEDIA, f"the sample holds {sample.suffixes} and no picture")
                if manifest.media_kind == "image"
                else (Reason.NO_VIDEO, f"the sample holds {sample.suffixes} and no video")
            )
        yield SourceRow(
            split=annotation.split,
            source_uri=source_uri(entry.path),
            source_member=entry.member,
            media_kind=manifest.media_kind,
            platform=sidecar.platform or "file",
            platform_id=sidecar.platform_id,
            source_bytes=entry.size if entry.kind == "file" else None,
            annotations=(annotation,),
            problem=problem,
            flags=tuple(flags),
            web=sidecar.web,
        )
