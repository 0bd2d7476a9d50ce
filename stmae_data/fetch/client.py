"""One guarded HTTP exchange: to the address that was checked, redirects by hand, every byte under the deadline, nothing of the environment.

Proxies, netrc, cookies and compression do not exist here. `download` adds retries, resuming and the file.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from stmae_data import __version__
from stmae_data.errors import ClipRejected, Reason
from stmae_data.fetch.address import Address, Resolver, checked_addresses, follow, parse_url, shown_url, system_resolver

__all__ = ["Answer", "Client", "Passing", "Policy", "Stopped"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_BLOCK = 1 << 16
_STEP_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Policy:
    """What a download may take. Times are seconds; `deadline_seconds` is for one URL with all its retries and redirects."""

    max_bytes: int = 1 << 30
    deadline_seconds: float = 900.0
    read_timeout_seconds: float = 30.0
    tries: int = 4
    max_redirects: int = 5
    per_host: int = 2
    backoff_seconds: float = 1.0
    max_wait_seconds: float = 60.0
    ports: frozenset[int] = frozenset()
    """Ports open beside 80 and 443."""
    allow_private: bool = False
    """Connect to addresses that are not public, on any port; for tests and intranets, recorded with what was fetched."""


class Passing(Exception):
    """What may be gone at the next try: a timeout, 429, 5xx, a connection that breaks. `wait_seconds` is what the server asked for."""

    def __init__(self, reason: Reason, detail: str, *, wait_seconds: float | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.wait_seconds = reason, detail, wait_seconds


class Stopped(Exception):
    """Somebody asked all downloads to stop; what came so far stays for the next run."""


@dataclass(slots=True)
class Clock:
    """A deadline by the monotonic clock, and the wish to stop."""

    ends: float
    read_timeout: float
    now: Callable[[], float]
    stop: threading.Event

    def left(self) -> float:
        """Seconds the next step may take, at most the read timeout.

        Raises:
            TimeoutError: the deadline is over; Stopped: we are to stop.
        """
        if self.stop.is_set():
            raise Stopped
        left = self.ends - self.now()
        if left <= 0:
            raise TimeoutError("the deadline is over")
        return min(left, self.read_timeout)


class _Wire(io.RawIOBase):
    """The bytes of a socket; every single read stands under the deadline, so a drip of one byte a second ends with it."""

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self.sock, self.clock = sock, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        started = self.clock.now()
        while True:
            # Short steps, so that a wish to stop is heard soon.
            self.sock.settimeout(min(self.clock.left(), _STEP_SECONDS))
            try:
                with _broken():
                    return self.sock.recv_into(buffer)
            except TimeoutError:
                if self.clock.now() - started >= self.clock.read_timeout:
                    raise

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What HTTPResponse asks a socket for."""
        return io.BufferedReader(self, _BLOCK)


@dataclass(slots=True)
class Answer:
    """A response whose body has not been read yet."""

    status: int
    address: Address
    final_ip: str
    headers: http.client.HTTPMessage
    _response: http.client.HTTPResponse
    _sock: socket.socket

    def close(self) -> None:
        """Close the connection."""
        self._response.close()
        self._sock.close()

    @property
    def resolved_url(self) -> str:
        """Where the answer came from, without its query."""
        return shown_url(self.address.url).removesuffix("?…")

    @property
    def length(self) -> int | None:
        """Bytes the body is said to have.

        Raises:
            ClipRejected: the header says two things, or no number of bytes.
        """
        said = {each.strip() for each in self.headers.get_all("Content-Length", [])}
        if not said or self._response.chunked:
            return None
        (text, *others) = said
        # Python refuses to read a number of thousands of digits.
        if others or not re.fullmatch(r"\d{1,18}", text, re.ASCII):
            raise ClipRejected(Reason.NET_ERROR, "the length of the body is not one number")
        return int(text)

    def body(self) -> Iterator[bytes]:
        """The body in pieces.

        Raises:
            Passing: it ends before its length.
        """
        response, left = self._response, self.length
        while True:
            if left is None and response.chunked:
                piece = response.read1(_BLOCK)
            else:
                piece = response.fp.read1(_BLOCK if left is None else min(_BLOCK, left))
            if left is not None:
                left -= len(piece)
            if piece:
                yield piece
            if left == 0 or (not piece and left is None):
                return
            if not piece:
                raise Passing(Reason.NET_ERROR, f"the body ended {left} bytes before its length")


