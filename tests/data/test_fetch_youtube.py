"""YouTube ids through a stand-in for yt-dlp: what it is told, what its ends mean, and that the line stops at the wall."""

from __future__ import annotations

import random
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stmae_data import files
from stmae_data.errors import ClipRejected, Reason, SourceError
from stmae_data.fetch import Client, FetchReport, FetchRequest, Policy, YouTube, fetch
from stmae_data.fetch.client import Stopped
from stmae_data.fetch.youtube import reason_of
from stmae_data.manifest import load_manifest
from stmae_data.sources import rows_for

STUB = """
    import json, os, pathlib, sys, time
    arguments = sys.argv[1:]
    home = pathlib.Path(arguments[arguments.index("--paths") + 1].removeprefix("home:"))
    video = arguments[-1].rpartition("=")[2]
    log = pathlib.Path({log!r})
    seen = {{"arguments": arguments, "environment": sorted(os.environ)}}
    if "--cookies" in arguments:
        jar = pathlib.Path(arguments[arguments.index("--cookies") + 1])
        seen["cookies"], seen["mode"] = jar.read_text(), oct(jar.stat().st_mode & 0o777)
        jar.write_text("changed")
    with log.open("a") as stream:
        stream.write(json.dumps(seen) + "\\n")
    told = {{
        "wall0000000": "ERROR: [youtube] wall0000000: Sign in to confirm you\\u2019re not a bot. Use --cookies",
        "private0000": "ERROR: [youtube] private0000: Private video. Sign in if you've been granted access to this video",
        "gone0000000": "ERROR: [youtube] gone0000000: Video unavailable. This video has been removed by the uploader",
        "geo00000000": "ERROR: [youtube] geo00000000: The uploader has not made this video available in your country",
        "new00000000": "ERROR: something nobody has seen at https://user:pw@x.example/a?token=secret",
    }}
    if video in told:
        print(told[video], file=sys.stderr)
        sys.exit(1)
    if video == "large000000":
        sys.exit(0)
    if video == "hang0000000":
        time.sleep(60)
    body = b"<html>no</html>" if video == "page0000000" else b"\\0\\0\\0\\x18ftypmp42" + video.encode() * 50
    (home / "media.mp4").write_bytes(body)
    info = {{"id": "evil", "title": "A #Title", "tags": ["x"], "view_count": 7, "url": "https://x/?signature=secret",
             "http_headers": {{"Cookie": "secret"}}, "license": "CC"}}
    (home / "media.info.json").write_text(json.dumps(info))
"""


@pytest.fixture
def stub(tmp_path: Path) -> tuple[str, ...]:
    """A program that behaves like yt-dlp for a dozen ids and logs what it was told."""
    program = tmp_path / "stub.py"
    program.write_text(textwrap.dedent(STUB.format(log=str(tmp_path / "calls.jsonl"))))
    return (sys.executable, "-I", str(program))


def calls(tmp_path: Path) -> list[dict[str, Any]]:
    import json

    log = tmp_path / "calls.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def bring(workspace: Path, ids: list[str], youtube: YouTube, **options: Any) -> FetchReport:
    source = workspace / "ids.csv"
    source.write_text("youtube_id,label\n" + "".join(f"{each},zumba\n" for each in ids))
    request = FetchRequest(workspace, str(source), **options)
    return fetch(request, client=Client(Policy(allow_private=True)), youtube=youtube)


def quick(stub: tuple[str, ...], **options: Any) -> YouTube:
    return YouTube(stub, per_hour=1e9, generator=random.Random(1), **options)


def book(workspace: Path) -> dict[str, dict[str, Any]]:
    rows = files.read_table(workspace / "raw" / "ids" / "fetched.parquet")
    return {row["url"].rpartition("/")[2]: row for row in rows}


