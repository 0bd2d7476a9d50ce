"""The guarded client against a real server: what it refuses to connect to, and how every kind of trouble ends."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stmae_data.errors import Busy, ClipRejected, Reason
from stmae_data.fetch.address import is_public, parse_url, shown_url, system_resolver
from stmae_data.fetch.checks import media_only
from stmae_data.fetch.client import Client, Policy, Stopped
from stmae_data.fetch.download import Expected, Fetched, download

QUICK = Policy(
    allow_private=True, deadline_seconds=20.0, read_timeout_seconds=5.0, backoff_seconds=0.001, max_bytes=8 << 20
)


def bring(url: str, folder: Path, policy: Policy = QUICK, **options: Any) -> Fetched:
    client = Client(policy, generator=random.Random(1))
    return download(client, url, folder / "got", partial=folder / ".partial", **options)


def refusal(url: str, folder: Path, policy: Policy = QUICK, **options: Any) -> tuple[Reason, str]:
    with pytest.raises(ClipRejected) as caught:
        bring(url, folder, policy, **options)
    assert not (folder / "got").exists(), "nothing that was refused stands under its name"
    return caught.value.reason, caught.value.detail


BAD = [
    "",
    "example.org/a.mp4",
    "ftp://example.org/a",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "data:video/mp4;base64,AAAA",
    "http://",
    "http:///a",
    "http://:80/a",
    "http://user@example.org/",
    "http://user:secret@example.org/",
    "http://example.org\\@127.0.0.1/",
    "http://example.org:0/",
    "http://example.org:65536/",
    "http://example.org:x/",
    "http://example.org/a b",
    "http://example.org/a\r\nX: y",
    "http://example.org/\0",
    "http://example.org/" + "a" * 2048,
    "http://[::1/",
    "http://[fe80::1%25eth0]/",
    "http://[v1.a]/",
    "http://exa mple.org/",
    "http://-example.org/",
    "http://" + "a" * 64 + ".org/",
    "http://a..b/",
    "http://exam<ple.org/",
    "http://example.org/\ud800",
    "http://example.org/?\ud800",
    "http://\ud800.org/",
]


@pytest.mark.parametrize("url", BAD)
def test_bad_address_is_refused_before_anything_is_resolved(url: str, tmp_path: Path) -> None:
    def resolver(host: str, port: int) -> list[str]:
        raise AssertionError(f"{host} was resolved")

    with pytest.raises(ClipRejected) as caught:
        download(Client(QUICK, resolver=resolver), url, tmp_path / "got", partial=tmp_path / "p")
    assert caught.value.reason is Reason.REFUSED_URL
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
        ),
        *("192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1"),
        *(
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
        ),
        *("64:ff9b:1::1", "2001:0:7f00:1::", "fe80::1%eth0", "no address"),
    ],
)
def test_address_that_is_not_public_is_refused(address: str, tmp_path: Path) -> None:
    assert not is_public(address)
    client = Client(Policy(), resolver=lambda host, port: ["93.184.216.34", address])
    with pytest.raises(ClipRejected) as caught:
        download(client, "http://example.org/a", tmp_path / "got", partial=tmp_path / "p")
    assert caught.value.reason is Reason.REFUSED_URL, "one such address among public ones is enough"


def test_public_addresses_are_public() -> None:
    for address in (
        "93.184.216.34",
        "8.8.8.8",
        "2606:2800:220:1:248:1893:25c8:1946",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ):
        assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "[::1]", "[::ffff:7f00:1]"]
)
def test_spellings_of_this_machine_are_refused(host: str, server: Any, tmp_path: Path) -> None:
    reason, _ = refusal(f"http://{host}:{server.port}/a", tmp_path, Policy(ports=frozenset({server.port})))
    assert reason in (Reason.REFUSED_URL, Reason.NET_DNS)
    assert server.seen == []


def test_port_has_to_be_listed(tmp_path: Path) -> None:
    client = Client(Policy(), resolver=lambda host, port: ["93.184.216.34"])
    with pytest.raises(ClipRejected, match="port 8080; only 80 and 443"):
        download(client, "http://example.org:8080/", tmp_path / "got", partial=tmp_path / "p")


def test_name_is_resolved_once_and_the_checked_address_is_connected_to(server: Any, tmp_path: Path) -> None:
    """A name server that answers first this and then that gets one question only."""
    server.serve("/a")
    answers = [["127.0.0.1"], ["127.0.0.2"]]
    asked = []

    def resolver(host: str, port: int) -> list[str]:
        asked.append(host)
        return answers.pop(0)

    client = Client(QUICK, resolver=resolver)
    got = download(client, f"http://videos.example:{server.port}/a", tmp_path / "got", partial=tmp_path / "p")
    assert asked == ["videos.example"]
    assert got.final_ip == "127.0.0.1"
    assert server.seen[0][1]["Host"] == f"videos.example:{server.port}"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("file:///etc/passwd", Reason.REFUSED_URL),
        ("ftp://127.0.0.1/a", Reason.REFUSED_URL),
        ("http://user:secret@127.0.0.1/a", Reason.REFUSED_URL),
        ("", Reason.REFUSED_URL),
        ("http://[::1", Reason.REFUSED_URL),
    ],
)
def test_redirect_to_another_scheme_is_refused(location: str, reason: Reason, server: Any, tmp_path: Path) -> None:
    found, detail = refusal(server.redirect("/r", location), tmp_path)
    assert found is reason and "secret" not in detail


class Outside(Client):
    """A client for whom the loopback server stands on the open internet, at 93.184.216.34 port 80."""

    def _connect(self, address: Any, found: list[str], clock: Any) -> tuple[socket.socket, str]:
        assert found == ["93.184.216.34"] and address.port == 80, "nothing else may be connected to"
        return socket.create_connection(("127.0.0.1", outside_port[0]), timeout=5.0), found[0]


outside_port = [0]


@pytest.mark.parametrize("inner", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1"])
def test_redirect_from_a_public_host_to_a_private_one_is_refused(inner: str, server: Any, tmp_path: Path) -> None:
    outside_port[0] = server.port
    server.redirect("/r", "http://inner.example/secret")
    hosts = {"outer.example": ["93.184.216.34"], "inner.example": [inner]}
    client = Outside(Policy(deadline_seconds=10.0), resolver=lambda host, port: hosts[host])
    with pytest.raises(ClipRejected) as caught:
        download(client, "http://outer.example/r", tmp_path / "got", partial=tmp_path / "p")
    assert caught.value.reason is Reason.REFUSED_URL
    assert [path for path, _ in server.seen] == ["/r"], "nothing was asked of the inner host"


def test_name_that_turns_private_between_two_hops_is_refused(server: Any, tmp_path: Path) -> None:
    outside_port[0] = server.port
    server.redirect("/r", "http://rebind.example/again")
    answers = [["93.184.216.34"], ["127.0.0.1"]]
    client = Outside(Policy(deadline_seconds=10.0), resolver=lambda host, port: answers.pop(0))
    with pytest.raises(ClipRejected) as caught:
        download(client, "http://rebind.example/r", tmp_path / "got", partial=tmp_path / "p")
    assert caught.value.reason is Reason.REFUSED_URL
    assert answers == [] and len(server.seen) == 1


def test_https_never_steps_down_to_http() -> None:
    from stmae_data.fetch.address import follow

    with pytest.raises(ClipRejected, match="from https to http"):
        follow(parse_url("https://example.org/a"), "http://example.org/b")
    assert follow(parse_url("http://example.org/a?x=1"), "/b").url == "http://example.org/b"


def test_five_redirects_are_followed_and_six_are_not(server: Any, tmp_path: Path) -> None:
    for number in range(6):
        server.redirect(f"/{number}", f"/{number + 1}", status=(301, 302, 303, 307, 308)[number % 5])
    server.serve("/6")
    assert refusal(server.url("/0"), tmp_path) == (Reason.REFUSED_URL, "more than 5 redirects")
    got = bring(server.url("/1?token=secret"), tmp_path)
    assert got.resolved_url == server.url("/6")
    assert server.redirect("/loop", "/loop") and refusal(server.url("/loop"), tmp_path / "l")[0] is Reason.REFUSED_URL


@pytest.mark.parametrize(
    ("status", "reason", "tries"),
    [
        (400, Reason.NET_4XX, 1),
        (403, Reason.NET_4XX, 1),
        (404, Reason.NET_4XX, 1),
        (410, Reason.GONE, 1),
        (429, Reason.RATE_LIMITED, 4),
        (500, Reason.NET_ERROR, 4),
        (503, Reason.NET_ERROR, 4),
        (204, Reason.NET_ERROR, 1),
        (304, Reason.NET_ERROR, 1),
    ],
)
def test_status_ends_in_its_reason_after_its_tries(
    status: int, reason: Reason, tries: int, server: Any, tmp_path: Path
) -> None:
    url = server.serve("/s", b"" if status in (204, 304) else b"no", status=status)
    assert refusal(url, tmp_path)[0] is reason
    assert server.count("/s") == tries


def test_passing_trouble_is_waited_out(server: Any, web: Any, tmp_path: Path) -> None:
    url = server.in_turn(
        "/a", web.plain(503, b"", retry_after="0"), web.plain(429, b"", retry_after="0"), web.reset, web.plain()
    )
    got = bring(url, tmp_path)
    assert (got.attempts, got.num_bytes) == (4, len(web.MP4))
    assert (tmp_path / "got").read_bytes() == web.MP4


def test_patience_has_an_end(server: Any, web: Any, tmp_path: Path) -> None:
    url = server.in_turn("/a", web.plain(429, b"", retry_after="3600"))
    assert refusal(url, tmp_path)[0] is Reason.RATE_LIMITED
    assert server.count("/a") == 1, "an hour is not waited for"


@pytest.mark.parametrize("zone", ["+" + "9" * 30, "-" + "9" * 5000, "+9999"], ids=["long", "longer", "99 hours"])
def test_retry_after_of_no_clock_is_passed_over(zone: str, server: Any, web: Any, tmp_path: Path) -> None:
    url = server.in_turn("/a", web.plain(503, b"", retry_after=f"Mon, 01 Jan 2024 00:00:00 {zone}"), web.plain())
    assert bring(url, tmp_path).attempts == 2


def test_retry_after_is_honoured(server: Any, web: Any, tmp_path: Path) -> None:
    url = server.in_turn("/a", web.plain(503, b"", retry_after="1"), web.plain())
    started = time.monotonic()
    bring(url, tmp_path)
    assert time.monotonic() - started >= 1.0


@pytest.mark.parametrize("where", ["before the header", "in the header", "in the body"])
def test_stalling_server_ends_in_timeout(where: str, server: Any, tmp_path: Path) -> None:
    def stall(handler: Any) -> None:
        if where == "in the header":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")
        elif where == "in the body":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc")
        handler.wfile.flush()
        server.release.wait(30)

    server.routes["/a"] = stall
    policy = Policy(allow_private=True, deadline_seconds=20.0, read_timeout_seconds=0.3, tries=2, backoff_seconds=0.001)
    assert refusal(server.url("/a"), tmp_path, policy)[0] is Reason.TIMEOUT
    assert server.count("/a") == 2


@pytest.mark.parametrize("where", ["header", "body", "chunk"])
def test_drip_ends_with_the_deadline(where: str, server: Any, tmp_path: Path) -> None:
    """One byte now and then never hits the read timeout; the deadline holds for the whole of it."""

    def drip(handler: Any) -> None:
        if where == "body":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        elif where == "chunk":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not server.release.wait(0.05):
            handler.wfile.write(b"1\r\na\r\n" if where == "chunk" else b"a")
            handler.wfile.flush()

    server.routes["/a"] = drip
    policy = Policy(allow_private=True, deadline_seconds=1.0, read_timeout_seconds=5.0)
    started = time.monotonic()
    assert refusal(server.url("/a"), tmp_path, policy) == (Reason.TIMEOUT, "the deadline is over")
    assert time.monotonic() - started > 0.9


@pytest.mark.parametrize("chunked", [False, True])
def test_body_stops_at_the_cap(chunked: bool, server: Any, tmp_path: Path) -> None:
    sent = []

    def pour(handler: Any) -> None:
        head = b"Transfer-Encoding: chunked" if chunked else b"Connection: close"
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n")
        piece = bytes(1 << 16)
        while not server.release.is_set():
            handler.wfile.write((b"10000\r\n" + piece + b"\r\n") if chunked else piece)
            sent.append(len(piece))

    server.routes["/a"] = pour
    policy = Policy(allow_private=True, max_bytes=1 << 20, deadline_seconds=20.0)
    assert refusal(server.url("/a"), tmp_path, policy)[0] is Reason.TOO_LARGE
    assert list((tmp_path / ".partial").iterdir()) == []


def test_announced_length_over_the_cap_is_refused_at_once(server: Any, tmp_path: Path) -> None:
    url = server.serve("/a", b"x", length=1 << 40)
    reason, detail = refusal(url, tmp_path)
    assert (reason, server.count("/a")) == (Reason.TOO_LARGE, 1) and str(1 << 40) in detail


def test_short_body_is_never_taken_for_whole(server: Any, web: Any, tmp_path: Path) -> None:
    url = server.serve("/a", web.MP4, length=len(web.MP4) + 100)
    assert refusal(url, tmp_path) == (Reason.NET_ERROR, "the body ended 100 bytes before its length")
    assert server.count("/a") == 4


def test_chunked_body_without_its_end_is_never_taken_for_whole(server: Any, tmp_path: Path) -> None:
    def cut(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")

    server.routes["/a"] = cut
    assert refusal(server.url("/a"), tmp_path)[0] is Reason.NET_ERROR


def test_chunked_body_arrives(server: Any, tmp_path: Path) -> None:
    def whole(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n")

    server.routes["/a"] = whole
    bring(server.url("/a"), tmp_path)
    assert (tmp_path / "got").read_bytes() == b"helloyou"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nContent-Length: 9\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 5x\r\n",
        pytest.param(b"Content-Length: " + b"9" * 5000 + b"\r\n", id="thousands of digits"),
        b"Content-Encoding: gzip\r\nContent-Length: 5\r\n",
    ],
)
def test_headers_that_lie_are_refused(head: bytes, server: Any, tmp_path: Path) -> None:
    def lie(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + head + b"\r\nhello")

    server.routes["/a"] = lie
    assert refusal(server.url("/a"), tmp_path)[0] is Reason.NET_ERROR


def test_nonsense_in_place_of_http_is_a_net_error(server: Any, tmp_path: Path) -> None:
    server.routes["/a"] = lambda handler: handler.wfile.write(b"\x16\x03\x01 not http\r\n\r\n")
    assert refusal(server.url("/a"), tmp_path)[0] is Reason.NET_ERROR
    free = socket.socket()
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    assert refusal(f"http://127.0.0.1:{port}/a", tmp_path)[0] is Reason.NET_ERROR
    assert refusal(f"https://127.0.0.1:{server.port}/a", tmp_path)[0] is Reason.NET_ERROR


def test_name_that_does_not_resolve_is_net_dns(tmp_path: Path) -> None:
    def resolver(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    with pytest.raises(ClipRejected) as caught:
        download(Client(QUICK, resolver=resolver), "http://no.example/", tmp_path / "got", partial=tmp_path / "p")
    assert caught.value.reason is Reason.NET_DNS


def test_system_resolver_knows_numbers() -> None:
    assert system_resolver("127.0.0.1", 80) == ["127.0.0.1"]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for videos.example and its key, made anew; skipped where there is no openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl program to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=videos.example", "-addext", "subjectAltName=DNS:videos.example"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(made)], check=True, capture_output=True)
    return made, key


@pytest.mark.parametrize("host", ["videos.example", "other.example"])
def test_certificate_is_checked_against_the_name(
    host: str, certificate: tuple[Path, Path], tmp_path: Path, web: Any
) -> None:
    """The connection goes to the checked address; SNI and certificate are about the name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    names: list[str | None] = []
    context.sni_callback = lambda sock, name, _: names.append(name)
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(4096)
            secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    thread = threading.Thread(target=serve)
    thread.start()
    client = Client(QUICK, resolver=lambda name, port: ["127.0.0.1"])
    client._tls = ssl.create_default_context(cafile=str(certificate[0]))
    url = f"https://{host}:{listening.getsockname()[1]}/a"
    try:
        if host == "videos.example":
            download(client, url, tmp_path / "got", partial=tmp_path / "p")
            assert (tmp_path / "got").read_bytes() == b"hello"
        else:
            with pytest.raises(ClipRejected, match="its certificate does not fit its name"):
                download(client, url, tmp_path / "got", partial=tmp_path / "p")
    finally:
        thread.join(10)
        listening.close()
    assert names == [host]


