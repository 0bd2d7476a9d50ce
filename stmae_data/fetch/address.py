"""Which addresses may be connected to: a URL taken apart and checked, its name resolved once, every answer public or refused.

The checked address is the one that is connected to. Checking a name and letting a library resolve it again is how a name server leads
a program to machines that only it can reach.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from stmae_data.errors import ClipRejected, Reason
from stmae_data.sources.sidecar import safe_url

__all__ = [
    "Address",
    "Resolver",
    "checked_addresses",
    "follow",
    "is_public",
    "parse_url",
    "shown_url",
    "system_resolver",
]

Resolver = Callable[[str, int], Collection[str]]
"""(host, port) -> numeric addresses; raises OSError (socket.gaierror) when there are none."""

_MAX_URL = 2048
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")


@dataclass(frozen=True, slots=True)
class Address:
    """A checked URL: where to connect, and what to ask for there."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query as they stand in the request line."""

    @property
    def url(self) -> str:
        """The whole URL, its query included: not for logs or tables."""
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def authority(self) -> str:
        """The Host header: name, and the port where it is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def shown_url(text: str) -> str:
    """A URL for people: without user, password, query and fragment; `?…` tells that there was a query."""
    shown = safe_url(text)
    if shown is None:
        return "(not an http(s) address)"
    return shown + ("?…" if "?" in text else "")


def parse_url(text: str) -> Address:
    """Take a URL apart and check its form; nothing is resolved yet.

    Raises:
        ClipRejected: `refused_url` for another scheme than http(s), a user or password, more than 2,048 signs, control signs,
            spaces or signs that are no text, or a host that is none. The detail never holds the URL.
    """
    if len(text) > _MAX_URL:
        raise _refused(f"longer than {_MAX_URL} signs")
    if any(ord(each) < 33 or ord(each) == 127 for each in text) or "\\" in text:
        raise _refused("control signs, spaces or backslashes")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused("no well-formed address") from error
    if parts.scheme not in _PORTS:
        raise _refused("the scheme is not http or https")
    if parts.username is not None or parts.password is not None:
        raise _refused("a user or password in it")
    if "[" in parts.netloc and ":" not in (host or ""):
        _no_host()
    if not host or port == 0:
        raise _refused("no host or port")
    try:
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    except UnicodeError as error:  # JSON may hold half a surrogate pair
        raise _refused("signs that are no text") from error
    return Address(parts.scheme, _host(host), port or _PORTS[parts.scheme], target)


def _host(host: str) -> str:
    if ":" in host:
        try:
            # A zone (`fe80::1%eth0`) never belongs to a public address.
            return str(ipaddress.IPv6Address(host.partition("%")[0])) if "%" not in host else _no_host()
        except ValueError:
            return _no_host()
    try:
        name = host.encode("idna").decode("ascii").casefold()
    except UnicodeError:
        return _no_host()
    return name if _HOST.fullmatch(name) and len(name) <= 253 else _no_host()


def _no_host() -> str:
    raise _refused("the host is neither a name nor an address")


def follow(address: Address, location: str) -> Address:
    """Where a redirect leads, checked like any URL.

    Raises:
        ClipRejected: `refused_url`, as `parse_url`, and for a step from https down to http.
    """
    try:
        there = parse_url(urljoin(address.url, location.strip()))
    except ValueError as error:
        raise _refused("a redirect to no well-formed address") from error
    if address.scheme == "https" and there.scheme == "http":
        raise _refused("a redirect from https to http")
    return there


def checked_addresses(
    address: Address,
    resolver: Resolver,
    *,
    ports: Collection[int] = (),
    allow_private: bool = False,
) -> list[str]:
    """Resolve a host once and check every answer.

    Args:
        address: the checked URL.
        resolver: asked once.
        ports: ports allowed beside 80 and 443.
        allow_private: let addresses through that are not public, on any port; for tests and intranets.

    Returns:
        Numeric addresses that may be connected to, in the resolver's order.

    Raises:
        ClipRejected: `net_dns` when the name has no address, `refused_url` when one of them is not public, or for another port.
    """
    try:
        found = list(dict.fromkeys(resolver(address.host, address.port)))
    except (OSError, UnicodeError) as error:
        raise ClipRejected(Reason.NET_DNS, "the name cannot be resolved") from error
    if not found:
        raise ClipRejected(Reason.NET_DNS, "the name has no address")
    are_public = all(is_public(each) for each in found)
    if not are_public and not allow_private:
        raise _refused("the name leads to an address that is not public")
    if address.port not in (80, 443, *ports) and (are_public or not allow_private):
        raise _refused(f"port {address.port}; only 80 and 443 are open unless listed")
    return found


def is_public(text: str) -> bool:
    """Whether a numeric address is one of the open internet; addresses inside others (v4-mapped, 6to4, NAT64) are looked at too."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.teredo is not None or ip in _NAT64_LOCAL or ip.is_site_local or ip.scope_id is not None:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback)


def system_resolver(host: str, port: int, *, timeout_seconds: float = 20.0) -> list[str]:
    """Ask the system, in a thread of its own: the call itself knows no deadline."""
    answer: list[str] = []
    problem: list[OSError | UnicodeError] = []

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            answer.extend(str(each[4][0]) for each in found)
        except (OSError, UnicodeError) as error:  # told to the caller below
            problem.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout_seconds)
    if problem:
        raise problem[0]
    if asking.is_alive():
        raise TimeoutError("the name server does not answer")
    return answer


def _refused(why: str) -> ClipRejected:
    return ClipRejected(Reason.REFUSED_URL, why)
