"""The parts of a release, from its manifest: tables, archives by URL, by number or by a list, and replacements that come last."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import quote, unquote, unquote_plus, urljoin, urlsplit

from stmae_data import files
from stmae_data.errors import ClipRejected, SourceError, UsageError
from stmae_data.fetch.book import url_key
from stmae_data.fetch.client import Client
from stmae_data.fetch.download import Expected, read_small
from stmae_data.manifest import Manifest, SplitSource, is_remote, label_slug
from stmae_data.sources.archives import list_members, open_member
from stmae_data.sources.listing import source_uri, wanted_splits
from stmae_data.sources.sidecar import safe_url

__all__ = ["Part", "official_parts", "unpack_tables"]

_NUMBERS = re.compile(r"\{(?P<first>\d{1,6})\.\.(?P<last>\d{1,6})\}")
_TABLE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.(csv|txt|json|pbtxt)")
_TABLES = "annotations"
_MAX_TABLE_BYTES = 2 << 30
_MAX_RATIO = 200


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a release. `kind` is table, archive or replacement; `official_url` is its place at the source, `url` at the mirror."""

    kind: str
    split: str
    url: str
    official_url: str
    file: str
    expected: Expected

    @property
    def key(self) -> str:
        """What it goes by in the book, whichever mirror it comes from."""
        return url_key(self.official_url)


def official_parts(
    manifest: Manifest,
    client: Client,
    *,
    base_url: str | None = None,
    splits: Sequence[str] | None = None,
    classes: Collection[str] | None = None,
    limit: int | None = None,
    is_tables_only: bool = False,
) -> list[Part]:
    """Everything a release consists of, each once; lists of parts are fetched for it.

    Args:
        manifest: the release.
        client: fetches the lists.
        base_url: a mirror, in place of the manifest's own.
        splits: names of splits, all when None.
        classes: labels whose archives are wanted, where archives are named after classes.
        limit: at most this many archives of each split, in the order of their list.
        is_tables_only: annotation tables alone.

    Raises:
        SourceError: the files cannot be fetched (the sentence says where they are), a list cannot be had, a class is unknown or
            archives are not by class; UsageError: a mirror that is no plain address, or for a release without a base URL; ManifestError: an unknown split.
    """
    if manifest.where is not None and not is_tables_only:
        raise SourceError(manifest.where)
    if base_url is not None and manifest.base_url is None:
        raise UsageError(f"{manifest.name} names no base_url that --base-url could stand for; leave it out.")
    if base_url is not None and (safe_url(base_url) or "").rstrip("/") != base_url.rstrip("/"):
        raise UsageError(
            "--base-url is no plain http(s) address; wanted one without user, password, query and fragment."
        )
    wanted = [split for split in manifest.splits if split.name in wanted_splits(manifest, splits)]
    slugs = _class_slugs(manifest, wanted, classes) if classes and not is_tables_only else None
    mirror = _Mirror(manifest, base_url)
    parts: dict[str, Part] = {}
    taken: set[str] = set()

    def add(kind: str, split: SplitSource, folder: str, url: str) -> None:
        url = url.replace(" ", "%20")
        file = f"{folder}/{_file_name(url)}"
        if url in parts:
            return
        if file in taken:
            file = f"{folder}/{url_key(url)[:8]}-{_file_name(url)}"
        taken.add(file)
        parts[url] = Part(kind, split.name, mirror.of(url), url, file, mirror.expected(url))

    for split in wanted:
        for url in (each for each in split.annotations if is_remote(each)):
            add("table", split, _TABLES, url)
    for split in wanted if not is_tables_only else ():
        archives = [
            url for each in split.archives if is_remote(each) for url in _spelled_out(each, split, client, mirror)
        ]
        if slugs is not None:
            archives = [url for url in archives if label_slug(_stem(url)) in slugs]
        for url in archives[:limit]:
            add("archive", split, split.name, url)
    for split in wanted if not is_tables_only else ():
        for url in (each for each in split.replacements if is_remote(each)):
            add("replacement", split, "replacements", url)
    if not parts:
        raise SourceError(
            f"The manifest {manifest.name} names nothing to fetch; for addresses of your own give their list: stmae-data fetch LIST.csv"
        )
    return list(parts.values())


class _Mirror:
    """Puts another place in front of the release's own paths."""

    def __init__(self, manifest: Manifest, base_url: str | None) -> None:
        self.manifest, self.official = manifest, manifest.base_url
        self.base_url = base_url if base_url is None or base_url.endswith("/") else base_url + "/"

    def of(self, url: str) -> str:
        """Where a URL of the release is at the mirror."""
        if self.base_url is None:
            return url
        path = self.path(url)
        if path is None:
            raise SourceError(
                f"{_shown(url)} is not below {self.official}, so --base-url has no place for it; fetch it without a mirror."
            )
        return urljoin(self.base_url, path)

    def path(self, url: str) -> str | None:
        """The part of a URL behind the base URL; None when it is not below it. Lists say http where manifests say https."""
        bare, base = url.partition("://")[2], (self.official or "").partition("://")[2]
        return bare.removeprefix(base) if base and bare.startswith(base) else None

    def expected(self, url: str) -> Expected:
        """What the manifest says the bytes must be."""
        path = self.path(url)
        kind, _, digest = self.manifest.checksums.get(path if path is not None else url, "").partition(":")
        return Expected(sha256=frozenset({digest} if kind == "sha256" else ()), md5=digest if kind == "md5" else None)


