"""Publishing a set: its cards, lists for other tools, and the way to the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from stmae_data import files
from stmae_data.errors import UsageError
from stmae_data.manifest import is_remote
from stmae_data.publish.croissant import Authors, croissant
from stmae_data.publish.export import FORMATS, Exported, export
from stmae_data.publish.facts import read_facts
from stmae_data.publish.push import Client, Pushed, Upload, push
from stmae_data.publish.readme import readme

__all__ = [
    "FORMATS",
    "Authors",
    "Card",
    "Client",
    "Exported",
    "Pushed",
    "Upload",
    "export",
    "push",
    "write_card",
]


@dataclass(frozen=True, slots=True)
class Card:
    """The two cards of a set, and what Croissant asks for that nobody has said."""

    readme: Path
    croissant: Path
    unsaid: tuple[str, ...]


def write_card(workspace: Path, set_name: str, authors: Authors | None = None) -> Card:
    """Write README.md and croissant.json of a sealed set. The same set and authors give the same bytes.

    Raises:
        SetError: the set is missing, unsealed or damaged; UsageError: an address or a date that is none; StorageError: the disk.
    """
    authors = authors or Authors()
    if authors.url is not None and not (is_remote(authors.url) and authors.url.startswith("http")):
        raise UsageError(f"{authors.url!r:.200} is no address of a page; wanted https://…")
    if authors.published is not None:
        try:
            date.fromisoformat(authors.published)
        except ValueError as error:
            raise UsageError(f"{authors.published!r:.40} is no date; wanted YYYY-MM-DD.") from error
    facts = read_facts(workspace, set_name)
    document = croissant(facts, authors)
    card = Card(
        facts.found.folder / "README.md",
        facts.found.folder / "croissant.json",
        tuple(name for name in ("license", "url", "creator", "datePublished", "citeAs") if name not in document),
    )
    files.commit_bytes(card.readme, readme(facts).encode(), point="readme")
    files.commit_json(card.croissant, document, point="croissant")
    return card
