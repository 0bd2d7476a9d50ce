"""One URL to one file: tries, resuming, checks, and the rename that makes it real.

What has come of a large body stays in a `.part` file with the server's own mark of its version (ETag or date); a later try asks for the rest
under the condition that the version is still the same, and starts over when it is not.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any

from stmae_data import files
from stmae_data.errors import Busy, ClipRejected, Reason, SetError
from stmae_data.fetch.address import parse_url
from stmae_data.fetch.checks import is_opted_out
from stmae_data.fetch.client import Answer, Client, Passing, Stopped
from stmae_data.sources.listed import fetched_name

__all__ = ["Expected", "Fetched", "Sniff", "download", "read_small"]

_RESUME_BYTES = 1 << 20
_HEAD_BYTES = 4096
_RANGE = re.compile(r"bytes (?P<start>\d{1,18})-(?P<end>\d{1,18})/(?P<total>\d{1,18})")
_UNMET = re.compile(r"bytes \*/(?P<total>\d{1,18})")
Sniff = Callable[[bytes], None]
"""Told the first bytes of a body; raises ClipRejected when they cannot be what is wanted."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the bytes must be, as far as it is known. Any of `sha256` will do: rows of a list may disagree."""

    sha256: frozenset[str] = frozenset()
    md5: str | None = None
    num_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that was fetched and checked."""

    num_bytes: int
    sha256: str
    resolved_url: str
    final_ip: str
    fetched_at: str
    """UTC, ISO 8601, to the second."""
    attempts: int


def download(
    client: Client,
    url: str,
    target: Path,
    *,
    partial: Path,
    expected: Expected | None = None,
    sniff: Sniff | None = None,
) -> Fetched:
    """Fetch one URL into one file.

    Args:
        client: policy and connections.
        url: the address, checked before anything is connected to.
        target: where the file appears, whole and checked.
        partial: a folder on the same file system for what has come so far.
        expected: digests and size the file must have.
        sniff: told the first bytes as soon as they are there.

    Raises:
        ClipRejected: with the one reason why there is no file.
        Busy: another process fetches the same URL into the same place.
        StorageError: the disk; Stopped: the client was asked to stop.
    """
    parse_url(url)
    clock = client.clock()
    partial.mkdir(parents=True, exist_ok=True)
    with _Part.held(partial, url) as part:
        for attempt in range(1, client.policy.tries + 1):
            try:
                with client.exchange(url, clock=clock, extra=part.range_headers()) as answer:
                    _receive(answer, part, client.policy.max_bytes, sniff)
                    resolved, ip = answer.resolved_url, answer.final_ip
                break
            except Passing as passing:
                wait = _wait_seconds(passing, attempt, client)
                if wait is None or clock.ends - clock.now() <= wait:
                    raise ClipRejected(passing.reason, passing.detail) from passing
                if client.stop.wait(wait):
                    raise Stopped from passing
            except ClipRejected as rejected:
                if not rejected.reason.is_retryable:  # what came before a passing trouble is kept for the next run
                    part.discard()
                raise
        try:
            sha256 = _check(part, expected or Expected(), sniff)
        except ClipRejected:
            part.discard()
            raise
        size = part.size
        part.commit(target)
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None).isoformat(timespec="seconds")
    return Fetched(size, sha256, resolved, ip, now, attempt)


def read_small(client: Client, url: str, *, max_bytes: int = 64 << 20) -> bytes:
    """The body of a small document, such as a list of parts, in memory; tries like `download`.

    Raises:
        ClipRejected: why it cannot be had; Stopped.
    """
    clock = client.clock()
    for attempt in range(1, client.policy.tries + 1):
        try:
            with client.exchange(url, clock=clock) as answer:
                _raise_for_status(answer)
                pieces, size = [], 0
                for piece in answer.body():
                    size += len(piece)
                    if size > max_bytes:
                        raise ClipRejected(Reason.TOO_LARGE, f"more than {max_bytes} bytes")
                    pieces.append(piece)
                return b"".join(pieces)
        except Passing as passing:
            wait = _wait_seconds(passing, attempt, client)
            if wait is None or clock.ends - clock.now() <= wait:
                raise ClipRejected(passing.reason, passing.detail) from passing
            if client.stop.wait(wait):
                raise Stopped from passing
    raise AssertionError("the last try returns or raises")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file at `path`, made if need be, held by flock."""
    while True:
        with files.storage_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+b", buffering=0) as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(
                    f"{path} is being fetched by another process; wait for it to end, then run the same command again."
                ) from error
            # The process that held it may have given the file its final name in between: then this is no part any more.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                yield stream
                return