@dataclass(slots=True)
class Client:
    """Makes exchanges under one policy; threads may share it. `resolver`, `now` and `generator` are there for tests."""

    policy: Policy = field(default_factory=Policy)
    resolver: Resolver = system_resolver
    now: Callable[[], float] = time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)
    generator: random.Random = field(default_factory=random.Random)
    _turns: dict[str, threading.Semaphore] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _tls: ssl.SSLContext | None = None

    def clock(self) -> Clock:
        """The deadline of a download that starts now."""
        ends = self.now() + self.policy.deadline_seconds
        return Clock(ends, self.policy.read_timeout_seconds, self.now, self.stop)

    @contextlib.contextmanager
    def exchange(self, url: str, *, clock: Clock, extra: Mapping[str, str] | None = None) -> Iterator[Answer]:
        """GET a URL, following redirects by hand, and give the answer while its connection is open.

        Raises:
            ClipRejected: `refused_url`, `net_dns`, or a certificate that does not fit; Passing: try again.
        """
        address = parse_url(url)
        for _ in range(self.policy.max_redirects + 1):
            with (
                self._turn(address.host, clock),
                _told(clock),
                contextlib.closing(self._ask(address, clock, extra or {})) as answer,
            ):
                if answer.status not in _REDIRECTS:
                    yield answer
                    return
                location = answer.headers.get("Location")
            if not location:
                raise ClipRejected(Reason.REFUSED_URL, "a redirect to nowhere")
            address = follow(address, location)
        raise ClipRejected(Reason.REFUSED_URL, f"more than {self.policy.max_redirects} redirects")

    @contextlib.contextmanager
    def _turn(self, host: str, clock: Clock) -> Iterator[None]:
        """Wait for one of the few places at a host."""
        with self._lock:
            turn = self._turns.setdefault(host, threading.Semaphore(self.policy.per_host))
        started = clock.now()
        while not turn.acquire(timeout=_STEP_SECONDS):
            if clock.stop.is_set():
                raise Stopped
        clock.ends += clock.now() - started  # waiting for others of ours is not the server's fault
        try:
            yield
        finally:
            turn.release()

    def _ask(self, address: Address, clock: Clock, extra: Mapping[str, str]) -> Answer:
        found = checked_addresses(
            address, self.resolver, ports=self.policy.ports, allow_private=self.policy.allow_private
        )
        sock, ip = self._connect(address, found, clock)
        try:
            headers = {
                "Host": address.authority,
                "User-Agent": f"stmae/{__version__}",
                "Accept": "*/*",
                "Accept-Encoding": "identity",
                "Connection": "close",
                **extra,
            }
            lines = [f"GET {address.target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
            sock.settimeout(clock.left())
            with _broken():
                sock.sendall("\r\n".join(lines).encode("ascii"))
            response = http.client.HTTPResponse(cast(socket.socket, _Wire(sock, clock)), method="GET")
            response.begin()
        except BaseException:
            sock.close()
            raise
        return Answer(response.status, address, ip, response.headers, response, sock)

    def _connect(self, address: Address, found: list[str], clock: Clock) -> tuple[socket.socket, str]:
        """Connect to the first of the checked addresses that answers; the name goes into SNI and the certificate check."""
        problem: OSError | None = None
        for ip in found:
            sock = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
            try:
                sock.settimeout(clock.left())
                sock.connect((ip, address.port))
                if address.scheme == "https":
                    sock.settimeout(clock.left())
                    sock = self._context().wrap_socket(sock, server_hostname=address.host.rstrip("."))
                return sock, ip
            except OSError as error:
                sock.close()
                problem = error
            except BaseException:
                sock.close()
                raise
        assert problem is not None
        with _broken():
            raise problem

    def _context(self) -> ssl.SSLContext:
        with self._lock:
            if self._tls is None:
                self._tls = ssl.create_default_context()
            return self._tls


@contextlib.contextmanager
def _broken() -> Iterator[None]:
    """Every error of a socket that is no timeout and no matter of certificates is a broken connection."""
    try:
        yield
    except (TimeoutError, ssl.SSLError, ConnectionError):
        raise
    except OSError as error:
        raise ConnectionError(error.strerror or "the network is down") from error


@contextlib.contextmanager
def _told(clock: Clock) -> Iterator[None]:
    """Turn what sockets and parsers raise into what it means for the download."""
    try:
        yield
    except TimeoutError as error:
        if clock.ends <= clock.now():
            raise ClipRejected(Reason.TIMEOUT, "the deadline is over") from error
        raise Passing(Reason.TIMEOUT, "the server does not answer in time") from error
    except ssl.SSLCertVerificationError as error:
        raise ClipRejected(Reason.NET_ERROR, "its certificate does not fit its name") from error
    except (http.client.HTTPException, ssl.SSLError, ConnectionError) as error:
        raise Passing(Reason.NET_ERROR, f"the connection broke ({type(error).__name__})") from error
