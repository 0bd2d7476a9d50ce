"""A real HTTP server on the loopback that misbehaves as told, one behaviour for each path; every request is on record."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MP4 = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40
"""Bytes that look like a video to whoever sniffs the start."""


@dataclass
class Loopback:
    """The server: `base` is its address, `seen` the (path, headers) of every request."""

    port: int
    routes: dict[str, Callable[[Any], None]] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)
    """Set at the end: whatever stalls lets go."""
    num_open: int = 0
    most_open: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"{self.base}{path}"

    def count(self, path: str) -> int:
        return sum(seen == path for seen, _ in self.seen)

    def serve(
        self,
        path: str,
        body: bytes = MP4,
        *,
        status: int = 200,
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> str:
        """A plain answer; `length` is what the header says, whatever the body is."""

        def answer(handler: Any) -> None:
            handler.send_response(status)
            for name, value in (headers or {}).items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(body) if length is None else length))
            handler.end_headers()
            handler.wfile.write(body)

        self.routes[path] = answer
        return self.url(path)

    def in_turn(self, path: str, *answers: Callable[[Any], None]) -> str:
        """One answer after the other; the last one stays."""
        left = list(answers)

        def answer(handler: Any) -> None:
            with self.lock:
                now = left.pop(0) if len(left) > 1 else left[0]
            now(handler)

        self.routes[path] = answer
        return self.url(path)

    def redirect(self, path: str, location: str, *, status: int = 302) -> str:
        return self.serve(path, b"", status=status, headers={"Location": location})

    def ranges(self, path: str, versions: list[tuple[bytes, str]], *, cut: int | None) -> str:
        """A file with ETag that honours Range and If-Range. Each request meets the next version (the last one stays); the first
        answer breaks off after `cut` bytes."""
        left = list(versions)
        is_first = [True]

        def answer(handler: Any) -> None:
            body, etag = left.pop(0) if len(left) > 1 else left[0]
            match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
            start = int(match[1]) if match and handler.headers.get("If-Range") == etag else 0
            if match and start >= len(body):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(body)}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206 if start else 200)
            if start:
                handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            handler.send_header("ETag", etag)
            handler.send_header("Content-Length", str(len(body) - start))
            handler.end_headers()
            end = cut if cut is not None and is_first[0] else len(body)
            is_first[0] = False
            handler.wfile.write(body[start:end])

        self.routes[path] = answer
        return self.url(path)


def plain(status: int = 200, body: bytes = MP4, **headers: str) -> Callable[[Any], None]:
    """An answer for `in_turn`; `retry_after="1"` becomes the header Retry-After."""

    def answer(handler: Any) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-").title(), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def reset(handler: Any) -> None:
    """Break the connection without a word."""
    handler.connection.close()


@contextlib.contextmanager
def loopback() -> Iterator[Loopback]:
    """The server, running; gone at the end with all its threads."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with told.lock:
                told.seen.append((self.path, dict(self.headers.items())))
                told.num_open += 1
                told.most_open = max(told.most_open, told.num_open)
            self.close_connection = True
            try:
                route = told.routes.get(self.path.partition("?")[0])
                (route or plain(404, b"nothing here"))(self)
                self.wfile.flush()
            except (OSError, ValueError):
                pass  # the client went away, as some tests want
            finally:
                with told.lock:
                    told.num_open -= 1

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            return

    server = Server(("127.0.0.1", 0), Handler)
    told = Loopback(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield told
    finally:
        told.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
