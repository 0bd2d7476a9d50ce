"""Whatever a file is called and holds, opening it ends in a header or a reason, and nothing beyond the file is touched."""

from __future__ import annotations

import faulthandler
import hashlib
import io
import os
import random
import socket
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stmae_data import media
from stmae_data.encode import ffmpeg_executable
from stmae_data.errors import ClipRejected, Reason
from stmae_data.limits import Finished, Limits
from stmae_data.media import Header, hash_descriptor, open_source, open_video, probe, reason_of, source_of_bytes


def ffmpeg(*arguments: str) -> None:
    subprocess.run([ffmpeg_executable(), "-nostdin", "-v", "error", "-y", *arguments], check=True)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of 128x96 at 25 fps, its index at the end."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    source = "testsrc2=size=128x96:rate=25,noise=alls=10:allf=t:all_seed=1"
    ffmpeg("-f", "lavfi", "-i", source, "-t", "2", "-c:v", "libx264", "-threads", "1", "-pix_fmt", "yuv420p", str(path))
    return path


def probe_bytes(data: bytes) -> Header:
    with source_of_bytes(data) as descriptor:
        return probe(descriptor)


def reason_for(path: Path | bytes) -> Reason:
    with pytest.raises(ClipRejected) as caught, open_source(path) as descriptor:
        probe(descriptor)
    return caught.value.reason


def test_a_header_tells_what_the_first_frame_shows(film: Path) -> None:
    with open_source(film) as descriptor:
        header = probe(descriptor)
        assert hash_descriptor(descriptor) == hashlib.sha256(film.read_bytes()).hexdigest()
    assert (header.container, header.video_codec, header.pixel_format) == ("mov", "h264", "yuv420p")
    assert (header.width_px, header.height_px, header.upright_size_px) == (128, 96, (128, 96))
    assert (header.claimed_seconds, header.claimed_frames, header.claimed_fps) == (2.0, 50, 25.0)
    assert (header.has_audio, header.is_interlaced, header.has_alpha, header.rotation_degrees) == (False,) * 3 + (0,)


