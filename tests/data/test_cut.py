"""A span holds the pictures of its seconds, whatever the container: counted from the first picture, whole and none before or behind it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stmae_data import encode
from stmae_data.encode import EncodedClip, Encoding, encode_clip, ffmpeg_executable
from stmae_data.errors import ClipRejected
from stmae_data.frames import read_clips
from stmae_data.media import open_source, probe
from stmae_data.records import ClipSpan

FPS, SECONDS, SIDE = 25, 6, 64
PICTURE = ("-f", "lavfi", "-i", f"testsrc2=size={SIDE}x{SIDE}:rate={FPS}:duration={SECONDS}")
SOUND = ("-f", "lavfi", "-i", f"sine=duration={SECONDS}")
X264 = ("-c:v", "libx264", "-threads", "1", "-preset", "veryfast", "-bf", "2")
MPEG4 = ("-c:v", "mpeg4", "-q:v", "3", "-bf", "2", "-g", "25")
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "3", "-bf", "2")
FILMS: dict[str, tuple[str, ...]] = {
    "near.ts": (*PICTURE, *X264, "-g", "25"),
    "far.ts": (*PICTURE, *X264, "-g", "250"),
    "sound_first.ts": ("-itsoffset", "0.5", *PICTURE, *SOUND, *X264, "-g", "25", "-c:a", "mp2"),
    "near.mpg": (*PICTURE, *MPEG2, "-g", "15"),
    "far.mpg": (*PICTURE, *MPEG2, "-g", "200"),
    "delayed.avi": (*PICTURE, *MPEG4),
    "guessed.avi": (*PICTURE, *X264, "-g", "50"),
    "plain.mp4": (*PICTURE, *X264, "-g", "250"),
    "parts.mp4": (*PICTURE, *X264, "-g", "50", "-movflags", "frag_keyframe+empty_moov"),
    "plain.flv": (*PICTURE, *X264, "-g", "50"),
}


def ffmpeg(*arguments: str) -> bytes:
    command = [ffmpeg_executable(), "-nostdin", "-v", "error", "-y", *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


def all_pictures(path: Path) -> NDArray[np.uint8]:
    """[N, 64, 64]: every frame as the hash frames have it, decoded from the beginning."""
    luma = f"scale={SIDE}:{SIDE}:flags=area+accurate_rnd+bitexact:out_range=pc,format=gray"
    raw = ffmpeg(
        *("-i", str(path), "-map", "0:v:0", "-vf", luma, "-fps_mode", "passthrough", "-f", "rawvideo", "-"),
    )
    return np.frombuffer(raw, np.uint8).reshape(-1, SIDE, SIDE)


def cut(path: Path, start_ms: int, end_ms: int) -> EncodedClip:
    with open_source(path) as descriptor:
        return encode_clip(
            descriptor, probe(descriptor), encoding=Encoding("fast", SIDE), span=ClipSpan(start_ms, end_ms)
        )


def check(clip: EncodedClip, pictures: NDArray[np.uint8], first: int, last: int) -> None:
    """The clip holds the pictures [first, last), at their times."""
    assert clip.source.num_frames == last - first
    assert clip.source.duration_seconds == pytest.approx((last - first) / FPS, abs=0.002)
    numbers = first + np.round(clip.hash_times_ms * FPS / 1000).astype(int)
    assert numbers[0] == first and numbers[-1] < last
    assert np.array_equal(clip.hash_frames, pictures[numbers])
    stored = read_clips(clip.media, [range(clip.stored.stored_num_frames)], layout="original").y
    assert len(stored) == pytest.approx((last - first) * 30 / FPS, abs=1)
    full_range = (stored[[0, -1]].astype(float) - 16) * 255 / 219
    shown = [int(np.abs(pictures - each).mean(axis=(1, 2)).argmin()) for each in full_range]
    assert shown == [first, last - 1]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for name, arguments in FILMS.items():
        ffmpeg(*arguments, str(folder / name))
    return folder


@pytest.fixture
def num_passes(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """Where each pass of ffmpeg began to read."""
    begun, real = [], encode._pass

    def counted(descriptor: int, graph: encode.Graph, **options: Any) -> encode._Pass:
        begun.append(graph.seek_seconds)
        return real(descriptor, graph, **options)

    monkeypatch.setattr(encode, "_pass", counted)
    return begun


@pytest.mark.parametrize("name", FILMS)
def test_a_span_holds_its_own_pictures(name: str, films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Less than the key frames of `far` are apart, and more than those of `near`.
    monkeypatch.setattr(encode.graph, "_MARGIN_SECONDS", 1.2)
    pictures = all_pictures(films / name)
    assert len(pictures) == FPS * SECONDS
    for start_ms, end_ms in ((0, 1000), (3400, 4600), (3960, 5000), (5000, 8000)):
        clip = cut(films / name, start_ms, end_ms)
        assert clip.flags == () and clip.source.num_decode_errors == 0
        check(clip, pictures, start_ms * FPS // 1000, min(end_ms * FPS // 1000, len(pictures)))
    with pytest.raises(ClipRejected, match="too_short: 0 decoded frames"):
        cut(films / name, 6500, 8000)


def test_a_file_with_an_index_is_read_once(films: Path, num_passes: list[float | None]) -> None:
    for start_ms in (0, 500, 3400, 5000, 6500):
        if start_ms < 6000:
            cut(films / "plain.mp4", start_ms, start_ms + 1000)
        else:
            with pytest.raises(ClipRejected):
                cut(films / "plain.mp4", start_ms, start_ms + 1000)
    assert num_passes == [None, None, 3.4, 5.0, 6.5]


def test_a_file_without_an_index_is_read_from_a_little_before(
    films: Path, num_passes: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode.graph, "_MARGIN_SECONDS", 1.2)
    for name in ("near.ts", "far.ts"):
        cut(films / name, 3400, 4600)
    assert num_passes == [2.2, 2.2, None]


def test_a_seek_that_ends_behind_the_span_is_done_again(
    films: Path, tmp_path: Path, num_passes: list[float | None]
) -> None:
    # An AVI whose index is gone: a seek to 1 s ends at the key frame of 2 s.
    data = (films / "guessed.avi").read_bytes()
    path = tmp_path / "no_index.avi"
    path.write_bytes(data[: data.rindex(b"idx1")])
    check(cut(path, 1000, 2600), all_pictures(path), 25, 65)
    assert num_passes[-2:] == [pytest.approx(1.08, abs=0.05), None]


def test_a_gap_in_the_times_is_no_failed_seek(
    tmp_path: Path, num_passes: list[float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode.graph, "_MARGIN_SECONDS", 1.2)
    path = tmp_path / "gap.mp4"
    ffmpeg(*PICTURE, "-vf", "select='not(between(n,80,99))'", "-fps_mode", "vfr", *X264, "-g", "250", str(path))
    clip = cut(path, 3400, 5000)
    assert clip.source.num_frames == 25
    assert clip.hash_times_ms[0] == 600
    assert num_passes == [3.4, pytest.approx(2.2)]