def test_every_end_has_its_reason(stub: tuple[str, ...], workspace: Path) -> None:
    ids = ["good0000000", "private0000", "gone0000000", "geo00000000", "new00000000", "large000000", "page0000000"]
    report = bring(workspace, ids, quick(stub))
    ends = book(workspace)
    assert {each: ends[each]["reason"] for each in ids} == {
        "good0000000": None,
        "private0000": "private",
        "gone0000000": "gone",
        "geo00000000": "geo",
        "new00000000": "net_error",
        "large000000": "too_large",
        "page0000000": "not_media",
    }
    assert report.counts["dropped"] == 1 and report.stopped is None
    assert (
        "secret" not in str(ends)
        and "pw@" not in str(ends)
        and "https://x.example/a?…" in ends["new00000000"]["detail"]
    )
    folder = workspace / "raw" / "ids"
    assert sorted(path.name for path in (folder / "files").iterdir()) == ["good0000000.info.json", "good0000000.mp4"]
    assert "secret" not in (folder / "files" / "good0000000.info.json").read_text()
    assert not [path for path in (folder / ".partial").rglob("*") if path.is_file()]
    rows = {row.platform_id: row for row in rows_for(load_manifest("web"), roots=[folder]).rows}
    good = rows["good0000000"]
    assert (good.platform, good.problem, good.annotations[0].label_raw) == ("youtube", None, "zumba")
    assert (good.web["title"], good.web["view_count"], good.web["license"]) == ("A #Title", 7, "CC")
    assert good.web["url"] == "https://youtu.be/good0000000"
    assert rows["geo00000000"].problem is not None and rows["geo00000000"].problem[0] is Reason.GEO


def test_the_line_stops_at_the_wall(stub: tuple[str, ...], workspace: Path, tmp_path: Path) -> None:
    ids = ["good0000000", "wall0000000", *(f"later{number:06d}" for number in range(30))]
    report = bring(workspace, ids, quick(stub))
    assert report.stopped is Reason.BOT_WALL and report.exit_code(is_strict=False) == 75
    ends = book(workspace)
    assert ends["wall0000000"]["reason"] == "bot_wall"
    tried = len(calls(tmp_path))
    pending = [each for each, row in ends.items() if row["status"] == "pending"]
    assert report.counts["pending"] == len(pending) == len(ids) - tried > 0
    listing = rows_for(load_manifest("web"), roots=[workspace / "raw" / "ids"])
    problems = [row.problem[0] for row in listing.rows if row.problem]
    assert len(problems) == len(pending) + 1 and all(reason.is_retryable for reason in problems)
    # The next run takes up the wall and what is behind it, nothing else.
    bring(workspace, ids, quick(stub))
    asked = [call["arguments"][-1].rpartition("=")[2] for call in calls(tmp_path)[tried:]]
    assert set(asked) <= {"wall0000000", *pending}


def test_the_child_is_told_nothing_but_our_options(stub: tuple[str, ...], workspace: Path, tmp_path: Path) -> None:
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("jar")
    bring(workspace, ["good0000000"], quick(stub, cookies=cookies))
    (call,) = calls(tmp_path)
    arguments = call["arguments"]
    for option in ("--ignore-config", "--no-plugin-dirs", "--no-exec", "--no-cache-dir", "--no-remote-components"):
        assert option in arguments
    assert arguments[arguments.index("--output") + 1] == "media.%(ext)s" and "--max-filesize" in arguments
    assert arguments[-2:] == ["--", "https://www.youtube.com/watch?v=good0000000"]
    assert set(call["environment"]) <= {"PATH", "HOME", "LC_ALL", "YTDLP_NO_PLUGINS", "LC_CTYPE"}
    assert (call["cookies"], call["mode"], cookies.read_text()) == ("jar", "0o600", "jar"), (
        "the user's own jar is not touched"
    )
    left = [path for path in workspace.rglob("*") if path.is_file() and path.read_bytes() == b"jar"]
    assert left == [], "no copy of the cookies stays"


def test_what_a_killed_child_left_is_removed_first(stub: tuple[str, ...], workspace: Path) -> None:
    left = workspace / "raw" / "ids" / ".partial" / "youtube" / "video-good0000000" / "cookies.txt"
    left.parent.mkdir(parents=True)
    left.write_text("jar")
    bring(workspace, ["later000000"], quick(stub))
    assert not left.exists()