def test_the_name_does_not_matter(film: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/-i \xff;$(touch PWNED).txt"
    Path(os.fsdecode(odd)).write_bytes(film.read_bytes())
    with open_source(odd) as descriptor:
        assert probe(descriptor).video_codec == "h264"
    assert not list(tmp_path.glob("PWNED*"))


TEXTS: dict[str, tuple[bytes, Reason]] = {
    "one byte": (b"x", Reason.NOT_MEDIA),
    "text": (b"hello world, this is a text\n" * 50, Reason.NOT_MEDIA),
    "html": (b"<!DOCTYPE html><html><body>404</body></html>" * 20, Reason.NOT_MEDIA),
    "xhtml": (b'<?xml version="1.0"?>\n<!DOCTYPE html>\n<html></html>', Reason.NOT_MEDIA),
    "noise": (random.Random(5).randbytes(50_000), Reason.NOT_MEDIA),
    "gif": (b"GIF89a" + bytes(200), Reason.NOT_MEDIA),
    "m3u8": (b"#EXTM3U\n#EXTINF:10,\nfilm.mp4\n", Reason.UNSAFE_PLAYLIST),
    "m3u8 behind a byte order mark": (b"\xef\xbb\xbf#EXTM3U\nfilm.mp4\n", Reason.UNSAFE_PLAYLIST),
    "ffconcat": (b"ffconcat version 1.0\nfile film.mp4\n", Reason.UNSAFE_PLAYLIST),
    "concat without its first line": (b"file 'film.mp4'\n", Reason.UNSAFE_PLAYLIST),
    "dash": (b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>', Reason.UNSAFE_PLAYLIST),
    "sdp": (b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n", Reason.UNSAFE_PLAYLIST),
    "svg": (b'<svg xmlns="x"><image href="file:///etc/passwd"/></svg>', Reason.UNSAFE_PLAYLIST),
    "xxe": (b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///x">]><a>&x;</a>', Reason.UNSAFE_PLAYLIST),
    "pls": (b"[playlist]\nFile1=http://127.0.0.1/x\n", Reason.UNSAFE_PLAYLIST),
    "url": (b"http://127.0.0.1/x.mp4\n", Reason.UNSAFE_PLAYLIST),
    "asx": (b'<asx version="3"><entry><ref href="http://127.0.0.1/"/></entry></asx>', Reason.UNSAFE_PLAYLIST),
    "sound": (b"ID3\x04" + bytes(300), Reason.NO_VIDEO),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_not_a_video_says_why(name: str, film: Path, tmp_path: Path) -> None:
    data, reason = TEXTS[name]
    (tmp_path / "film.mp4").write_bytes(film.read_bytes())  # what a playlist would point to
    path = tmp_path / "claims-to-be.mp4"
    path.write_bytes(data)
    assert reason_for(path) == reason


def test_a_zip_with_a_video_is_not_media(film: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(film, "film.mp4")
    with pytest.raises(ClipRejected, match="not_media"):
        probe_bytes(packed.getvalue())


def test_what_is_not_a_regular_file_is_never_waited_for(film: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "link.mp4").symlink_to(film)
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    with (tmp_path / "huge.mp4").open("wb") as stream:
        stream.truncate((1 << 30) + 1)
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # names of sockets must be short
        try:
            server.bind("socket.mp4")
        finally:
            os.chdir(here)
        wanted = {
            "fifo": Reason.SPECIAL_FILE,
            "socket": Reason.SPECIAL_FILE,
            "folder": Reason.SPECIAL_FILE,
            "link": Reason.SYMLINK,
            "loop": Reason.SYMLINK,
            "empty": Reason.EMPTY,
            "huge": Reason.TOO_LARGE,
            "missing": Reason.GONE,
        }
        assert {name: reason_for(tmp_path / f"{name}.mp4") for name in wanted} == wanted
    assert reason_for(Path("/dev/zero")) == Reason.SPECIAL_FILE
    assert reason_for(tmp_path / ("x" * 300)) == Reason.GONE
    assert reason_for(b"a\0b") == Reason.GONE


def test_a_file_that_changes_while_it_is_read_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "growing.mp4"
    path.write_bytes(b"one")
    with pytest.raises(ClipRejected, match="changed"), open_source(path):
        path.write_bytes(b"one and more")


def test_descriptors_are_closed_whatever_happens(film: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        reason_for(b"/dev/null")
        with pytest.raises(ClipRejected), source_of_bytes(b"no video at all") as descriptor:
            probe(descriptor)
        with open_source(film) as descriptor:
            probe(descriptor)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def at(data: bytes, mark: bytes, shift: int, new: bytes) -> bytes:
    """`data` with bytes behind the first `mark` replaced."""
    position = data.index(mark) + shift
    return data[:position] + new + data[position + len(new) :]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], Reason]] = {
    "cut before its index": (lambda data: data[: len(data) // 2], Reason.TRUNCATED),
    "samples said to be in another file": (lambda data: at(data, b"url \0\0\0\1", 7, b"\0"), Reason.UNSAFE_PLAYLIST),
    "reference movie": (lambda data: b"\0\0\0\x18moov\0\0\0\x10rmra\0\0\0\x08rmda" + data, Reason.UNSAFE_PLAYLIST),
    "four billion samples": (lambda data: at(data, b"stsz", 12, b"\xff\xff\xff\xff"), Reason.CORRUPT_HEADER),
    "no index": (lambda data: at(data, b"moov", 0, b"lost"), Reason.CORRUPT_HEADER),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_headers_say_why(name: str, film: Path) -> None:
    damage, reason = DAMAGES[name]
    with pytest.raises(ClipRejected) as caught:
        probe_bytes(damage(film.read_bytes()))
    assert caught.value.reason == reason


SYNTHETIC: dict[str, tuple[tuple[str, ...], str, Reason]] = {
    "sound alone": (("-f", "lavfi", "-i", "sine=d=1", "-c:a", "aac"), "mp4", Reason.NO_VIDEO),
    "wav": (("-f", "lavfi", "-i", "sine=d=1"), "wav", Reason.NO_VIDEO),
    "longer than 8:1": (("-f", "lavfi", "-i", "color=size=400x40:d=0.2"), "mp4", Reason.FILTERED),
    "under 32 px": (("-f", "lavfi", "-i", "color=size=24x24:d=0.2"), "mp4", Reason.FILTERED),
    "over 40 Mpx": (("-f", "lavfi", "-i", "color=size=6400x6400:rate=1:d=1", "-c:v", "mjpeg"), "avi", Reason.BOMB),
    "over 8192 px": (
        ("-f", "lavfi", "-i", "color=size=8400x1100:rate=1:d=1", "-c:v", "mjpeg"),
        "avi",
        Reason.TOO_LARGE,
    ),
    "thin by its pixels": (
        ("-f", "lavfi", "-i", "color=size=128x96:d=0.2,setsar=10", "-c:v", "ffv1"),
        "mkv",
        Reason.FILTERED,
    ),
}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_the_policy_holds(name: str, tmp_path: Path) -> None:
    arguments, extension, reason = SYNTHETIC[name]
    path = tmp_path / f"film.{extension}"
    ffmpeg(*arguments, "-threads", "1", str(path))
    assert reason_for(path) == reason


def test_cover_pictures_and_subtitles_are_no_video(film: Path, tmp_path: Path) -> None:
    sound, cover, both = tmp_path / "sound.m4a", tmp_path / "cover.jpg", tmp_path / "both.m4a"
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", str(sound))
    ffmpeg("-i", str(film), "-frames:v", "1", str(cover))
    ffmpeg(
        *("-i", str(sound), "-i", str(cover), "-map", "0", "-map", "1", "-c", "copy"),
        *("-disposition:v:0", "attached_pic", str(both)),
    )
    text = tmp_path / "text.srt"
    text.write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
    ffmpeg("-i", str(text), str(tmp_path / "text.mkv"))
    assert reason_for(both) == Reason.NO_VIDEO
    assert reason_for(tmp_path / "text.mkv") == Reason.NO_VIDEO
    assert reason_for(cover) == Reason.NOT_MEDIA


def test_more_than_32_streams_are_too_many(film: Path, tmp_path: Path) -> None:
    ffmpeg("-i", str(film), *("-map", "0:v") * 33, "-c", "copy", str(tmp_path / "many.mkv"))
    assert reason_for(tmp_path / "many.mkv") == Reason.TOO_LARGE


def test_a_picture_that_begins_later_than_sound_says_when(film: Path, tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    ffmpeg("-f", "lavfi", "-i", "sine=d=2", "-itsoffset", "0.5", "-i", str(film), "-c:v", "copy", str(path))
    with open_source(path) as descriptor:
        header = probe(descriptor)
    assert header.has_audio
    assert header.first_frame_seconds == pytest.approx(0.5, abs=0.03)


def test_ends_of_processes_become_reasons() -> None:
    assert reason_of(Finished("timeout", -9, ""))[0] == Reason.TIMEOUT
    assert reason_of(Finished("oom", -9, ""))[0] == Reason.OOM
    assert reason_of(Finished("crash", -11, "")) == (Reason.DECODER_CRASH, "the decoder died of signal 11")
    assert reason_of(Finished("error", 1, "moov atom not found"))[0] == Reason.TRUNCATED
    assert reason_of(Finished("error", 1, "Stream map '' matches no streams."))[0] == Reason.NO_VIDEO
    assert reason_of(Finished("error", 1, "Invalid data found when processing input"))[0] == Reason.DECODE_ERROR
    told = "[mov,mp4 @ 0x55c2e8f8a0c0] moov atom not found"
    assert reason_of(Finished("error", 1, told)) == (Reason.TRUNCATED, "[mov,mp4] moov atom not found")
    assert reason_of(Finished("error", 3, "KeyError: 'x'")) == (Reason.INTERNAL_ERROR, "KeyError: 'x'")


def test_a_probe_that_hangs_or_dies_is_a_reason(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(_: int) -> None:
        while True:
            pass

    def die(_: int) -> None:
        faulthandler.disable()
        os.abort()

    with open_source(film) as descriptor:
        monkeypatch.setattr(media, "examine", spin)
        with pytest.raises(ClipRejected, match="timeout"):
            probe(descriptor, limits=Limits(cpu_seconds=0.2))
        monkeypatch.setattr(media, "examine", die)
        with pytest.raises(ClipRejected, match="decoder_crash"):
            probe(descriptor)


def test_stored_clips_open_guarded(film: Path) -> None:
    with open_video(film.read_bytes()) as container:
        assert container.streams.video[0].codec_context.thread_count == 1
    with pytest.raises(ClipRejected, match="corrupt_header"):
        open_video(b"ffconcat version 1.0\nfile film.mp4\n")
