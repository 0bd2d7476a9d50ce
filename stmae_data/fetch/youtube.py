"""YouTube ids, brought by yt-dlp in a confined child: fixed options, nothing of the user's configuration, a reason for every end.

The pace is a budget per hour, and the line stops at the wall: once YouTube asks for a sign-in or says that there were too many requests,
every further request makes it worse, so what is left stays unfetched for another day.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stmae_data import files
from stmae_data.errors import ClipRejected, Reason, SourceError
from stmae_data.fetch.checks import media_only
from stmae_data.fetch.client import Stopped
from stmae_data.fetch.lists import VIDEO_ID
from stmae_data.limits import Finished, Limits, run
from stmae_data.sources.sidecar import MAX_SIDECAR_BYTES

__all__ = ["INFO_COLUMNS", "WALLS", "YouTube", "reason_of"]

WALLS = frozenset({Reason.BOT_WALL, Reason.RATE_LIMITED})
"""Reasons that stop the line."""
INFO_COLUMNS = (
    *("title", "description", "uploader_id", "channel_id", "upload_date", "duration", "age_limit", "availability"),
    *("language", "view_count", "like_count", "license", "tags"),
)
"""What is kept of yt-dlp's metadata; addresses, headers and cookies in it are not."""
# One file without a merge, so that no second program runs; sound is of no use here. 720 lines are more than any recipe reads.
_FORMAT = "bv[ext=mp4][protocol=https][height<=720]/b[ext=mp4][protocol=https][height<=720]/bv[ext=mp4][protocol=https]/b[ext=mp4][protocol=https]"
# Python and a JavaScript runtime reserve far more than they use, so this bounds runaways only; memory in use is bounded by the machine.
_ADDRESS_SPACE = 64 << 30
_WORDS: tuple[tuple[Reason, str], ...] = (
    (Reason.BOT_WALL, r"confirm you.{1,3}re not a bot|captcha|unusual traffic"),
    (Reason.RATE_LIMITED, r"rate.?limited|HTTP Error 429|Too Many Requests|content isn.t available, try again later"),
    (
        Reason.PRIVATE,
        r"private video|members.only|join this channel|granted access|confirm your age|age.restricted|requires payment|only available for registered|login required",
    ),
    (
        Reason.GEO,
        r"(not|n.t) (made this video )?available (in|from) your (country|location|region)|blocked it in your country|geo.?restrict",
    ),
    (
        Reason.NO_VIDEO,
        r"requested format is not available|no video formats|live event|premieres in|drm protected|not currently live",
    ),
    (
        Reason.GONE,
        r"video unavailable|has been removed|no longer available|account .{0,80}terminated|does(n.t| not) exist|been deleted|not available|incomplete youtube id|removed (by|for)",
    ),
    (Reason.NET_DNS, r"failed to resolve|name or service not known|getaddrinfo|name resolution"),
    (Reason.TIMEOUT, r"timed out"),
    (Reason.NET_4XX, r"HTTP Error 4\d\d"),
)


def reason_of(text: str) -> Reason:
    """What the complaints of yt-dlp mean; `net_error`, which is tried again, for what nobody has seen yet."""
    for reason, pattern in _WORDS:
        if re.search(pattern, text, re.IGNORECASE):
            return reason
    return Reason.NET_ERROR


