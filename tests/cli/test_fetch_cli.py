"""`stmae-data fetch` as a user meets it: exit codes, JSON, warnings, signals, and no secret in anything it says or writes."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stmae_cli.data import app

RUNNER = CliRunner()
MP4 = b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 8


def run(*arguments: object) -> Any:
    return RUNNER.invoke(app, [str(each) for each in arguments])


@pytest.fixture
def base() -> Iterator[str]:
    """A server on the loopback: *.mp4 is a video, /wait never answers until the end, all else is missing."""
    release, asked = threading.Event(), threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/wait":
                asked.set()
                release.wait(60)
                return
            body = MP4 if path.endswith(".mp4") else b""
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = asked  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        release.set()
        server.shutdown()
        server.server_close()
        thread.join()


def test_words_json_and_exit_code_agree(base: str, workspace: Path) -> None:
    source = workspace / "list.csv"
    source.write_text(f"url\n{base}/a.mp4\n{base}/b.mp4\n{base}/none\n")
    ended = run("fetch", source, "--allow-private", "-w", workspace, "--json")
    assert ended.exit_code == 0, ended.output
    shown = json.loads(ended.stdout)
    assert shown.keys() == {
        *("name", "folder", "planned", "fetched", "failed", "dropped", "pending"),
        *("new", "reasons", "bytes", "seconds", "stopped"),
    }
    assert (shown["planned"], shown["fetched"], shown["reasons"]) == (3, 2, {"net_4xx": 1})
    assert shown["bytes"] == 2 * len(MP4)
    assert "Warning: --allow-private" in ended.stderr
    assert json.loads((workspace / "raw" / "list" / "fetch.json").read_text())["allow_private"] is True
    strict = run("fetch", source, "--allow-private", "-w", workspace, "--strict")
    assert strict.exit_code == 3
    assert strict.stdout.rstrip().splitlines()[-1] == f"2 of 3 fetched, in {workspace / 'raw' / 'list'}"
    journal = [json.loads(line) for line in (workspace / "journal.jsonl").read_text().splitlines()]
    assert journal[0]["command"] == "stmae-data fetch" and "allow_private=True" in journal[0]["argv"]


def test_private_address_is_refused_unless_allowed(base: str, workspace: Path) -> None:
    source = workspace / "list.txt"
    source.write_text(f"{base}/a.mp4\n")
    ended = run("fetch", source, "-w", workspace, "--json")
    assert ended.exit_code == 3 and json.loads(ended.stdout)["reasons"] == {"refused_url": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["k4000"], 1, "did you mean 'k400'?"),
        (["none.csv"], 1, "There is no list none.csv"),
        (["ssv2"], 1, "qualcomm.com"),
        (["in1k"], 1, "image-net.org"),
        (["k700"], 1, "stmae-data fetch k700-2020"),
        (["web"], 1, "names nothing to fetch"),
        (["k400", "--job", "3/2"], 2, "is not a job"),
        (["k400", "--limit", "0"], 2, "--limit is 0, wanted more than 0"),
        (["k400", "--split", "vall"], 1, "no split 'vall'"),
        (["k400", "--classes", "zumba"], 1, "are not named after classes"),
        (["k400", "--retry-failed", "net_404"], 2, "nothing to retry under"),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    arguments: list[str], code: int, sentence: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    ended = run("fetch", *arguments, "-w", workspace)
    assert ended.exit_code == code, ended.output
    assert sentence in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1 and "Traceback" not in ended.output


def test_no_token_is_told_or_kept(base: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens planted in addresses, columns, the mirror, the environment and cookies are found nowhere."""
    monkeypatch.setenv("SOME_TOKEN", "secret-environment")
    cookies = workspace.parent / "cookies.txt"
    cookies.write_text("secret-cookie")
    source = workspace.parent / "list.csv"
    lines = [
        f"{base}/a.mp4?token=secret-query,https://example.org/t.jpg?s=secret-column",
        f"{base}/none?token=secret-query,",
        "http://secret-user:secret-password@example.org/a.mp4,",
        "http://example.org:99999/?secret-query,",
    ]
    source.write_text("url,thumbnail\n" + "\n".join(lines) + "\n")
    outputs = [
        run("fetch", source, "--allow-private", "-w", workspace, "--cookies", cookies).output,
        run("fetch", source, "--allow-private", "-w", workspace, "--json").output,
        run("fetch", "k400", "--allow-private", "-w", workspace, "--base-url", f"{base}/?token=secret-mirror").output,
    ]
    written = [path.read_bytes().decode("latin-1") for path in workspace.rglob("*") if path.is_file()]
    assert len(written) >= 4
    for text in [*outputs, *written]:
        assert "secret" not in text
    from stmae_data import files

    table = files.read_table(workspace / "raw" / "list" / "fetched.parquet")
    assert len(table) == 4 and "secret" not in str(table)


def test_wall_ends_with_try_again(workspace: Path) -> None:
    program = workspace.parent / "tool"
    program.write_text('#!/bin/sh\necho "ERROR: Sign in to confirm you\'re not a bot" >&2\nexit 1\n')
    program.chmod(0o755)
    source = workspace / "ids.txt"
    source.write_text("abcdefghij1\nabcdefghij2\nabcdefghij3\n")
    ended = run("fetch", source, "--yt-dlp", program, "-w", workspace)
    assert ended.exit_code == 75, ended.output
    assert "Stopped at bot_wall" in ended.stderr and "2 ids were not tried" in ended.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ends_a_stalled_fetch_soon(number: int, code: int, base: str, workspace: Path) -> None:
    source = workspace / "list.txt"
    source.write_text(f"{base}/a.mp4\n{base}/wait\n")
    command = [sys.executable, "-m", "stmae_cli.data", "fetch", str(source), "--allow-private", "-w", str(workspace)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        log = workspace / "raw" / "list" / "fetched.jsonl"
        waiting = threading.Event()
        while not (log.exists() and log.read_bytes().endswith(b"\n")):
            assert process.poll() is None
            waiting.wait(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, errors
    assert "Traceback" not in errors and "run the same command again" in errors
    assert (workspace / "raw" / "list" / "fetched.parquet").exists()


@pytest.mark.battery
def test_killed_at_any_moment_the_same_command_ends_the_same(base: str, workspace: Path) -> None:
    """SIGKILL at 40 random moments, then to the end: every row fetched once, nothing half-written, no temp left."""
    import random
    import time

    from stmae_data import files

    generator = random.Random(7)
    source = workspace / "list.txt"
    source.write_text("\n".join(f"{base}/{number}.mp4" for number in range(400)))
    command = [sys.executable, "-m", "stmae_cli.data", "fetch", str(source), "--allow-private", "-w", str(workspace)]
    folder = workspace / "raw" / "list"
    for _ in range(40):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(generator.uniform(0.2, 1.2))
        process.kill()
        process.wait()
        if folder.is_dir():
            for path in (folder / "files").glob("*"):
                assert path.read_bytes() == MP4, "a file under its name is whole"
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    rows = files.read_table(folder / "fetched.parquet")
    assert len(rows) == 400 and {row["status"] for row in rows} == {"fetched"}
    assert len(list((folder / "files").iterdir())) == 400
    left = [
        path.name for path in folder.rglob("*") if path.name.startswith(".tmp-") or path.suffix in (".part", ".jsonl")
    ]
    assert left == []
