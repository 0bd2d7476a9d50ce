"""One pass gives the clip, its hash frames and its facts, and every kind of source ends in one stated picture or one reason."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stmae_data import encode, limits
from stmae_data.encode import EncodedClip, Encoding, encode_clip, ffmpeg_executable, ffmpeg_version
from stmae_data.errors import ClipRejected, Reason, UsageError
from stmae_data.frames import count_frames, read_clips
from stmae_data.limits import Limits
from stmae_data.media import open_source, open_video, probe
from stmae_data.records import ClipSpan

X264 = ("-c:v", "libx264", "-threads", "1", "-preset", "veryfast", "-pix_fmt", "yuv420p")


def ffmpeg(*arguments: str) -> None:
    subprocess.run([ffmpeg_executable(), "-nostdin", "-v", "error", "-y", *arguments], check=True)


def picture(*, size: str = "128x96", fps: int = 25, seconds: float = 2) -> tuple[str, ...]:
    return ("-f", "lavfi", "-i", f"testsrc2=size={size}:rate={fps}:duration={seconds}")


def encoded(path: Path, *, mode: str = "layered", span: ClipSpan | None = None, short: int = 256) -> EncodedClip:
    with open_source(path) as descriptor:
        return encode_clip(descriptor, probe(descriptor), encoding=Encoding(mode, short), span=span)


def reason_for(path: Path) -> Reason:
    with pytest.raises(ClipRejected) as caught:
        encoded(path)
    return caught.value.reason


def luma(clip: EncodedClip) -> NDArray[np.uint8]:
    return read_clips(clip.media, [range(clip.stored.stored_num_frames)], layout="original").y


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of 128x96 at 25 fps, index first."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    ffmpeg(*picture(), "-vf", "noise=alls=10:allf=t:all_seed=1", *X264, "-movflags", "+faststart", str(path))
    return path


def test_facts_are_measured(film: Path) -> None:
    clip = encoded(film)
    assert (clip.source.width_px, clip.source.height_px, clip.source.fps) == (128, 96, 25.0)
    assert (clip.source.num_frames, clip.source.duration_seconds, clip.source.num_decode_errors) == (50, 2.0, 0)
    assert (clip.stored.stored_width_px, clip.stored.stored_height_px, clip.stored.stored_fps) == (128, 96, 30.0)
    assert (clip.stored.stored_num_frames, clip.stored.stored_seconds, clip.stored.keyframe_interval) == (60, 2.0, 60)
    assert clip.stored.stored_num_frames == count_frames(clip.media)
    assert clip.stored.stored_sha256 == hashlib.sha256(clip.media).hexdigest()
    assert clip.extension == "mp4" and clip.flags == ()
    assert 0 < clip.signals["motion"] < 1


@pytest.mark.parametrize("mode", ["layered", "lean", "fast"])
def test_bytes_do_not_depend_on_what_memory_held_before(film: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, made = limits.run, set()
    for value in (1, 85, 129, 200, 254):
        monkeypatch.setattr(
            limits,
            "run",
            lambda arguments, value=value, **options: real(
                arguments, **{**options, "environment": {**options["environment"], "MALLOC_PERTURB_": str(value)}}
            ),
        )
        made |= {encoded(film, mode=mode, short=side).media for side in (64, 66)}
    assert len(made) == 2


def test_hash_frames_are_the_first_of_each_eighth_of_a_second(film: Path) -> None:
    clip = encoded(film)
    assert clip.hash_frames.shape == (16, 64, 64)
    assert clip.hash_times_ms.tolist()[:6] == [0, 160, 280, 400, 520, 640]
    assert all(0 <= time - 125 * number < 40 for number, time in enumerate(clip.hash_times_ms))


def test_the_layers_are_where_they_should_be(film: Path) -> None:
    with open_video(encoded(film).media) as container:
        stream = container.streams.video[0]
        kinds = "".join("?IPB"[int(frame.pict_type)] for frame in container.decode(stream))
        assert stream.average_rate == 30 and stream.time_base is not None
        assert (1 / (Fraction(30) * stream.time_base)).denominator == 1
        assert stream.codec_context.profile == "High"
    assert kinds[:12] == "IBBBPBBBPBBB"
    assert set(kinds[4:60:4]) == {"P"}


def test_the_same_source_gives_the_same_bytes(film: Path, tmp_path: Path) -> None:
    copy = tmp_path / "another name.mov"
    copy.write_bytes(film.read_bytes())
    assert encoded(film).media == encoded(copy).media


@pytest.mark.parametrize("mode", ["lean", "fast"])
def test_other_profiles_keep_the_layers(mode: str, film: Path) -> None:
    clip, plain = encoded(film, mode=mode), encoded(film)
    assert Encoding(mode).layout == "layered-4"
    assert (len(clip.media) < len(plain.media)) == (mode == "lean")
    aligned = read_clips(clip.media, [range(0, 60, 4)], layout="layered-4")
    assert np.array_equal(aligned.y, luma(clip)[::4])


def test_copy_keeps_the_bytes_and_remux_the_packets(film: Path) -> None:
    layered, copy, remux = encoded(film), encoded(film, mode="copy"), encoded(film, mode="remux")
    assert copy.media == film.read_bytes()
    assert np.array_equal(luma(copy), luma(remux))
    for clip in (copy, remux):
        assert (clip.stored.stored_num_frames, clip.stored.stored_fps) == (50, 25.0)
        assert clip.stream_sha256 == layered.stream_sha256
        assert np.array_equal(clip.hash_frames, layered.hash_frames)


def test_copy_and_remux_do_not_cut(film: Path) -> None:
    with pytest.raises(UsageError, match="cannot cut"):
        encoded(film, mode="copy", span=ClipSpan(0, 1000))
    with pytest.raises(UsageError, match="There is no encoding 'best'"):
        Encoding("best")


@pytest.mark.parametrize("extension", ["mkv", "ts", "flv", "avi", "mov"])
def test_the_stream_hash_survives_a_change_of_container(extension: str, film: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.mp4"
    ffmpeg("-i", str(film), *X264, "-bf", "0", str(plain))
    other = tmp_path / f"other.{extension}"
    ffmpeg("-i", str(plain), "-c", "copy", str(other))
    assert encoded(other).stream_sha256 == encoded(plain).stream_sha256


def test_another_picture_has_another_stream_hash(film: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    ffmpeg("-i", str(film), "-vf", "negate", *X264, str(other))
    assert encoded(other).stream_sha256 != encoded(film).stream_sha256


@pytest.mark.parametrize("fps", [25, 30])
def test_a_span_is_cut_exactly_to_the_frame(fps: int, tmp_path: Path, trap: Callable[..., None]) -> None:
    # Every frame is one grey of its own, so the stored frames tell which they are.
    path = tmp_path / "greys.mp4"
    ffmpeg(
        *("-f", "lavfi", "-i", f"color=black:size=64x64:rate={fps}:duration=4,format=gray,geq=lum=40+N"),
        *("-vf", "format=yuv420p", *X264, "-crf", "1", "-g", "40", str(path)),
    )
    whole = luma(encoded(path, mode="copy")).mean(axis=(1, 2))
    for start_ms, end_ms in ((0, 1000), (1000, 2000), (1480, 3160), (2960, 4000)):
        clip = encoded(path, span=ClipSpan(start_ms, end_ms))
        first, last = -(-start_ms * fps // 1000), -(-end_ms * fps // 1000)
        assert clip.source.num_frames == last - first
        assert clip.source.start_pts_seconds == pytest.approx(first / fps, abs=1e-3)
        shown = luma(clip).mean(axis=(1, 2))
        assert shown[0] == pytest.approx(whole[first], abs=0.7)
        assert shown[-1] == pytest.approx(whole[last - 1], abs=0.7)
    trap(
        "AVA v2.2", "cut to the frame, first and last one checked", "clips that begin inside a film, between keyframes"
    )


SIZES = {
    "640x360": (456, 256),
    "360x640": (256, 456),
    "64x64": (64, 64),
    "320x240": (320, 240),
    "1280x720": (456, 256),
    "321x241": (320, 240),
}


@pytest.mark.parametrize("size", SIZES)
def test_pictures_shrink_but_never_grow(size: str, tmp_path: Path) -> None:
    path = tmp_path / "film.mkv"
    source = f"testsrc=size={size}:duration=0.7"
    ffmpeg("-f", "lavfi", "-i", source, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv444p", str(path))
    clip = encoded(path)
    assert (clip.stored.stored_width_px, clip.stored.stored_height_px) == SIZES[size]
    assert f"{clip.source.width_px}x{clip.source.height_px}" == size


def test_turned_pictures_come_upright(film: Path, tmp_path: Path) -> None:
    turned = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", "90", "-i", str(film), "-c", "copy", str(turned))
    clip, plain = encoded(turned), encoded(film)
    assert clip.flags == ("upright",)
    assert (clip.source.width_px, clip.source.height_px, clip.source.rotation_degrees) == (96, 128, 90)
    expected = np.rot90(luma(plain), 1, axes=(1, 2)).astype(int)
    assert np.abs(luma(clip) - expected).mean() < 3
    kept = read_clips(encoded(turned, mode="copy").media, [[0]], layout="original")
    assert np.abs(kept.y[0].astype(int) - np.rot90(luma(encoded(film, mode="copy"))[0])).mean() == 0


def test_oblong_pixels_become_square(film: Path, tmp_path: Path) -> None:
    wide = tmp_path / "wide.mp4"
    ffmpeg("-i", str(film), "-vf", "setsar=2", *X264, str(wide))
    clip = encoded(wide)
    assert (clip.stored.stored_width_px, clip.stored.stored_height_px) == (256, 96)
    with open_video(clip.media) as container:
        assert container.streams.video[0].sample_aspect_ratio in (None, 1)


COLOURS: dict[str, tuple[str, ...]] = {
    "full range": ("-vf", "scale=out_range=pc,format=yuvj420p", "-c:v", "libx264", "-crf", "5"),
    "BT.709": ("-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709", "-c:v", "libx264", "-crf", "5"),
    "BT.2020, 10 bit": (
        *("-vf", "scale=out_color_matrix=bt2020,format=yuv420p10le", "-colorspace", "bt2020nc"),
        *("-c:v", "libx265", "-crf", "5", "-x265-params", "log-level=none"),
    ),
    "4:4:4": ("-vf", "format=yuv444p", "-c:v", "libx264", "-crf", "5"),
    "RGB": ("-vf", "format=rgb24", "-c:v", "libx264rgb", "-crf", "5"),
    "opaque alpha": ("-vf", "format=argb", "-c:v", "qtrle"),
}


@pytest.mark.parametrize("name", COLOURS)
def test_every_colour_ends_in_limited_bt601(name: str, tmp_path: Path) -> None:
    # Smooth, so that only the matrix and the range count, not how chroma was thinned out.
    blurred = "testsrc2=size=128x96:rate=25:duration=0.7,gblur=12"
    source = ("-f", "lavfi", "-i", blurred, "-sws_flags", "accurate_rnd+full_chroma_int")
    plain, other = tmp_path / "plain.mkv", tmp_path / "other.mov"
    ffmpeg(*source, "-pix_fmt", "yuv420p", "-c:v", "libx264", "-crf", "5", str(plain))
    ffmpeg(*source, *COLOURS[name], "-threads", "1", str(other))
    a, b = (read_clips(encoded(path).media, [[0, 8]], layout="layered-4") for path in (plain, other))
    for wanted, found in ((a.y, b.y), (a.u, b.u), (a.v, b.v)):
        assert np.abs(wanted.astype(int) - found).mean() < 2.0
    # Hash frames are the source's own luma: another matrix weighs colours a little differently.
    assert np.abs(encoded(plain).hash_frames.astype(int) - encoded(other).hash_frames).mean() < 4.0
    with open_video(encoded(other).media) as container:
        frame = next(container.decode(container.streams.video[0]))
        assert (frame.format.name, int(frame.colorspace), int(frame.color_range)) == ("yuv420p", 6, 1)


def test_transparent_pictures_are_shown_over_black(tmp_path: Path) -> None:
    path = tmp_path / "half.mov"
    ffmpeg(
        *("-f", "lavfi", "-i", "color=white:size=64x64:rate=25:duration=1,format=argb,colorchannelmixer=aa=0.5"),
        *("-c:v", "qtrle", str(path)),
    )
    clip = encoded(path)
    assert luma(clip).mean() == pytest.approx(16 + 0.5 * 219, abs=2)


def test_grey_pictures_have_no_colour(tmp_path: Path) -> None:
    path = tmp_path / "grey.mp4"
    ffmpeg(*picture(seconds=0.7), "-pix_fmt", "gray", "-c:v", "libx264", str(path))
    planes = read_clips(encoded(path).media, [[0]], layout="layered-4")
    assert np.abs(planes.u.astype(int) - 128).max() <= 1


def test_interlaced_pictures_lose_their_combs(tmp_path: Path) -> None:
    path, kept = tmp_path / "comb.mpg", tmp_path / "kept.mkv"
    source = (*picture(fps=50, seconds=2), "-vf", "tinterlace=interleave_top")
    ffmpeg(*source, "-flags", "+ildct+ilme", "-c:v", "mpeg2video", "-q:v", "2", str(path))
    ffmpeg(*source, "-c:v", "libx264", "-crf", "5", str(kept))

    def combing(path: Path) -> float:
        y = luma(encoded(path)).astype(int)
        return float(np.abs(y[:, 1:-1] - (y[:, :-2] + y[:, 2:]) / 2).mean())

    assert combing(path) < 0.8 * combing(kept)


def test_irregular_times_are_flagged_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "vfr.mp4"
    times = "setpts=(N+floor(N/4)*3)*0.04/TB"  # four frames, then a gap of three
    ffmpeg(*picture(seconds=1.6), "-vf", times, "-fps_mode", "vfr", *X264, str(path))
    clip = encoded(path)
    assert clip.flags == ("vfr",)
    assert clip.source.num_frames == 40 and clip.source.fps == 25.0
    assert clip.stored.stored_seconds == pytest.approx(2.68, abs=0.1)


def test_frames_without_times_of_their_own_go_by_order(film: Path, tmp_path: Path) -> None:
    path = tmp_path / "equal.mkv"
    ffmpeg("-i", str(film), "-c", "copy", "-bsf:v", "setts=pts=0:dts=0", str(path))
    clip = encoded(path)
    assert clip.flags == ("frame_order_timing",)
    assert (clip.source.num_frames, clip.source.fps, clip.stored.stored_num_frames) == (50, 25.0, 60)


def test_times_that_hide_frames_are_bad(film: Path, tmp_path: Path) -> None:
    data = bytearray(film.read_bytes())
    position = data.index(b"mdhd") + 16
    data[position : position + 4] = bytes(4)  # a time scale of zero
    path = tmp_path / "zero.mp4"
    path.write_bytes(data)
    assert reason_for(path) == Reason.BAD_TIMING


def test_a_late_start_is_taken_as_zero(film: Path, tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    ffmpeg("-i", str(film), "-c", "copy", "-output_ts_offset", "90000", str(path))
    clip = encoded(path)
    assert clip.source.start_pts_seconds == pytest.approx(90000, abs=0.1)
    assert clip.media == encoded(film).media
    assert clip.hash_times_ms[0] == 0


def test_a_lying_duration_is_measured(film: Path, tmp_path: Path) -> None:
    data = bytearray(film.read_bytes())
    for box in (b"mvhd", b"mdhd"):
        position = data.index(box) + 20
        data[position : position + 4] = b"\x7f\xff\xff\xff"
    path = tmp_path / "long.mp4"
    path.write_bytes(data)
    clip = encoded(path)
    assert clip.source.duration_seconds == 2.0 and clip.media == encoded(film).media


def test_a_picture_that_changes_its_size_is_stored_in_the_first(film: Path, tmp_path: Path) -> None:
    ffmpeg("-i", str(film), "-c", "copy", str(tmp_path / "a.ts"))
    ffmpeg(*picture(size="160x128", seconds=1), *X264, str(tmp_path / "b.ts"))
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    clip = encoded(joined)
    assert clip.source.num_frames == 75
    assert 88 <= clip.stored.stored_num_frames <= 93
    assert (clip.stored.stored_width_px, clip.stored.stored_height_px) == (128, 96)
    assert (np.diff(clip.hash_times_ms) > 0).all()


@pytest.mark.parametrize(("num_frames", "is_kept"), [(15, False), (16, True)])
def test_sixteen_frames_are_wanted(num_frames: int, is_kept: bool, tmp_path: Path) -> None:
    path = tmp_path / "short.mp4"
    ffmpeg(*picture(), "-frames:v", str(num_frames), *X264, str(path))
    if is_kept:
        assert encoded(path).source.num_frames == num_frames
    else:
        assert reason_for(path) == Reason.TOO_SHORT


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_the_whole_part_of_a_cut_file_is_kept_and_flagged(extension: str, film: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"whole.{extension}", tmp_path / f"cut.{extension}"
    ffmpeg("-i", str(film), "-c", "copy", "-movflags", "+faststart", str(whole))
    data = whole.read_bytes()
    cut.write_bytes(data[: len(data) * 7 // 10])
    clip = encoded(cut)
    assert "partial" in clip.flags and 25 <= clip.source.num_frames <= 40
    cut.write_bytes(data[: len(data) // 4])
    assert reason_for(cut) in {Reason.TRUNCATED, Reason.TOO_SHORT}


def test_more_than_a_tenth_of_errors_is_too_many(film: Path, tmp_path: Path) -> None:
    data, draw = bytearray(film.read_bytes()), random.Random(1)
    begin = data.index(b"mdat") + 2000
    for _ in range(300):
        data[draw.randrange(begin, len(data))] ^= 0xFF
    path = tmp_path / "flipped.mp4"
    path.write_bytes(data)
    assert reason_for(path) == Reason.DECODE_ERROR


def test_a_codec_that_mp4_cannot_hold_is_not_remuxed(tmp_path: Path) -> None:
    path = tmp_path / "film.webm"
    ffmpeg(*picture(seconds=1), "-c:v", "libvpx", "-deadline", "realtime", str(path))
    with pytest.raises(ClipRejected, match="filtered"):
        encoded(path, mode="remux")
    assert encoded(path, mode="copy").media == path.read_bytes()


@pytest.mark.parametrize(("signal_name", "reason"), [("SEGV", Reason.DECODER_CRASH), ("KILL", Reason.OOM)])
def test_a_decoder_that_dies_is_tried_once_more(
    signal_name: str, reason: Reason, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, program = tmp_path / "count", tmp_path / "dies"
    program.write_text(f"#!/bin/sh\necho x >> '{count}'\nkill -{signal_name} $$\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    encode.graph.arguments.cache_clear()
    monkeypatch.setattr(encode.graph, "ffmpeg_executable", lambda: str(program))
    assert reason_for(film) == reason
    assert count.read_text() == "x\nx\n"
    encode.graph.arguments.cache_clear()


def test_a_pass_that_takes_too_long_is_stopped(film: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "spins"
    program.write_text("#!/bin/sh\nwhile :; do :; done\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    encode.graph.arguments.cache_clear()
    monkeypatch.setattr(encode.graph, "ffmpeg_executable", lambda: str(program))
    monkeypatch.setattr(Limits, "for_seconds", staticmethod(lambda _: Limits(cpu_seconds=0.3)))
    assert reason_for(film) == Reason.TIMEOUT
    encode.graph.arguments.cache_clear()


def test_nothing_is_left_behind(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = len(list(Path("/proc/self/fd").iterdir()))
    encoded(film)
    (tmp_path / "bad.mp4").write_bytes(film.read_bytes()[:12000])
    with pytest.raises(ClipRejected):
        encoded(tmp_path / "bad.mp4")
    assert os.listdir(tmp_path) == ["bad.mp4"]  # noqa: PTH208 - names alone
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert ffmpeg_version()


REJECTED = {
    "decord_unordered.mov": Reason.TOO_SHORT,
    "decord_video_0.mov": Reason.TOO_SHORT,
    "decord_video_180.mov": Reason.TOO_SHORT,
    "decord_video_270.mov": Reason.TOO_SHORT,
    "decord_video_90.mov": Reason.TOO_SHORT,
    "h265_video.mp4": Reason.TOO_SHORT,
    "test_non_zero_start.mp4": Reason.TOO_SHORT,
    "testsrc2_mpeg4.mp4": Reason.TOO_SHORT,
    "testsrc2_odd_height_and_width_mpeg2.mp4": Reason.TOO_SHORT,
    "testsrc2_odd_width_mpeg2.mp4": Reason.TOO_SHORT,
}
FLAGGED = {"decord_corrupted.mp4": ("partial",), "nasa_13013_rotated.mp4": ("upright",)}
NUM_FRAMES = {
    "av1_video.mkv": 125,
    "decord_corrupted.mp4": 49,
    "decord_flipping_a_pancake.mkv": 310,
    "discard_first_keyframe.mp4": 25,
    "mma_test.avi": 164,
    "nasa_13013_rotated.mp4": 17,
    "paddle_example.avi": 131,
    "realshort.mp4": 36,
    "sine_stereo_mp2.mpg": 100,
    "test_video_66x50.mov": 82,
}
"""Frames of each file as this program decodes it, so that a change shows; the rest are testsrc clips of whole seconds."""


def test_real_files_end_as_a_person_would_say(shared_dir: Path) -> None:
    paths = sorted((shared_dir / "real" / "videos").iterdir())
    assert len(paths) >= 46
    for path in paths:
        if path.name in REJECTED:
            assert reason_for(path) == REJECTED[path.name], path.name
            continue
        clip = encoded(path, mode="layered" if path.stat().st_size < 100_000 else "copy")
        assert clip.flags == FLAGGED.get(path.name, ()), path.name
        assert clip.source.num_frames == NUM_FRAMES.get(path.name, clip.source.num_frames), path.name
        assert clip.source.num_decode_errors == (2 if path.name == "decord_corrupted.mp4" else 0), path.name
        if clip.stored.encode_mode == "copy" and not clip.flags:
            assert clip.stored.stored_num_frames == count_frames(clip.media) == clip.source.num_frames, path.name
        assert len(clip.hash_frames) == pytest.approx(8 * clip.source.duration_seconds, abs=1.5), path.name


def test_web_files_are_taken_and_same_streams_found(shared_dir: Path) -> None:
    streams = {}
    for path in sorted((shared_dir / "real" / "neardup").glob("*.mp4")):
        if path.stat().st_size > 1_600_000:
            continue  # the long ones are of one family with smaller ones and cost half a minute
        clip = encoded(path, mode="copy")
        assert clip.flags == (), path.name
        streams[path.name] = clip.stream_sha256
    same = {name for name, stream in streams.items() if list(streams.values()).count(stream) > 1}
    assert same == {"dj_video1.mp4", "dj_video6.mp4", "pool_part_0.mp4", "pool_part_1.mp4"}
