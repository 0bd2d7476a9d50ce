"""The catalogue: DuckDB over all ledgers of a workspace. A cache and a way to ask; the shards and ledgers are the truth.

Tables and views an SQL text may read (`TABLES`): see `stmae_data.catalog.books`.
"""

from __future__ import annotations

from stmae_data.catalog.books import TABLES, SetBooks, find_books, insert_known
from stmae_data.catalog.cache import CatalogSummary, rebuild_catalog
from stmae_data.catalog.locked import Answer, locked_select, sql
from stmae_data.catalog.story import ClipStory, SetDiff, diff, show_clip
from stmae_data.catalog.summary import SetStats, SetSummary, SplitStats, list_sets, opened, stats

__all__ = [
    "TABLES",
    "Answer",
    "CatalogSummary",
    "ClipStory",
    "SetBooks",
    "SetDiff",
    "SetStats",
    "SetSummary",
    "SplitStats",
    "diff",
    "find_books",
    "insert_known",
    "list_sets",
    "locked_select",
    "opened",
    "rebuild_catalog",
    "show_clip",
    "sql",
    "stats",
]