def _spelled_out(location: str, split: SplitSource, client: Client, mirror: _Mirror) -> Iterator[str]:
    """The URLs a location stands for: itself, a run of numbers, or the lines of a list."""
    if (match := _NUMBERS.search(location)) is not None:
        first, last = match["first"], match["last"]
        for number in range(int(first), int(last) + 1):
            yield from _spelled_out(
                location[: match.start()] + str(number).zfill(len(first)) + location[match.end() :],
                split,
                client,
                mirror,
            )
        return
    if not urlsplit(location).path.endswith(".txt"):
        yield location
        return
    try:
        text = read_small(client, mirror.of(location)).decode("utf-8-sig", "replace")
    except ClipRejected as rejected:
        raise SourceError(
            f"The list of parts {_shown(mirror.of(location))} cannot be fetched ({rejected}); run the same command again, or name a mirror with --base-url."
        ) from rejected
    below = split.archives_below or urljoin(location, ".")
    for line in text.splitlines():
        name = line.strip()
        if name and not name.startswith("#"):
            yield name if is_remote(name.casefold()) else below + quote(name, safe="/%")


def _class_slugs(manifest: Manifest, wanted: Sequence[SplitSource], classes: Collection[str]) -> set[str]:
    mixed = [split.name for split in wanted if split.archives and split.name not in manifest.archives_by_class]
    if mixed:
        by_class = " ".join(manifest.archives_by_class)
        way = f"choose among --split {by_class}, or " if by_class else ""
        raise SourceError(
            f"The archives of {manifest.name} {', '.join(mixed)} are not named after classes; {way}fetch them all and choose with build --classes."
        )
    known = {label_slug(label) for label in manifest.labels}
    slugs = set()
    for label in classes:
        slug = label_slug(label)
        slug = label_slug(manifest.label_synonyms.get(slug, slug))
        if known and slug not in known:
            raise SourceError(
                f"{manifest.name} has no class {label!r}; its {len(known)} classes stand in its manifest."
            )
        slugs.add(slug)
    return slugs


def _stem(url: str) -> str:
    return re.sub(
        r"\.(tar|tgz|tar\.gz|zip)$", "", unquote_plus(PurePosixPath(urlsplit(url).path).name), flags=re.IGNORECASE
    )


def _file_name(url: str) -> str:
    """A plain name for a part: its own, without signs that mean something to a file system."""
    name = re.sub(r"[^\w .()',&+-]", "_", unquote(urlsplit(url).path.rpartition("/")[2]))[:200]
    return name if name and not name.startswith(".") else f"_{name or url_key(url)}"


def _shown(url: str) -> str:
    return url.partition("?")[0].rpartition("@")[2] if "@" in url else url.partition("?")[0]


def unpack_tables(folder: Path, part: Part) -> list[str]:
    """Put the tables inside a fetched zip or tar beside it, by their bare names; anything else in it stays where it is.

    Returns:
        Names of the tables.

    Raises:
        SourceError: the archive cannot be read, or a table in it is unreasonably large.
    """
    path = folder / part.file
    made: list[str] = []
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    name = _table_name(info.filename)
                    if name is None or info.is_dir() or name in made:
                        continue
                    if info.file_size > min(_MAX_TABLE_BYTES, _MAX_RATIO * max(info.compress_size, 1 << 20)):
                        raise SourceError(
                            f"{path} holds {name} of {info.file_size} bytes; that is no table, fetch it again."
                        )
                    with archive.open(info) as stream, files.committing(path.parent / name, point="unpack") as out:
                        _copy(stream, out, info.file_size)
                    made.append(name)
        elif re.search(r"\.(tar|tgz|tar\.gz)$", path.name, re.IGNORECASE):
            uri = source_uri(path)
            for member in list_members(path):
                name = _table_name(member.name.decode("utf-8", "replace"))
                if name is None or member.kind != "file" or name in made:
                    continue
                with files.committing(path.parent / name, point="unpack") as out:
                    for piece in open_member(uri, quote(member.name), max_bytes=_MAX_TABLE_BYTES):
                        out.write(piece)
                made.append(name)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ClipRejected) as error:
        raise SourceError(
            f"{path} cannot be unpacked ({error}); remove it, then run the same command again."
        ) from error
    return made


def _table_name(member: str) -> str | None:
    name = member.replace("\\", "/").rpartition("/")[2]
    return name if _TABLE.fullmatch(name) and "__MACOSX" not in member else None


def _copy(stream: IO[bytes], out: IO[bytes], size: int) -> None:
    left = size
    while piece := stream.read(min(1 << 20, left + 1)):
        left -= len(piece)
        if left < 0:
            raise zipfile.BadZipFile("a member is longer than it says")
        out.write(piece)
