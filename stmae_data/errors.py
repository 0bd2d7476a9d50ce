"""What can go wrong with data, and the closed list of reasons a clip is not written.

StmaeDataError                     exit 1, one sentence: what, where, found and wanted, next step
├── ManifestError                  unknown manifest or key
├── SourceError                    a folder, file or annotation table that cannot be read
├── SetError                       a set that is missing, unsealed or damaged
├── SelectionError                 a selection or its SQL
├── UsageError                     exit 2
├── Finding                        exit 3: leaks found, dedup would act, too many rejects
├── VerifyFailed                   exit 4
├── StorageError                   exit 74: disk full, read-only, input/output error
├── Busy                           exit 75: somebody else holds the lock
├── Interrupted                    exit 128 + signal
└── ClipRejected                   never leaves a build: becomes a ledger row with its Reason
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "Busy",
    "ClipRejected",
    "Finding",
    "Interrupted",
    "ManifestError",
    "Reason",
    "SelectionError",
    "SetError",
    "SourceError",
    "StmaeDataError",
    "StorageError",
    "UsageError",
    "VerifyFailed",
]


class Reason(StrEnum):
    """Why a planned clip was not written. Closed: a reason is added in RELIABILITY, here and in a test, or not at all."""

    # failed: we could not
    EMPTY = "empty"
    NOT_MEDIA = "not_media"
    TRUNCATED = "truncated"
    CORRUPT_HEADER = "corrupt_header"
    BOMB = "bomb"
    BAD_TIMING = "bad_timing"
    NO_VIDEO = "no_video"
    DECODE_ERROR = "decode_error"
    UNSAFE_PLAYLIST = "unsafe_playlist"
    SPECIAL_FILE = "special_file"
    SYMLINK = "symlink"
    CHANGED = "changed"
    TIMEOUT = "timeout"
    OOM = "oom"
    DECODER_CRASH = "decoder_crash"
    INTERNAL_ERROR = "internal_error"
    NET_DNS = "net_dns"
    NET_4XX = "net_4xx"
    NET_ERROR = "net_error"
    RATE_LIMITED = "rate_limited"
    BOT_WALL = "bot_wall"
    GONE = "gone"
    PRIVATE = "private"
    GEO = "geo"
    REFUSED_URL = "refused_url"
    HASH_MISMATCH = "hash_mismatch"
    # dropped: a rule said no
    TOO_SHORT = "too_short"
    TOO_LARGE = "too_large"
    DURATION_MISMATCH = "duration_mismatch"
    DUPLICATE = "duplicate"
    LEAK = "leak"
    FILTERED = "filtered"
    LICENSE_BLOCK = "license_block"
    OPTED_OUT = "opted_out"
    REMOVED = "removed"

    @property
    def outcome(self) -> str:
        """`dropped` for rules, `failed` for everything else."""
        return "dropped" if self in _RULES else "failed"

    @property
    def is_retryable(self) -> bool:
        """Whether `--retry-failed` takes the clip up again without being named."""
        return self in _RETRYABLE


_RULES = frozenset(
    {
        Reason.TOO_SHORT,
        Reason.TOO_LARGE,
        Reason.DURATION_MISMATCH,
        Reason.DUPLICATE,
        Reason.LEAK,
        Reason.FILTERED,
        Reason.LICENSE_BLOCK,
        Reason.OPTED_OUT,
        Reason.REMOVED,
    }
)
_RETRYABLE = frozenset(
    {
        Reason.TIMEOUT,
        Reason.OOM,
        Reason.DECODER_CRASH,
        Reason.CHANGED,
        Reason.NET_DNS,
        Reason.NET_ERROR,
        Reason.RATE_LIMITED,
        Reason.BOT_WALL,
    }
)


class StmaeDataError(Exception):
    """A user or data error, told in one sentence."""

    exit_code = 1


class ManifestError(StmaeDataError):
    """A manifest that does not exist or does not say what it must."""


class SourceError(StmaeDataError):
    """A folder, file or annotation table that cannot be read as asked."""


class SetError(StmaeDataError):
    """A shard set that is missing, unsealed or damaged."""


class SelectionError(StmaeDataError):
    """A selection that cannot be made or no longer fits its set."""


class UsageError(StmaeDataError):
    """Wrong words on the command line."""

    exit_code = 2


class Finding(StmaeDataError):
    """Not an error: something was found that the caller asked to be told about."""

    exit_code = 3


class VerifyFailed(StmaeDataError):
    """`verify` found damage."""

    exit_code = 4


class StorageError(StmaeDataError):
    """The disk is full, read-only, gone or broken."""

    exit_code = 74


class Busy(StmaeDataError):
    """Somebody else is writing here."""

    exit_code = 75


class Interrupted(StmaeDataError):
    """A signal asked us to stop; everything committed stays."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"Stopped by signal {signal_number}; what was committed stays, rerun to go on.")
        self.exit_code = 128 + signal_number


class ClipRejected(StmaeDataError):
    """One clip cannot or may not be written; `reason` says why, `detail` in at most 200 characters."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail[:200]