def test_nothing_of_the_environment_is_used(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hidden\n")
    monkeypatch.setenv("NETRC", str(netrc))
    bring(server.serve("/a"), tmp_path)
    headers = server.seen[0][1]
    assert headers.keys() == {"Host", "User-Agent", "Accept", "Accept-Encoding", "Connection"}
    assert headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("value", "is_out"),
    [
        ("noai", True),
        ("noindex, NoAI", True),
        ("noimageai", True),
        ("stmae: noai", True),
        ("otherbot: noai", False),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST, noai", True),
        ("noindex", False),
        ("all", False),
    ],
)
def test_opting_out_is_honoured(value: str, is_out: bool, server: Any, tmp_path: Path) -> None:
    url = server.serve("/a", headers={"X-Robots-Tag": value})
    if is_out:
        assert refusal(url, tmp_path)[0] is Reason.OPTED_OUT
    else:
        bring(url, tmp_path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", Reason.EMPTY),
        (b"\n <!DOCTYPE html><html>not found</html>", Reason.NOT_MEDIA),
        (b"#EXTM3U\nhttp://127.0.0.1/secret.ts\n", Reason.UNSAFE_PLAYLIST),
        (b"ID3" + bytes(100), Reason.NO_VIDEO),
        (b"tiny", Reason.NOT_MEDIA),
    ],
)
def test_what_is_surely_no_video_is_not_kept(body: bytes, reason: Reason, server: Any, tmp_path: Path) -> None:
    assert refusal(server.serve("/a", body), tmp_path, sniff=media_only)[0] is reason
    assert list((tmp_path / ".partial").iterdir()) == []


