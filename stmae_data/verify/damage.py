"""What `verify` can find: a closed list of codes, and the report."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Damage", "DamageCode", "Findings", "VerifyReport"]

_EXAMPLES = 5
"""Findings of one code in one file that are told one by one; the rest is a number."""


class DamageCode(StrEnum):
    """Every kind of damage, one word each. Closed: a code is added here and in a test, or not at all."""

    # the seal
    SEAL_MISSING = "seal_missing"
    SEAL_UNREADABLE = "seal_unreadable"
    SEAL_FIELDS = "seal_fields"
    DIGEST_MISMATCH = "digest_mismatch"
    COUNTS_DISAGREE = "counts_disagree"
    # shards
    SHARD_MISSING = "shard_missing"
    SHARD_SIZE = "shard_size"
    SHARD_SHA256 = "shard_sha256"
    SHARD_CUT = "shard_cut"
    SHARD_STRUCTURE = "shard_structure"
    SHARD_UNLISTED = "shard_unlisted"
    SAMPLE_COUNT = "sample_count"
    # samples
    KEY_INVALID = "key_invalid"
    KEY_REPEATED = "key_repeated"
    MEMBER_ORDER = "member_order"
    MEMBERS_UNEVEN = "members_uneven"
    SAMPLE_JSON = "sample_json"
    SAMPLE_FIELDS = "sample_fields"
    SAMPLE_DISAGREES = "sample_disagrees"
    STORED_SHA256 = "stored_sha256"
    # ledgers
    LEDGER_MISSING = "ledger_missing"
    LEDGER_SHA256 = "ledger_sha256"
    LEDGER_UNREADABLE = "ledger_unreadable"
    LEDGER_UNLISTED = "ledger_unlisted"
    KEYS_DIFFER = "keys_differ"
    PLACE_WRONG = "place_wrong"
    OUTCOME_UNSOUND = "outcome_unsound"
    DUPLICATE_POINTER = "duplicate_pointer"
    # the plan and work in progress
    PLAN_MISSING = "plan_missing"
    PLAN_UNREADABLE = "plan_unreadable"
    PLAN_SHA256 = "plan_sha256"
    PLAN_UNMET = "plan_unmet"
    TEMP_FILE = "temp_file"
    REWRITE_UNFINISHED = "rewrite_unfinished"
    # reading
    UNREADABLE = "unreadable"
    DECODER_DISAGREES = "decoder_disagrees"


@dataclass(frozen=True, slots=True)
class Damage:
    """One finding: its code, the file inside the set, and what was found and wanted."""

    code: DamageCode
    file: str
    detail: str


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Everything `verify` found; `bytes` were read in `seconds`."""

    damages: tuple[Damage, ...]
    bytes: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damages

    @property
    def codes(self) -> tuple[str, ...]:
        """The distinct codes found, sorted."""
        return tuple(sorted({str(damage.code) for damage in self.damages}))

    def as_json(self) -> dict[str, Any]:
        """The shape of `verify --json` (FORMATS)."""
        return {
            "ok": self.ok,
            "damages": [asdict(damage) for damage in self.damages],
            "bytes": self.bytes,
            "seconds": self.seconds,
        }


class Findings:
    """Collects damages from several threads; floods of one code in one file become examples and a number."""

    def __init__(self) -> None:
        self._found: dict[tuple[DamageCode, str], list[str]] = {}
        self._lock = threading.Lock()

    def add(self, code: DamageCode, file: str, detail: str) -> None:
        """Note one damage."""
        with self._lock:
            self._found.setdefault((code, file), []).append(detail)

    def damages(self) -> tuple[Damage, ...]:
        """All damages, by code and file."""
        order = list(DamageCode)
        told = []
        for (code, file), details in sorted(
            self._found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])
        ):
            told += [Damage(code, file, detail) for detail in details[:_EXAMPLES]]
            if len(details) > _EXAMPLES:
                told.append(Damage(code, file, f"and {len(details) - _EXAMPLES} more of this kind"))
        return tuple(told)