@dataclass(slots=True)
class YouTube:
    """Fetches videos by id, one at a time.

    Raises:
        SourceError: made without yt-dlp, or with a file of cookies that is not there.
    """

    program: tuple[str, ...] = ()
    """The yt-dlp program; empty for the installed module."""
    per_hour: float = 60.0
    """At most this many videos are asked for in an hour."""
    max_bytes: int = 1 << 30
    deadline_seconds: float = 900.0
    cookies: Path | None = None
    """A Netscape file of cookies, given by its path and never found by itself; a copy of it is used and removed."""
    stop: threading.Event = field(default_factory=threading.Event)
    now: Callable[[], float] = time.monotonic
    wait: Callable[[float], bool] | None = None
    generator: random.Random = field(default_factory=random.Random)
    _next: float | None = None

    def __post_init__(self) -> None:
        if not self.program:
            if importlib.util.find_spec("yt_dlp") is None:
                raise SourceError(
                    "YouTube ids are fetched by yt-dlp, which is not installed: pip install 'stmae[youtube]'"
                )
            # -I: nothing of the user's own Python settings.
            self.program = (sys.executable, "-I", "-m", "yt_dlp")
        if self.cookies is not None and not self.cookies.is_file():
            raise SourceError(
                f"There is no file of cookies {self.cookies}; give its path with --cookies, or leave it out."
            )

    def fetch(self, video_id: str, target: Path, *, partial: Path) -> tuple[dict[str, Any], str]:
        """Bring one video.

        Args:
            video_id: eleven signs; the address is made from it here.
            target: where the file appears, whole.
            partial: a folder on the same file system for the child's own folder.

        Returns:
            (the columns of `INFO_COLUMNS` that are known, sha256 of the file).

        Raises:
            ClipRejected: the reason; one of `WALLS` stops the line. Stopped: while waiting for the next turn.
        """
        if not VIDEO_ID.fullmatch(video_id):
            raise ClipRejected(Reason.REFUSED_URL, "not a YouTube id")
        self._pace()
        with _own_folder(partial / f"video-{video_id}") as folder:
            ended = run(
                self._arguments(video_id, folder),
                limits=Limits(
                    cpu_seconds=self.deadline_seconds / 2,
                    address_space_bytes=_ADDRESS_SPACE,
                    file_bytes=self.max_bytes + (1 << 20),
                    open_files=256,
                    has_network=True,
                ),
                environment={"YTDLP_NO_PLUGINS": "1", "HOME": str(folder), "LC_ALL": "C.UTF-8"},
            )
            media = folder / "media.mp4"
            if ended.kind != "ok" or not media.is_file() or media.is_symlink():
                raise self._rejected(ended)
            size = media.stat().st_size
            if size > self.max_bytes:
                raise ClipRejected(Reason.TOO_LARGE, f"{size} bytes, at most {self.max_bytes} are fetched")
            with media.open("rb") as stream:
                media_only(stream.read(4096))
            info, sha256 = _info(folder / "media.info.json"), files.sha256_file(media)
            files.commit_part(media, target, point="fetch")
        return info, sha256

    def _pace(self) -> None:
        """Wait for the next turn; turns lie an hour's share apart, give or take a fifth."""
        wait = self.wait or self.stop.wait
        if self._next is not None and (left := self._next - self.now()) > 0:
            wait(left)
        if self.stop.is_set():
            raise Stopped
        self._next = self.now() + 3600.0 / self.per_hour * self.generator.uniform(0.8, 1.2)

    def _arguments(self, video_id: str, folder: Path) -> list[str]:
        arguments = [
            *self.program,
            *("--ignore-config", "--no-plugin-dirs", "--no-exec", "--no-cache-dir", "--no-remote-components"),
            *("--no-playlist", "--no-mtime", "--no-part", "--fixup", "never", "--color", "never"),
            *("--quiet", "--no-warnings", "--no-progress", "--no-cookies-from-browser"),
            *("--format", _FORMAT, "--max-filesize", str(self.max_bytes)),
            *("--retries", "3", "--fragment-retries", "3", "--extractor-retries", "1", "--socket-timeout", "30"),
            *("--write-info-json", "--clean-info-json", "--no-write-playlist-metafiles"),
            *("--paths", f"home:{folder}", "--output", "media.%(ext)s"),
        ]
        if self.cookies is not None:
            # yt-dlp writes its cookies back: it gets a copy that only we can read, and that goes with the folder.
            own = folder / "cookies.txt"
            descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(self.cookies.read_bytes())
            arguments += ["--cookies", str(own)]
        return [*arguments, "--", f"https://www.youtube.com/watch?v={video_id}"]

    def _rejected(self, ended: Finished) -> ClipRejected:
        if ended.kind == "timeout":
            return ClipRejected(Reason.TIMEOUT, "yt-dlp did not end in time")
        if ended.kind == "oom":
            return ClipRejected(Reason.OOM, "yt-dlp ran out of memory")
        if ended.kind == "crash":
            return ClipRejected(Reason.DECODER_CRASH, "yt-dlp crashed")
        if "No module named yt_dlp" in ended.errors:
            raise SourceError("YouTube ids are fetched by yt-dlp, which does not start: pip install 'stmae[youtube]'")
        if ended.kind == "ok" and not ended.errors.strip():
            # It says so on stdout alone, and ends well.
            return ClipRejected(
                Reason.TOO_LARGE, f"yt-dlp left no file; the video is larger than {self.max_bytes} bytes"
            )
        lines = [line.strip() for line in ended.errors.splitlines() if line.strip()]
        told = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no word")
        return ClipRejected(reason_of(ended.errors), _plain(told))


def _plain(text: str) -> str:
    """A complaint for a table: printable, addresses without their queries."""
    text = re.sub(r"(https?://)(?:[^\s/@?#]*@)?([^\s?#]+)[?#]\S*", r"\1\2?…", text)
    return "".join(each if each.isprintable() else " " for each in text).removeprefix("ERROR:").strip()[:200]


def _info(path: Path) -> dict[str, Any]:
    """The metadata worth keeping; none when the file is missing, too large or no JSON object."""
    try:
        if path.is_symlink() or path.stat().st_size > MAX_SIDECAR_BYTES:
            return {}
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {name: value[name] for name in INFO_COLUMNS if value.get(name) not in (None, "", [])}


@contextlib.contextmanager
def _own_folder(folder: Path) -> Iterator[Path]:
    """A folder for one child, new at the start and gone at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    with files.storage_errors(folder):
        folder.mkdir(parents=True, mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