def test_page_is_noticed_before_it_is_fetched_to_the_end(server: Any, tmp_path: Path) -> None:
    page = b"<html>" + b"x" * (4 << 20)
    assert refusal(server.serve("/a", page), tmp_path, sniff=media_only)[0] is Reason.NOT_MEDIA


def test_expected_digest_and_size_are_checked(server: Any, web: Any, tmp_path: Path) -> None:
    import hashlib

    url = server.serve("/a")
    sha256, md5 = hashlib.sha256(web.MP4).hexdigest(), hashlib.md5(web.MP4).hexdigest()
    good = Expected(sha256=frozenset({"0" * 64, sha256}), md5=md5, num_bytes=len(web.MP4))
    for bad in (Expected(sha256=frozenset({"0" * 64})), Expected(md5="0" * 32), Expected(num_bytes=3)):
        assert refusal(url, tmp_path, expected=bad)[0] is Reason.HASH_MISMATCH
        assert list((tmp_path / ".partial").iterdir()) == []
    assert bring(url, tmp_path, expected=good).sha256 == sha256


BIG = bytes(range(251)) * 20_000


def test_what_came_is_gone_on_with(server: Any, tmp_path: Path) -> None:
    url = server.ranges("/a", [(BIG, '"v1"')], cut=2_000_000)
    got = bring(url, tmp_path)
    assert (tmp_path / "got").read_bytes() == BIG and got.attempts == 2
    again = server.seen[1][1]
    assert (again["Range"], again["If-Range"]) == ("bytes=2000000-", '"v1"')
    assert list((tmp_path / ".partial").iterdir()) == []


