"""What counts as the same, in numbers: read from TOML, frozen, named by its digest in every decision."""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from stmae_data.errors import UsageError
from stmae_data.records import LEVELS

__all__ = ["AGAINST_LEVELS", "WITHIN_LEVELS", "Policy", "check_levels", "load_policy"]

AGAINST_LEVELS = LEVELS
"""Levels between training and evaluation: a leak is worse than a lost clip."""

WITHIN_LEVELS = ("bytes", "stream", "id", "content")
"""Levels within one training split, where two intervals of one video may both stay."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds of the content level, and pairs a person has looked at.

    The defaults for films are those of the measurements in DEDUP §3.2: one frame within 31 of 256 bits, and along one time offset a stretch of
    at least 0.8 s whose median distance is at most 64 bits.
    """

    name: str = "default"
    min_quality: int = 50
    """Frames below are left out: 0..100, share of bits that codec noise cannot turn."""
    gate_bits: int = 31
    """At least one pair of frames must be this near, unless the stretch is long."""
    median_bits: int = 64
    """The median distance over the stretch."""
    min_stretch_ms: int = 800
    """Shortest stretch that proves anything."""
    reach_bits: int = 40
    """Frames this near bring a pair up for comparison."""
    long_median_bits: int = 52
    """Over a long stretch this median proves sameness without any frame within the gate: heavy re-encodes of dim clips, logos. With it
    tests/bench/bench_neardup.py finds no false pair among 356,075."""
    long_stretch_ms: int = 1500
    """What counts as a long stretch."""
    min_share_against: float = 0.0
    """Share of the shorter clip that the stretch must cover between training and evaluation."""
    min_share_within: float = 0.2
    """The same within training, where a shared intro is no reason to lose a clip."""
    picture_bits: int = 20
    """How near one frame must be where one of the two clips is a picture. Copies of pictures saved anew at JPEG quality 30 or at 96 px
    were at most so far away, pictures of different films never within 90."""
    picture_quality: int = 80
    """The quality that such a frame must have."""
    bucket_cap: int = 1000
    """Band buckets with more hashes are checked apart and logged."""
    hash_cap: int = 100
    """Of the clips that show one and the same frame hash, so many, at least one, are compared with each other, the rest with the first few."""
    not_duplicates: tuple[tuple[str, str], ...] = ()
    """Pairs of clip ids that a person judged to differ; no level counts between them."""
    filters: tuple[tuple[str, str], ...] = ()
    """Name and SQL condition over the ledger: training clips that meet one go before anything is compared, reason `filtered`."""

    @property
    def version(self) -> str:
        """Name and digest: what decisions record."""
        text = json.dumps(asdict(self), sort_keys=True)
        return f"{self.name}/{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def load_policy(path: Path | None) -> Policy:
    """Read a policy from TOML; None gives the default.

    Raises:
        UsageError: the file cannot be read, or has an unknown key or a value of another kind.
    """
    if path is None:
        return Policy()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"The policy {path} cannot be read as TOML ({error}); correct the file.") from error
    known = {field.name: type(field.default) for field in fields(Policy)}
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise UsageError(f"The policy {path} has an unknown key {key!r}; did you mean {near!r}?")
        if key not in ("not_duplicates", "filters") and not _fits(value, known[key]):
            raise UsageError(f"The policy {path} says {key} = {value!r}; wanted {_KINDS[known[key]]}.")
        if key in _RANGES and value not in (useful := _RANGES[key]):
            bound = f"at least {useful[0]}" if value < useful[0] else f"at most {useful[-1]}"
            raise UsageError(
                f"The policy {path} says {key} = {value}, so that no frames would be compared; wanted {bound}, or other levels: --level."
            )
    if "not_duplicates" in values:
        values["not_duplicates"] = _pairs(values["not_duplicates"], path)
    if "filters" in values:
        values["filters"] = _filters(values["filters"], path)
    return Policy(**{"name": path.stem, **values})


_RANGES: dict[str, range] = {"hash_cap": range(1, 2**31), "min_quality": range(101), "picture_quality": range(101)}
"""Beyond these the level content would be off without a word."""

_KINDS: dict[type, str] = {str: "a text", int: "a whole number from 0", float: "a share from 0 to 1"}


def _fits(value: Any, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value <= 1 if kind is float else isinstance(value, int) and value >= 0


def _pairs(value: Any, path: Path) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(clip, str) for clip in pair) for pair in value
    ):
        raise UsageError(f'The policy {path} says not_duplicates = {value!r:.80}; wanted [["clip a", "clip b"], …].')
    return tuple(sorted((min(pair), max(pair)) for pair in value))


def _filters(value: Any, path: Path) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not all(isinstance(each, str) and each.strip() for each in value.values()):
        raise UsageError(
            f'The policy {path} says filters = {value!r:.80}; wanted a table [filters] of name = "SQL condition".'
        )
    return tuple(sorted(value.items()))


def check_levels(levels: tuple[str, ...] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """The wanted levels in the order of LEVELS.

    Raises:
        UsageError: an unknown level.
    """
    if levels is None:
        return default
    for level in levels:
        if level not in LEVELS:
            raise UsageError(f"{level!r} is not a level; wanted some of {', '.join(LEVELS)}.")
    return tuple(level for level in LEVELS if level in levels)