@pytest.mark.parametrize(
    "video_id", ["", "short", "toolong00000", "-x; rm -rf /", "../../../ab", "abc\ndefghij", "abcdefghij\n"]
)
def test_id_that_is_none_never_reaches_the_child(video_id: str, stub: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ClipRejected) as caught:
        quick(stub).fetch(video_id, tmp_path / "a.mp4", partial=tmp_path / "p")
    assert caught.value.reason is Reason.REFUSED_URL and calls(tmp_path) == []


def test_id_may_begin_with_a_dash(stub: tuple[str, ...], tmp_path: Path, trap: Callable[..., None]) -> None:
    quick(stub).fetch("-abcdefghij", tmp_path / "a.mp4", partial=tmp_path / "p")
    assert calls(tmp_path)[0]["arguments"][-1] == "https://www.youtube.com/watch?v=-abcdefghij"
    trap("Web tables and lists", "reaches the tool as an address", "a YouTube id that begins with a dash")


def test_hanging_child_is_ended(stub: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ClipRejected) as caught:
        quick(stub, deadline_seconds=1.0).fetch("hang0000000", tmp_path / "a.mp4", partial=tmp_path / "p")
    assert caught.value.reason is Reason.TIMEOUT and list((tmp_path / "p").iterdir()) == []


def test_pace_is_kept(stub: tuple[str, ...], tmp_path: Path) -> None:
    waits: list[float] = []
    clock = [0.0]

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        clock[0] += seconds
        return False

    youtube = YouTube(stub, per_hour=60.0, now=lambda: clock[0], wait=wait, generator=random.Random(3))
    for number in range(4):
        youtube.fetch(f"good000000{number}", tmp_path / "a.mp4", partial=tmp_path / "p")
    assert len(waits) == 3 and all(48.0 <= each <= 72.0 for each in waits), "one a minute, give or take a fifth"
    youtube.stop.set()
    with pytest.raises(Stopped):
        youtube.fetch("good0000009", tmp_path / "a.mp4", partial=tmp_path / "p")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ERROR: [youtube] x: Sign in to confirm you're not a bot. Use --cookies-from-browser", Reason.BOT_WALL),
        ("ERROR: Video unavailable. This content isn't available, try again later.", Reason.RATE_LIMITED),
        ("ERROR: The current session has been rate-limited by YouTube for up to an hour.", Reason.RATE_LIMITED),
        ("ERROR: unable to download video data: HTTP Error 429: Too Many Requests", Reason.RATE_LIMITED),
        ("ERROR: Join this channel to get access to members-only content", Reason.PRIVATE),
        ("ERROR: Sign in to confirm your age. This video may be inappropriate for some users.", Reason.PRIVATE),
        ("ERROR: This video is not available in your country", Reason.GEO),
        ("ERROR: Video unavailable. The uploader has not made this video available in your country", Reason.GEO),
        ("ERROR: Video unavailable", Reason.GONE),
        ("ERROR: This video is no longer available because the YouTube account has been terminated.", Reason.GONE),
        ("ERROR: Requested format is not available. Use --list-formats", Reason.NO_VIDEO),
        ("ERROR: Failed to resolve 'www.youtube.com' ([Errno -2] Name or service not known)", Reason.NET_DNS),
        ("ERROR: The read operation timed out", Reason.TIMEOUT),
        ("ERROR: unable to download video data: HTTP Error 403: Forbidden", Reason.NET_4XX),
        ("ERROR: unable to download webpage: HTTP Error 503", Reason.NET_ERROR),
        ("", Reason.NET_ERROR),
    ],
)
def test_words_of_the_tool_have_a_reason(text: str, reason: Reason) -> None:
    assert reason_of(text) is reason


def test_without_the_tool_the_next_step_is_said(monkeypatch: pytest.MonkeyPatch, workspace: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (workspace / "ids.txt").write_text("good0000000\n")
    with pytest.raises(SourceError, match=r"yt-dlp, which is not installed: pip install 'stmae\[youtube\]'"):
        fetch(FetchRequest(workspace, str(workspace / "ids.txt")))
    with pytest.raises(SourceError, match="There is no file of cookies"):
        YouTube(("yt-dlp",), cookies=workspace / "none")