def test_a_later_run_goes_on_where_the_first_stopped(server: Any, tmp_path: Path) -> None:
    url = server.ranges("/a", [(BIG, '"v1"')], cut=2_000_000)
    once = Policy(allow_private=True, tries=1, deadline_seconds=20.0)
    assert refusal(url, tmp_path, once)[0] is Reason.NET_ERROR
    assert (tmp_path / ".partial").exists()
    bring(url, tmp_path, once)
    assert (tmp_path / "got").read_bytes() == BIG
    assert server.seen[1][1]["Range"] == "bytes=2000000-"


def test_other_version_starts_over(server: Any, tmp_path: Path) -> None:
    """The ETag changes between the parts: nothing of the old version may stand in the file."""
    other = bytes(reversed(BIG))
    url = server.ranges("/a", [(BIG, '"v1"'), (other, '"v2"')], cut=2_000_000)
    bring(url, tmp_path)
    assert (tmp_path / "got").read_bytes() == other


@pytest.mark.parametrize(
    ("etag", "content_range"),
    [
        ('"v2"', "bytes 2000000-{last}/{size}"),
        ('"v1"', "bytes 0-{last}/{size}"),
        ('"v1"', "bytes 2000000-{last}/9"),
        ('"v1"', "x"),
    ],
)
def test_rest_that_does_not_fit_starts_over(
    etag: str, content_range: str, server: Any, web: Any, tmp_path: Path
) -> None:
    server.ranges("/one", [(BIG, '"v1"')], cut=2_000_000)

    def wrong(handler: Any) -> None:
        handler.send_response(206)
        handler.send_header("ETag", etag)
        handler.send_header("Content-Range", content_range.format(last=len(BIG) - 1, size=len(BIG)))
        handler.send_header("Content-Length", str(len(BIG) - 2_000_000))
        handler.end_headers()
        handler.wfile.write(BIG[2_000_000:])

    url = server.in_turn("/a", server.routes["/one"], wrong, web.plain(200, BIG))
    bring(url, tmp_path)
    assert (tmp_path / "got").read_bytes() == BIG
    assert "Range" in server.seen[1][1] and "Range" not in server.seen[2][1]


