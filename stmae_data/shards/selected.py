"""A selection as it is read: its table and its description must agree."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.errors import SelectionError

__all__ = ["selected_ids", "selection_digest"]


def selection_digest(parents: Iterable[Mapping[str, Any]], clip_ids: Iterable[str]) -> str:
    """sha256 over the name and digest of every parent and over the clip ids, in their order."""
    told = "".join(f"{parent['name']} {parent['digest']}\n" for parent in parents)
    listed = "".join(f"{clip_id}\n" for clip_id in clip_ids)
    return hashlib.sha256((told + "\n" + listed).encode()).hexdigest()


def selected_ids(path: Path, description: Mapping[str, Any]) -> list[str]:
    """Clip ids of `selections/<name>.parquet` in their order, held against the digest that its description says.

    Raises:
        SelectionError: they do not belong together; SetError: the table is damaged.
    """
    clip_ids = [row["clip_id"] for row in files.read_table(path, "SELECT clip_id FROM book ORDER BY ordinal")]
    digest = selection_digest(description["parents"], clip_ids)
    if digest != description["digest"]:
        raise SelectionError(
            f"{path} holds {len(clip_ids)} clips of digest {digest[:12]}, {path.stem}.json says {description.get('num_clips')} of "
            f"{str(description['digest'])[:12]}; remove both files and make the selection again: stmae-data select {path.stem}"
        )
    return clip_ids