class _Part:
    """What has come of one URL so far: `<hash>.part`, held by flock, and `<hash>.json` with the server's mark of the version."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self.stream = path, stream
        self.state_path = path.with_suffix(".json")
        self.validator: str | None = None
        self.total: int | None = None
        self.is_committed = False
        if self.size:
            self._remember()

    @classmethod
    @contextlib.contextmanager
    def held(cls, folder: Path, url: str) -> Iterator[_Part]:
        """The part of a URL, locked; one that cannot be gone on with is removed at the end."""
        path = folder / f"{fetched_name(url)[:32]}.part"
        with _opened(path) as stream:
            part = cls(path, stream)
            try:
                yield part
            finally:
                if not part.is_committed and (not part.size or part.validator is None):
                    part.discard()

    def commit(self, target: Path) -> None:
        """Give the finished file its name. The part is no more; its descriptor must not be written to."""
        self.is_committed = True
        files.commit_part(self.path, target, point="fetch")
        self.forget()

    @property
    def size(self) -> int:
        """Bytes that have come."""
        return os.fstat(self.stream.fileno()).st_size

    def range_headers(self) -> dict[str, str]:
        """What asks for the rest, if the version is still the one the part is of."""
        if not self.size or self.validator is None:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self.validator}

    def _remember(self) -> None:
        try:
            state = files.read_json(self.state_path)
            self.validator, self.total = str(state["validator"]), state["total"]
        except (OSError, SetError, KeyError, TypeError):
            self.start_over()  # without the server's mark nobody knows what these bytes belong to

    def start_over(self) -> None:
        """Throw away what has come."""
        self.validator = self.total = None
        self.stream.truncate(0)

    def mark(self, answer: Answer) -> None:
        """Note the version of a new, large body, so that the rest can be asked for later."""
        self.total = answer.length
        self.validator = _validator(answer.headers)
        if self.validator is None or (self.total is not None and self.total < _RESUME_BYTES):
            self.validator = None
            self.state_path.unlink(missing_ok=True)
        else:
            files.commit_json(self.state_path, {"validator": self.validator, "total": self.total}, point="fetch-state")

    def append(self, piece: bytes) -> None:
        """Add bytes at the end."""
        with files.storage_errors(self.path):
            self.stream.seek(0, os.SEEK_END)
            left = memoryview(piece)
            while left:
                left = left[self.stream.write(left) :]

    def head(self) -> bytes:
        """The first bytes."""
        return os.pread(self.stream.fileno(), _HEAD_BYTES, 0)

    def discard(self) -> None:
        """Throw everything away."""
        self.start_over()
        self.path.unlink(missing_ok=True)
        self.forget()

    def forget(self) -> None:
        """Remove the note about the version."""
        self.state_path.unlink(missing_ok=True)


def _validator(headers: HTTPMessage) -> str | None:
    """What names this version of the body for If-Range: a strong ETag, else the date of the last change."""
    etag = (headers.get("ETag") or "").strip()
    if re.fullmatch(r'"[\x21\x23-\x7e]*"', etag):
        return etag
    date = (headers.get("Last-Modified") or "").strip()
    return date if re.fullmatch(r"[A-Za-z0-9 ,:+-]{10,40}", date) else None


def _receive(answer: Answer, part: _Part, max_bytes: int, sniff: Sniff | None) -> None:
    """Bring the rest of the body into the part; afterwards it is whole."""
    if answer.status == 416 and part.size:
        unmet = _UNMET.fullmatch(answer.headers.get("Content-Range", "").strip())
        if unmet is not None and int(unmet["total"]) == part.size == part.total:
            return  # all of it had come before
        part.start_over()
        raise Passing(Reason.NET_ERROR, "the server has no such rest; starting over", wait_seconds=0.0)
    _raise_for_status(answer)
    if answer.status == 206:
        _go_on(answer, part)
    else:
        part.start_over()
        part.mark(answer)
    end = part.size + answer.length if answer.length is not None else None
    if end is not None and end > max_bytes:
        raise ClipRejected(Reason.TOO_LARGE, f"{end} bytes, at most {max_bytes} are fetched")
    is_sniffed = sniff is None
    for piece in answer.body():
        if part.size + len(piece) > max_bytes:
            raise ClipRejected(Reason.TOO_LARGE, f"more than {max_bytes} bytes")
        part.append(piece)
        if not is_sniffed and sniff is not None and part.size >= _HEAD_BYTES:
            sniff(part.head())
            is_sniffed = True
    if part.total is not None and part.size != part.total:
        part.start_over()
        raise Passing(Reason.NET_ERROR, "the parts do not add up to the length; starting over")


def _go_on(answer: Answer, part: _Part) -> None:
    """Check that a partial answer continues the part."""
    said = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    now = _validator(answer.headers)
    is_same = part.validator is not None and now in (None, part.validator)
    if said is None or int(said["start"]) != part.size or not is_same or part.total not in (None, int(said["total"])):
        part.start_over()
        raise Passing(Reason.NET_ERROR, "the rest belongs to another version; starting over", wait_seconds=0.0)
    part.total = int(said["total"])


def _raise_for_status(answer: Answer) -> None:
    status = answer.status
    if is_opted_out(answer.headers):
        raise ClipRejected(Reason.OPTED_OUT, "X-Robots-Tag says noai")
    if status == 429:
        raise Passing(Reason.RATE_LIMITED, "status 429", wait_seconds=_retry_after(answer.headers))
    if status >= 500:
        raise Passing(Reason.NET_ERROR, f"status {status}", wait_seconds=_retry_after(answer.headers))
    if status == 410:
        raise ClipRejected(Reason.GONE, "status 410")
    if 400 <= status < 500:
        raise ClipRejected(Reason.NET_4XX, f"status {status}")
    if status not in (200, 206):
        raise ClipRejected(Reason.NET_ERROR, f"status {status}")
    encoding = (answer.headers.get("Content-Encoding") or "identity").strip().casefold()
    if encoding != "identity":
        raise ClipRejected(Reason.NET_ERROR, "the body is compressed although plain bytes were asked for")


def _retry_after(headers: HTTPMessage) -> float | None:
    text = (headers.get("Retry-After") or "").strip()
    if re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):  # the last for a time zone that no clock has
        return None
    if when.tzinfo is None:
        return None
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())


def _wait_seconds(passing: Passing, attempt: int, client: Client) -> float | None:
    """Seconds until the next try; None when there is none: tries are used up, or the server asks for more patience than we have."""
    if attempt >= client.policy.tries:
        return None
    if passing.wait_seconds is not None:
        return passing.wait_seconds if passing.wait_seconds <= client.policy.max_wait_seconds else None
    return float(client.policy.backoff_seconds * 2 ** (attempt - 1) * client.generator.uniform(0.5, 1.5))


def _check(part: _Part, expected: Expected, sniff: Sniff | None) -> str:
    """Check the whole part; its sha256."""
    if sniff is not None:
        sniff(part.head())
    found: Any = hashlib.sha256()
    md5 = hashlib.md5(usedforsecurity=False)
    part.stream.seek(0)
    while piece := part.stream.read(1 << 20):
        found.update(piece)
        if expected.md5 is not None:
            md5.update(piece)
    if expected.num_bytes not in (None, part.size):
        raise ClipRejected(Reason.HASH_MISMATCH, f"{part.size} bytes, {expected.num_bytes} were expected")
    sha256 = str(found.hexdigest())
    if expected.sha256 and sha256 not in expected.sha256:
        raise ClipRejected(Reason.HASH_MISMATCH, "the bytes have another sha256 than was expected")
    if expected.md5 is not None and md5.hexdigest() != expected.md5:
        raise ClipRejected(Reason.HASH_MISMATCH, "the bytes have another md5 than was expected")
    return sha256