def test_weak_etag_is_not_gone_on_with(server: Any, tmp_path: Path) -> None:
    url = server.ranges("/a", [(BIG, 'W/"v1"')], cut=2_000_000)
    bring(url, tmp_path)
    assert "Range" not in server.seen[1][1] and (tmp_path / "got").read_bytes() == BIG


def test_all_had_come_before_the_kill(server: Any, tmp_path: Path) -> None:
    """Killed between the last byte and the rename: the server has no rest, and that is fine."""
    url = server.ranges("/a", [(BIG, '"v1"')], cut=2_000_000)
    refusal(url, tmp_path, Policy(allow_private=True, tries=1, deadline_seconds=20.0))
    (part,) = (tmp_path / ".partial").glob("*.part")
    part.write_bytes(BIG)
    bring(url, tmp_path)
    assert (tmp_path / "got").read_bytes() == BIG and len(server.seen) == 2


def test_at_most_two_at_a_host(server: Any, tmp_path: Path) -> None:
    gate = threading.Barrier(2)

    def meet(handler: Any) -> None:
        gate.wait(10)
        handler.send_response(200)
        handler.send_header("Content-Length", "5")
        handler.end_headers()
        handler.wfile.write(b"hello")

    client = Client(QUICK)
    threads = []
    for number in range(6):
        server.routes[f"/{number}"] = meet
        arguments = (client, server.url(f"/{number}"), tmp_path / f"{number}")
        threads.append(threading.Thread(target=download, args=arguments, kwargs={"partial": tmp_path / "p"}))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.most_open == 2
    assert all((tmp_path / str(number)).read_bytes() == b"hello" for number in range(6))


def test_one_address_is_fetched_by_one_process_at_a_time(server: Any, tmp_path: Path) -> None:
    entered = threading.Event()

    def hold(handler: Any) -> None:
        entered.set()
        server.release.wait(30)

    server.routes["/a"] = hold
    client = Client(QUICK)
    ended: list[BaseException] = []

    def first() -> None:
        try:
            download(client, server.url("/a"), tmp_path / "got", partial=tmp_path / "p")
        except Stopped as stopped:
            ended.append(stopped)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(10)
    with pytest.raises(Busy, match="is being fetched by another process"):
        download(Client(QUICK), server.url("/a"), tmp_path / "got", partial=tmp_path / "p")
    client.stop.set()
    thread.join(10)
    assert len(ended) == 1, "a wish to stop is heard while the server stalls"


def test_addresses_for_people_hold_no_secrets() -> None:
    assert (
        shown_url("https://me:secret@example.org:8443/a.mp4?token=secret#secret") == "https://example.org:8443/a.mp4?…"
    )
    assert "secret" not in shown_url("secret://x")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"https?://[^\s]{0,40}", fullmatch=True))
def test_any_text_is_an_address_or_a_typed_refusal(text: str) -> None:
    try:
        address = parse_url(text)
    except ClipRejected as rejected:
        assert rejected.reason is Reason.REFUSED_URL
        return
    assert address.target.isascii() and not set("\r\n \t") & set(address.target + address.authority)
    assert parse_url(address.url) == address
